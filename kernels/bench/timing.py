"""Timing of one call on a machine that may be shared: the best and the median of several calls."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import perf_counter


def timed(call: Callable[[], object], *, least: int, seconds: float) -> tuple[float, float]:
    """Return the best and median seconds of a call, over at least `least` calls and about `seconds`."""
    call()
    found: list[float] = []
    gc.disable()
    while len(found) < least or sum(found) < seconds:
        start = perf_counter()
        call()
        found.append(perf_counter() - start)
    gc.enable()
    return min(found), median(found)


def peaks(threads: int) -> tuple[float, float]:
    """Return GFLOP/s of fused multiply-adds and GB/s of memory that the given threads reach now."""
    from splatexp_kernels import _cpu  # type: ignore[attr-defined]

    return _cpu.measure_fma_gflops(threads), _cpu.measure_bandwidth_gbs(threads)
