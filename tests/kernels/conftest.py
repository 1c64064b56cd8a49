"""Fixtures of the kernel tests: uninitialised memory is poisoned, and every backend gets its turn."""

import numpy
import pytest
import torch

import splatexp_kernels as sk
from splatexp_kernels import dispatch

ISAS = ("avx512", "avx2", "portable")
CHEAP = ["reference", *(f"cpu-{isa}" for isa in ISAS)]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What nobody wrote is NaN, or a senseless integer, so that reading it cannot go unnoticed."""

    def poison(allocate):
        def allocated(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(float("nan"))
            return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max // 2)

        return allocated

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def quiet_arithmetic():
    """Triton's interpreter computes in numpy, which warns of a NaN that a GPU makes in silence."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def gpu_needs_the_interpreter(request):
    """Tests named after the GPU hand over tensors of the CPU; compiled kernels are checked by the bench."""
    if "gpu" in request.node.nodeid and not dispatch.interpreted():
        pytest.skip("Triton's interpreter is off or Triton missing; `python kernels/bench gpu` checks a GPU")


@pytest.fixture(autouse=True)
def one_thread():
    """Torch's own operators take turns with the kernels for the same cores; these scenes are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def isa(request):
    """Each instruction set that this processor has, chosen for one test."""
    yield from _with_isa(request.param)


@pytest.fixture(params=CHEAP)
def backend(request):
    """The names of `reference` and `cpu` in turn, the latter once per instruction set."""
    yield from _with_backend(request.param)


@pytest.fixture(params=[*CHEAP, "gpu"])
def any_backend(request):
    """Those and `gpu`, for tests of few enough rows for Triton's interpreter."""
    yield from _with_backend(request.param)


def _with_backend(param):
    name, _, isa = param.partition("-")
    if isa:
        for _ in _with_isa(isa):
            yield name
    else:
        yield name


def _with_isa(isa):
    if isa not in sk.isas():
        pytest.skip(f"this processor cannot run {isa}")
    before = sk.isa()
    sk.set_isa(isa)
    yield isa
    sk.set_isa(before)
