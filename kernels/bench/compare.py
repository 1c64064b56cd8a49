"""Comparison of a backend's tensors on a device with the reference in float64 on the host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from support.blend2d_cases import KINDS, edges_of, picture  # noqa: E402, F401  the images of its tests
from support.kernel_cases import beside_cutoffs, flat, run, scene  # noqa: E402, F401  the scenes of the tests

Ratios = dict[str, float]  # error over what is allowed, for each tensor
NAN, INF = float("nan"), float("inf")
BROKEN = [
    ("means", NAN),
    ("means", INF),
    ("means", 1e30),
    ("quats", 0.0),
    ("quats", NAN),
    ("scales", NAN),
    ("scales", INF),
    ("opacities", NAN),
    ("opacities", INF),
    ("opacities", -1.0),
]


def compared(
    device: str, function: Callable[..., dict[str, Tensor]], inputs: dict[str, Tensor], graded: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the results of `function(backend, to, **inputs)` on the device in float32, and of the reference
    in float64.

    `to` takes a further tensor to the function's device and dtype. Outputs come with the gradients of their
    product with noise where `graded`. On the device it runs twice; AssertionError where bits differ.
    """

    def on(backend: str, place: str, dtype: torch.dtype) -> dict[str, Tensor]:
        def to(tensor: Tensor) -> Tensor:
            return tensor.to(place, dtype if tensor.is_floating_point() else tensor.dtype)

        def moved(**leaves: Tensor) -> dict[str, Tensor]:
            outputs = function(backend, to, **{name: to(tensor) for name, tensor in leaves.items()})
            return {name: tensor.cpu() for name, tensor in outputs.items()}

        if graded:
            return run(moved, inputs, dtype)
        with torch.no_grad():
            return moved(**inputs)

    with poisoned():
        once, again = (on("gpu", device, torch.float32) for _ in range(2))
    for name, tensor in once.items():
        same = torch.equal(tensor.nan_to_num(0.5), again[name].nan_to_num(0.5))
        expect(same, f"{name}: two equal calls gave different bits")
    return once, on("reference", "cpu", torch.float64)


def all_ratios(actual: dict[str, Tensor], expected: dict[str, Tensor], allowed: float) -> Ratios:
    """Return the ratio of every tensor."""
    return {name: ratio(actual[name], tensor, allowed) for name, tensor in expected.items()}


def ratio(actual: Tensor, expected: Tensor, allowed: float, where: Tensor | None = None) -> float:
    """Return the largest error over `allowed` times the largest expected value; infinite for NaN, 0 for equal
    tensors.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"expected {tuple(expected.shape)}, got {tuple(actual.shape)}")
    scale = expected.double().abs().max().item() if expected.numel() else 0.0
    error = (actual.double() - expected.double()).abs().nan_to_num(INF, INF)
    if where is not None:
        error = error[where]
    worst = error.max().item() if error.numel() else 0.0
    if worst == 0:
        return 0.0
    return worst / (allowed * scale) if allowed * scale > 0 else INF


def apart(actual: Tensor, expected: Tensor, allowed: float) -> float:
    """Return the norm of the difference over `allowed` times the expected norm; infinite for NaN."""
    error, scale = (actual.double() - expected.double()).norm().item(), expected.double().norm().item()
    if error == 0:
        return 0.0
    return error / (allowed * scale) if scale > 0 and error == error else INF


def expect(held: bool, otherwise: str) -> None:
    """Raise AssertionError where a condition does not hold."""
    if not held:
        raise AssertionError(otherwise)


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN, or with a large integer, inside the context."""

    def poison(allocate):
        def allocated(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(NAN)
            return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max // 2)

        return allocated

    before = torch.empty, torch.empty_like, torch.Tensor.new_empty
    torch.empty, torch.empty_like, torch.Tensor.new_empty = map(poison, before)
    try:
        yield
    finally:
        torch.empty, torch.empty_like, torch.Tensor.new_empty = before


def spoiled(s, first: int):
    """Return the scene with rows from `first` on that hold values that cannot be drawn, one of BROKEN
    each.
    """
    for row, (name, value) in enumerate(BROKEN, first):
        getattr(s, name)[row] = value
    return hidden(s, first + len(BROKEN))


def hidden(s, first: int):
    """Return the scene with rows from `first` on behind every camera."""
    s.means[first:] = torch.tensor([0.0, 0.0, -50.0])
    return s
