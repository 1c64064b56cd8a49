"""What every op does at its public door: check the arguments once, then pick the backend's module."""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "gpu")


def check(backend: str, tensors: Mapping[str, tuple[Tensor | None, str]]) -> dict[str, int]:
    """Hold tensors against shapes such as `"C N 3"`; equal letters are equal sizes, None is skipped.

    All share one floating dtype and one device; the backend `cpu` takes float32 on the CPU alone.

    Returns: the size of every letter.
    Raises: TypeError for a dtype or device, ValueError for a shape.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
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
    return sizes


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, ...]) -> None:
    """Hold a boolean mask against its shape; None passes."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool, got {str(mask.dtype).removeprefix('torch.')}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {tuple(mask.shape)}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Hold a number against [low, high]; NaN is refused."""
    if not low <= value <= high:
        above = f"at least {low}" if high == float("inf") else f"a number in [{low}, {high}]"
        raise ValueError(f"{name}: expected {above}, got {value}")


def implementation(op: str, backend: str) -> ModuleType:
    """The module of one backend of an op, imported on first use.

    Raises: RuntimeError for `gpu`, ImportError for a `cpu` that was not built, with reason and remedy.
    """
    if backend == "gpu":
        raise RuntimeError(f"{op}: there is no GPU kernel in this version; use backend='cpu'")
    return import_module(f"splatexp_kernels.{op}.{backend}")


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
