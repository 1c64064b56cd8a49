"""The time that a call takes on a device, the speed of that device, and how often a call waits for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import triton
import triton.language as tl

FLUSH = 256 << 20  # bytes that are written between calls, more than any cache holds
WARM_UPS = 3
COPIED, ADDED = 1 << 28, (4096, 1024, 256)  # numbers of the copy; programs, their elements, and rounds
CHAINS = tl.constexpr(4)  # independent multiply-adds of a thread's element
UNROLLED = tl.constexpr(16)


class Clock:
    """Measures the best and the median seconds of a call: by events on a CUDA device, by the host's clock
    elsewhere.
    """

    def __init__(self, device: str, least: int, seconds: float) -> None:
        self.device, self.least, self.seconds = device, least, seconds
        self.on_gpu = device != "cpu"
        self.other = torch.empty(FLUSH if self.on_gpu else 1, dtype=torch.uint8, device=device)

    def __call__(self, call: Callable[[], object], *, cold: bool = False) -> tuple[float, float]:
        """Return the best and median seconds after a warm-up; `cold` empties the caches before each call."""
        for _ in range(WARM_UPS if self.on_gpu else 0):
            call()
        found = self._timed(call, 1, cold)
        count = max(self.least, min(int(self.seconds / max(found[0], 1e-7)), 1000))
        if count > 1:
            found = self._timed(call, count, cold)
        return min(found), median(found)

    def _timed(self, call: Callable[[], object], count: int, cold: bool) -> list[float]:
        if not self.on_gpu:
            found = []
            for _ in range(count):
                start = perf_counter()
                call()
                found.append(perf_counter() - start)
            return found
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        torch.cuda.synchronize()
        for start, end in pairs:
            if cold:
                self.other.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


def bandwidth(clock: Clock) -> float:
    """Return the bytes per second of a large copy, read and written bytes together."""
    source = torch.rand(COPIED if clock.on_gpu else 1 << 10, device=clock.device)
    target = torch.empty_like(source)
    best, _ = clock(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / best


def fma_rate(clock: Clock) -> float:
    """Return the operations per second, two for each fused multiply-add, of float32 numbers in registers."""
    programs, size, rounds = ADDED if clock.on_gpu else (1, 16, 1)
    out = torch.empty(programs * size, device=clock.device)
    best, _ = clock(lambda: _multiply_adds[(programs,)](out, rounds, SIZE=size, num_warps=8))
    if not torch.isfinite(out).all():
        raise RuntimeError("fma_rate: the multiply-adds are not finite")
    return 2.0 * programs * size * rounds * UNROLLED.value * CHAINS.value / best


@triton.jit
def _multiply_adds(out, rounds, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    a = at.to(tl.float32) * 1e-9
    x, y, z, w = a, a + 1, a + 2, a + 3
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            x = x * 0.999 + a
            y = y * 0.999 + a
            z = z * 0.999 + a
            w = w * 0.999 + a
    tl.store(out + at, x + y + z + w)


def waits(call: Callable[[], object]) -> int:
    """Return how often a call makes the host wait for the CUDA device, counted from PyTorch's warnings."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak memory of tensors on the CUDA device during a call, with what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
