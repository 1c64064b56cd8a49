"""Timing of one call on a machine that others use, too: the best and the median of several."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from time import perf_counter


def timed(call: Callable[[], object], *, least: int, seconds: float) -> tuple[float, float]:
    """Best and median seconds of a call, over at least `least` calls and about `seconds`."""
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
    """GFLOP/s of fused multiply-adds and GB/s of memory that so many threads reach here and now."""
    from splatexp_kernels import _cpu  # type: ignore[attr-defined]

    return _cpu.measure_fma_gflops(threads), _cpu.measure_bandwidth_gbs(threads)
