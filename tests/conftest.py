"""What all tests share. Where there is no GPU, Triton's kernels run under its interpreter."""

import gc
import logging
import os
import sys
import warnings
from contextlib import suppress

import pytest
import torch

import splatexp_kernels
from splatexp.system.linux_memory import cpu_count

if not torch.cuda.is_available():  # read when a kernel's module is imported, so before any test is
    os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the other processors have workers of their own
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with suppress(ImportError):  # they are not built
        splatexp_kernels.set_num_threads(1)


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: one for each processor that may be used, at most 16.

    A worker takes 8 s of a processor to begin and up to 1 GB of memory.
    """
    return min(cpu_count(), 16)


@pytest.fixture(autouse=True)
def long_lived():
    """Leave what lives as long as the tests do out of every collection of garbage.

    Torch, Hydra and 5,000 tests are a heap that takes longer to walk than a test to run, and every run ends
    with a collection. Now and then a test imports a large package, as torchmetrics is.
    """
    yield
    if len(sys.modules) > _modules[-1] + 200:
        _modules.append(len(sys.modules))
        gc.collect()
        gc.freeze()


_modules = [0]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Take everything back: hypothesis, imported for its summary, asks who refers to a random generator."""
    gc.unfreeze()


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
