"""The backend `gpu` says in one line why it cannot run, and what to do; nobody else needs Triton."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from support.command import python

from splatexp_kernels import dispatch
from splatexp_kernels.ssim import ssim

CPU_BUILD = "is built for the CPU alone; install a CUDA build of it (https://pytorch.org/get-started)"


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU as good as one may wish, parts of which a test takes away; no interpreter."""
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    dispatch.gpu_missing.cache_clear()
    yield monkeypatch
    dispatch.gpu_missing.cache_clear()


def refusal():
    x = torch.zeros(1, 2, 2, 3)
    with pytest.raises(RuntimeError) as caught:
        ssim(x, x, backend="gpu")
    text = str(caught.value)
    assert text == f"backend 'gpu' cannot run: {dispatch.gpu_missing()}, or use backend='cpu'"
    assert "\n" not in text
    with pytest.raises(RuntimeError, match=re.escape(text)):
        dispatch.backend_module("ssim", "gpu")
    return text


def test_gpu_can_run(machine):
    assert dispatch.gpu_missing() == ""
    assert dispatch.backend_module("ssim", "gpu").__name__ == "splatexp_kernels.ssim.gpu"


def test_gpu_needs_a_cuda_build_of_torch(machine):
    machine.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert f"PyTorch {torch.__version__} {CPU_BUILD}" in refusal()


def test_gpu_needs_a_device(machine):
    machine.setattr(torch.cuda, "is_available", lambda: False)
    found = refusal()
    assert "finds no CUDA device" in found and "nvidia-smi" in found and "CUDA_VISIBLE_DEVICES" in found


def test_gpu_needs_a_device_that_triton_compiles_for(machine):
    machine.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GTX 1080")
    machine.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    assert "NVIDIA GTX 1080 has compute capability 6.1; take a GPU of 7.5 or newer" in refusal()


def test_gpu_needs_triton(machine):
    machine.delitem(sys.modules, "splatexp_kernels.launch", raising=False)
    machine.setitem(sys.modules, "triton", None)  # what a missing module looks like
    found = refusal()
    assert "Triton cannot be imported" in found and "pip install 'triton>=3.5'" in found


def test_interpreted_without_triton(monkeypatch):
    monkeypatch.delitem(sys.modules, "splatexp_kernels.launch", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not dispatch.interpreted()


def test_gpu_takes_float32_on_the_current_device(machine):
    def check(dtype, device):
        tensor = SimpleNamespace(
            dtype=dtype, device=torch.device(device), shape=(5,), is_floating_point=lambda: True
        )
        return dispatch.check_tensors("gpu", {"means": (tensor, "N")})

    assert check(torch.float32, "cuda:1") == {"N": 5}
    for dtype, device in ((torch.float64, "cuda:1"), (torch.float32, "cuda:0"), (torch.float32, "cpu")):
        got = f"{str(dtype)[6:]} on {device}"
        message = f"means: backend 'gpu' takes float32 on cuda:1, got {got}"
        with pytest.raises(TypeError, match=re.escape(message)):
            check(dtype, device)


def test_gpu_refuses_float64_under_the_interpreter():
    x = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    with pytest.raises(
        TypeError, match="image: backend 'gpu' takes float32 on any device, got float64 on cpu"
    ):
        ssim(x, x, backend="gpu")


def test_an_op_without_a_gpu_kernel_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "splatexp_kernels.ssim.gpu", None)
    with pytest.raises(RuntimeError, match="ssim: has no backend 'gpu'; use backend='reference'"):
        dispatch.backend_module("ssim", "gpu")


def test_nobody_imports_triton_who_does_not_use_it(tmp_path):
    code = (
        "import sys; import splatexp, splatexp_kernels, splatexp.run.run; "
        "from splatexp_kernels import dispatch; dispatch.gpu_missing(); "
        "assert 'triton' not in sys.modules or __import__('torch').cuda.is_available()"
    )
    python("-c", code, cwd=tmp_path)
