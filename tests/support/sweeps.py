"""Sweeps as small as they can be, and the command line that runs them in this process."""

import csv
import json
import logging
import warnings
from pathlib import Path

import pytest
import torch

from splatexp import __main__

TINY = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
TINY += ["data.cache=false", "evaluate.turntable=false", "evaluate.renders=false", "tracker=[csv]", "steps=6"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line in this process, in an empty folder; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets its own
    for logger in (logging.root, logging.getLogger("hydra")):  # and Hydra these
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
        monkeypatch.setattr(logger, "level", logger.level)
        monkeypatch.setattr(logger, "propagate", logger.propagate)
    threads = torch.get_num_threads()

    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["splatexp", *words])
        return __main__.main()

    yield call
    torch.set_num_threads(threads)


def sweep(*words: str, folder: str) -> list[str]:
    """The words of a sweep of tiny jobs that lands in `folder`."""
    return ["-m", *TINY, f"hydra.sweep.dir={folder}", *words]


def rows(folder) -> list[dict[str, str]]:
    """sweep.csv, read back."""
    with open(Path(folder, "sweep.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(folder, name: str) -> list[str]:
    return [row[name] for row in rows(folder)]


def read(*parts) -> dict:
    return json.loads(Path(*parts).read_text(encoding="utf-8"))
