"""Dispatch of every op: check the arguments once, then import the module of the backend."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "gpu")
CAPABILITY_MIN = (7, 5)  # Turing: the oldest that Triton compiles for


def check_tensors(backend: str, tensors: Mapping[str, tuple[Tensor | None, str]]) -> dict[str, int]:
    """Check tensors against shapes such as `"C N 3"`; equal letters are equal sizes, and None is skipped.

    All tensors must have one floating dtype and one device. The backend `cpu` takes float32 on the CPU only,
    `gpu` float32 on the current CUDA device (under Triton's interpreter on any device).

    Returns: the size of every letter.
    Raises: TypeError for a dtype or device, ValueError for a shape, RuntimeError where `gpu` cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "gpu":
        _require_gpu()
    sizes: dict[str, int] = {}
    kind = None
    for name, (tensor, spec) in tensors.items():
        if tensor is None:
            continue
        _check_shape(name, tensor, spec.split(), sizes)
        kind = kind or (tensor.dtype, tensor.device)
        if (tensor.dtype, tensor.device) != kind or not tensor.is_floating_point():
            raise TypeError(f"{name}: expected {_words(kind)}, got {_words((tensor.dtype, tensor.device))}")
    if backend == "cpu" and kind and (kind[0] != torch.float32 or kind[1].type != "cpu"):
        raise TypeError(f"{next(iter(tensors))}: backend 'cpu' takes float32 on cpu, got {_words(kind)}")
    if backend == "gpu" and kind:
        _check_gpu(next(iter(tensors)), kind)
    return sizes


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check the dtype and shape of a boolean mask; None passes."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool, got {str(mask.dtype).removeprefix('torch.')}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {tuple(mask.shape)}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check that a number lies in [low, high]; NaN does not."""
    if not low <= value <= high:
        above = f"at least {low}" if high == float("inf") else f"a number in [{low}, {high}]"
        raise ValueError(f"{name}: expected {above}, got {value}")


def backend_module(op: str, backend: str) -> ModuleType:
    """Return the module of one backend of an op, which is imported on first use.

    Raises: RuntimeError for a `gpu` that cannot run here or that the op lacks, ImportError for a `cpu` that
        was not built; both with reason and remedy.
    """
    if backend == "gpu":
        _require_gpu()
    name = f"splatexp_kernels.{op}.{backend}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise RuntimeError(f"{op}: has no backend {backend!r}; use backend='reference'") from error


@cache
def gpu_missing() -> str:
    """Return why this machine cannot run the backend `gpu`, with the remedy, in one line; "" where it can.

    Triton's interpreter does not count: it is for tests, which call an op directly.
    """
    if not torch.backends.cuda.is_built():
        return (
            f"PyTorch {torch.__version__} is built for the CPU alone; install a CUDA build of it "
            "(https://pytorch.org/get-started)"
        )
    if not torch.cuda.is_available():
        return (
            f"PyTorch {torch.__version__} finds no CUDA device; look whether nvidia-smi finds one, and "
            "whether CUDA_VISIBLE_DEVICES hides it"
        )
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY_MIN:
        least, here = (".".join(map(str, pair)) for pair in (CAPABILITY_MIN, capability))
        return f"{torch.cuda.get_device_name()} has compute capability {here}; take a GPU of {least} or newer"
    try:
        import_module("splatexp_kernels.launch")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install 'triton>=3.5'"
    return ""


def interpreted() -> bool:
    """Return whether the Triton kernels run under Triton's interpreter, TRITON_INTERPRET=1."""
    try:
        return import_module("splatexp_kernels.launch").INTERPRETED
    except ImportError:
        return False


def _require_gpu() -> None:
    reason = not interpreted() and gpu_missing()
    if reason:
        raise RuntimeError(f"backend 'gpu' cannot run: {reason}, or use backend='cpu'")


def _check_gpu(name: str, kind: tuple[torch.dtype, torch.device]) -> None:
    dtype, device = kind
    current = "" if interpreted() else f"cuda:{torch.cuda.current_device()}"
    if dtype != torch.float32 or (current and str(device) != current):
        where = current or "any device"
        raise TypeError(f"{name}: backend 'gpu' takes float32 on {where}, got {_words(kind)}")


def _check_shape(name: str, tensor: Tensor, dims: list[str], sizes: dict[str, int]) -> None:
    shape = tuple(tensor.shape)
    expected = [int(dim) if dim.isdigit() else sizes.get(dim, dim) for dim in dims]
    fits = len(shape) == len(dims) and all(
        size == want for size, want in zip(shape, expected, strict=True) if isinstance(want, int)
    )
    if not fits:
        known = ", ".join(f"{dim}={sizes[dim]}" for dim in dict.fromkeys(dims) if dim in sizes)
        raise ValueError(f"{name}: expected [{', '.join(dims)}]{' with ' * bool(known)}{known}, got {shape}")
    sizes.update({dim: size for dim, size in zip(dims, shape, strict=True) if not dim.isdigit()})


def _words(kind: tuple[torch.dtype, torch.device]) -> str:
    return f"{str(kind[0]).removeprefix('torch.')} on {kind[1]}"
