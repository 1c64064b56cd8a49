"""What all tests share. Where there is no GPU, Triton's kernels run under its interpreter."""

import logging
import os
import warnings

import pytest
import torch

if not torch.cuda.is_available():  # read when a kernel's module is imported, so before any test is
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def threads():
    """A run sets torch's threads: put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command line in this process, in an empty folder; gives the exit status."""
    from splatexp import __main__

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # main sets its own
    for logger in (logging.root, logging.getLogger("hydra")):  # and Hydra these
        monkeypatch.setattr(logger, "handlers", list(logger.handlers))
        monkeypatch.setattr(logger, "level", logger.level)
        monkeypatch.setattr(logger, "propagate", logger.propagate)

    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["splatexp", *words])
        return __main__.main()

    return call
