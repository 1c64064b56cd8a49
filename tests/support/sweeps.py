"""Sweeps as small as they can be, and the files that they write."""

import csv
import json
from pathlib import Path

TINY = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
TINY += ["data.cache=false", "evaluate.turntable=false", "evaluate.renders=false", "tracker=[csv]", "steps=6"]


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
