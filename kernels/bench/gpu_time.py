"""Times of the Triton kernels on a device, op by op and as whole steps, compared with gsplat and the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import rasterizers
import torch
from gpu_clock import Clock, peak_bytes, waits
from ops import op_calls
from workload import synthetic

Row = dict[str, Any]
Scene = tuple[int, tuple[int, int]]  # Gaussians, image
Maker = Callable[[], rasterizers.Stepper]
FULL = [(N, size) for N in (50_000, 500_000, 2_000_000) for size in ((960, 540), (1920, 1080))]
QUICK = [(50_000, (960, 540)), (500_000, (1920, 1080))]
TINY = [(12, (18, 8))]  # for Triton's interpreter
SMALL = (2_000, (160, 120))  # what the reference is timed on, too


def ops(scene: Scene, clock: Clock, bandwidth: float, fma: float) -> Iterator[Row]:
    """Yield the times of forward and backward of each op with cold caches, and the minimum that its bytes and
    operations allow.
    """
    N, size = scene
    w = synthetic(N, *size, device=clock.device, backend="gpu")
    for work in op_calls(w):
        best, middle = clock(work.call, cold=True)
        limits = {"bytes": work.bytes / bandwidth, "operations": work.flops / fma}
        bound = max(limits, key=limits.__getitem__)
        yield {
            "op": work.op, "direction": work.direction, "gaussians": N, "size": size,
            "best": best, "median": middle, "limit": limits[bound], "bound": bound,
            "bytes": work.bytes, "flops": work.flops, "in_step": work.in_step,
        }  # fmt: skip


def steps(scene: Scene, clock: Clock) -> Iterator[Row]:
    """Yield the times of rasterization, its backward pass and a whole step: of gsplat where it can run, then
    of these kernels.
    """
    if not rasterizers.missing(clock.device):
        yield timed("gsplat", stepper(rasterizers.Gsplat, scene, clock, "gpu"), scene, clock)
    yield timed("triton", stepper(rasterizers.Stepper, scene, clock, "gpu"), scene, clock)


def small(scene: Scene, clock: Clock) -> Iterator[Row]:
    """Yield the same for few Gaussians with the reference, then with these kernels."""
    yield timed("reference", stepper(rasterizers.Stepper, scene, clock, "reference"), scene, clock)
    yield timed("triton", stepper(rasterizers.Stepper, scene, clock, "gpu"), scene, clock)


def stepper(kind: type[rasterizers.Stepper], scene: Scene, clock: Clock, backend: str) -> Maker:
    """Return a function that makes a stepper when its turn comes, so that each has the memory to itself."""
    N, size = scene
    return lambda: kind(synthetic(N, *size, device=clock.device, backend=backend))


def timed(name: str, make: Maker, scene: Scene, clock: Clock) -> Row:
    """Return the medians of one rasterizer, its memory in bytes, and how often a step waits."""
    one = make()
    row: Row = {"by": name, "gaussians": scene[0], "size": scene[1]}
    row["forward"] = clock(one.forward)[1]
    row["backward"] = clock(one.backward())[1]
    row["step"] = clock(one.step)[1]
    if clock.on_gpu:
        torch.cuda.empty_cache()
        row |= {"waits": waits(one.step), "memory": peak_bytes(one.step)}
    return row
