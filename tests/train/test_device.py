"""Training on a device, walked through where there is none: see on_a_device.py."""

import os
import re
from pathlib import Path

import pytest
import torch
from support.command import python

from splatexp.system import devices

backend = pytest.importorskip("torch.utils.backend_registration")


@pytest.mark.skipif(
    not hasattr(backend, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch lets no Python play a device",
)
@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        pytest.param("not gives_the_same or everything", 8, marks=pytest.mark.slow),
        pytest.param("gives_the_same and not everything", 8, marks=pytest.mark.slow),
    ],
    ids=["operators", "strategies"],
)
def test_everything_that_is_done_on_a_device(chosen, count, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)  # else it takes itself for a worker of this pytest
    cases = Path(__file__).parents[1] / "support" / "on_a_device.py"
    plain = ("-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen)
    said = python("-m", "pytest", *plain, str(cases), cwd=cases.parent).stdout
    assert re.match(rf"\.{{{count}}} ", said), said


def test_a_gpu_reckons_in_float32_and_with_a_workspace_where_bits_must_repeat(monkeypatch):
    before = torch.backends.cudnn.allow_tf32
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        devices.configure_device(torch.device("cpu"), deterministic=True)
        assert torch.backends.cudnn.allow_tf32 == before and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        devices.configure_device(torch.device("cuda"))
        assert not torch.backends.cudnn.allow_tf32 and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        devices.configure_device(torch.device("cuda"), deterministic=True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.backends.cudnn.allow_tf32 = before
