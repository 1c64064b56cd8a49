"""Functions that tell how much memory is available and in use, and whether it has run out.

Sizes are bytes. Only on Linux are the limits of processes and containers known.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splatexp.settings.checks import check_range
from splatexp.system.linux_memory import (
    PAGE,
    libc_function,
    limit_allocations,
    limits_available,
    memory_groups,
    read_label,
    read_number,
    read_text,
    remove_allocation_limit,
    system_available,
)

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
OUT_OF_MEMORY_PHRASES = (  # in the RuntimeErrors and ImportErrors of torch, the C++ library and Python
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "bad allocation",
    "alloc_failed",
    "can't start new thread",
    "resource temporarily unavailable",
)


@dataclass
class MemorySettings:
    """Settings of memory: how much a run leaves free, and how CUDA's allocator works."""

    reserve_mb: int = 256  # MiB; with less than this available, memory counts as used up; 0: no check
    expandable_segments: bool = (
        True  # of CUDA's allocator: less fragmentation while the number of rows changes
    )

    def __post_init__(self) -> None:
        check_range("memory.reserve_mb", self.reserve_mb, 0)

    @property
    def reserve(self) -> int:
        """The reserve in bytes."""
        return self.reserve_mb << 20

    def configure_allocator(self) -> None:
        """Configure CUDA's allocator without initializing CUDA; the environment takes precedence."""
        import torch

        if sys.platform != "linux" or not torch.backends.cuda.is_built():
            return
        environment = next(filter(None, map(os.environ.get, ALLOCATOR_VARIABLES)), "")
        if "expandable_segments" in environment:
            return
        expandable = f"expandable_segments:{self.expandable_segments}"
        settings = f"{environment},{expandable}" if environment else expandable
        # neither of the two functions touches a device; newer releases of torch have the first
        set_settings = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        (set_settings or torch.cuda.memory._set_allocator_settings)(settings)


@dataclass
class MemoryWatch:
    """Checks a few times per second whether memory is about to run out.

    Between two checks, allocations that would get the process killed fail instead: see
    `linux_memory.limit_allocations`.
    """

    reserve: int  # bytes that are to stay available; 0: no check
    interval: float = 0.2  # seconds between two checks
    _next: float = field(default=0.0, init=False)
    _checked: bool = field(default=False, init=False)

    def __call__(self, want: int = 0) -> int | None:
        """Return the bytes that would be left during the next step, if less than the reserve; None otherwise.

        Before memory counts as short, unused memory is handed back to the system: it may remain from loading
        or from an evaluation. Where the first check finds little memory available, the reserve becomes half
        of it.

        Args:
            want: bytes that a step takes and frees, as `memory_budget.step_bytes` estimates them.
        """
        if not self.reserve or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self.interval
        left = available_memory(want)
        if left is not None and not self._checked:
            self.reserve, self._checked = min(self.reserve, left // 2), True
        if left is not None and left < self.reserve:
            release_unused()
            left = max(0, (available_memory() or 0) - want)
            self._next += 9 * self.interval  # taking back the pages that were released costs time
        outside = _available_outside("")
        if outside is not None and not _cuda():  # CUDA maps address space that it never touches
            limit_allocations(outside - self.reserve // 2)
        return left if left is not None and left < self.reserve else None

    def stop(self) -> None:
        """Remove the limit on allocations, and hand unused memory back to the system for others."""
        release_unused()
        remove_allocation_limit()


def available_memory(want: int = 0, root: str = "") -> int | None:
    """Return how much memory this process can still take; None where it is unknown.

    It is the least of what the system, the control groups and the process's own limits leave. Memory that the
    process has freed but still holds (see `release_unused`) counts as taken for the system and the groups,
    and as available within its own limits (`ulimit -v`), except for what the next step takes.

    Args:
        want: bytes that a step takes and frees, as `memory_budget.step_bytes` estimates them.
        root: the folder that holds /proc and /sys.
    """
    values = [value for value in (_available_outside(root), *limits_available(want)) if value is not None]
    return max(0, min(values)) if values else None


def _available_outside(root: str) -> int | None:
    """Return what the system and the control groups leave; a process that takes more is killed."""
    least = system_available(root)
    for group in memory_groups(root, int(time.monotonic()) // 10):
        left = group.limit - (read_number(f"{group.folder}/memory.current") or 0)
        if least is None or left < least:  # only then does it matter how much of the usage is cache
            left += read_label(read_text(f"{group.folder}/memory.stat"), "inactive_file") or 0
            least = left if least is None else min(least, left)
    return least


def _cuda() -> Any:
    """Return torch.cuda if it is in use, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def resident_memory() -> int:
    """Return the resident memory of this process."""
    words = read_text("/proc/self/statm").split()
    if words:
        return int(words[1]) * PAGE
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory() -> int | None:
    """Return the peak resident memory since `reset_peak_memory`; None where the system does not report it."""
    peak = read_label(read_text("/proc/self/status"), "VmHWM:")  # ru_maxrss includes the parent's before exec
    if peak is not None:
        return 1024 * peak
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
    """Reset the peak counters (Linux, CUDA), because a sweep runs many runs in one process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def device_memory() -> tuple[int, int] | None:
    """Return CUDA's allocated bytes and their peak; None while CUDA is not in use."""
    cuda = _cuda()
    return (cuda.memory_allocated(), cuda.max_memory_allocated()) if cuda else None


def release_unused() -> None:
    """Hand back to the system what malloc and CUDA's allocator hold but do not use.

    The kernels configure malloc to keep what it has, for speed.
    """
    gc.collect()
    if cuda := _cuda():
        cuda.empty_cache()
    malloc_trim = libc_function("malloc_trim")  # of glibc
    if malloc_trim is not None:
        malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory, or the number of threads, is exhausted."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):  # torch.OutOfMemoryError is a RuntimeError
        message = str(error).lower()
        return any(phrase in message for phrase in OUT_OF_MEMORY_PHRASES)
    return isinstance(error, MemoryError)
