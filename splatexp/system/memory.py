"""How much memory there is and was, when it has run out, and what would have taken less.

Sizes are bytes. Linux answers everything; elsewhere limits of processes and containers are not looked for.
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
from splatexp.system.cgroups import groups, labelled, number, text
from splatexp.system.linux_memory import PAGE, fence, lift_fence, of_libc, of_process, of_system

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
SPENT = (  # in what torch, the C++ library and Python say as RuntimeError or ImportError
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("std::bad_alloc", "bad allocation", "alloc_failed"),
    *("can't start new thread", "resource temporarily unavailable"),
)


@dataclass
class Memory:
    """What the run leaves free, and how CUDA's allocator works."""

    reserve_mb: int = 256  # less than this available counts as out of memory; 0: do not look
    expandable_segments: bool = True  # of CUDA's allocator: fewer gaps while the number of rows changes

    def __post_init__(self) -> None:
        check_range("memory.reserve_mb", self.reserve_mb, 0)

    @property
    def reserve(self) -> int:
        """Bytes."""
        return self.reserve_mb << 20

    def settle(self) -> None:
        """Tell CUDA's allocator, without starting CUDA; what the environment says of it is left alone."""
        import torch

        if sys.platform != "linux" or not torch.backends.cuda.is_built():
            return
        chosen = next(filter(None, map(os.environ.get, ALLOCATOR)), "")
        if "expandable_segments" in chosen:
            return
        settings = f"{chosen}{',' * bool(chosen)}expandable_segments:{self.expandable_segments}"
        newer = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # neither touches a device
        (newer or torch.cuda.memory._set_allocator_settings)(settings)


@dataclass
class Watch:
    """Looks now and then whether memory is about to run out.

    Between two looks too much is refused where it would end the process; see `limits.fence`.
    """

    reserve: int  # bytes that are to stay available; 0: it does not look
    pause: float = 0.2  # seconds between two looks
    _next: float = field(default=0.0, init=False)
    _looked: bool = field(default=False, init=False)

    def __call__(self, want: int = 0) -> int | None:
        """What would be left during the next step where that is less than the reserve; None else.

        Where it seems to be, what is held but free is handed back before it counts: it may be left from
        loading or from an evaluation. Where the first look finds little, half of it is the reserve.

        Args:
            want: bytes that a step takes and frees, such as `step_takes` says.
        """
        if not self.reserve or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self.pause
        left = available(want)
        if left is not None and not self._looked:
            self.reserve, self._looked = min(self.reserve, left // 2), True
        if left is not None and left < self.reserve:
            release()
            left = max(0, (available() or 0) - want)
            self._next += 9 * self.pause  # pages that were handed back cost time when they are wanted again
        outside = _outside("")
        if outside is not None and not _cuda():  # CUDA maps what it never touches
            fence(outside - self.reserve // 2)
        return left if left is not None and left < self.reserve else None

    def lift(self) -> None:
        """Nothing is refused any more, and what is held but free is handed back: others may want it now."""
        release()
        lift_fence()


def available(want: int = 0, root: str = "") -> int | None:
    """What this process may still take: the least that the system, control groups and its own limits leave.

    The process holds what it has freed (see `release`). Of a group's limit and of the system's memory that is
    taken; of its own limits (`ulimit -v`) it is free again, but for what the next step will take.

    Args:
        want: bytes that a step takes and frees, such as `step_takes` says.
        root: where /proc and /sys lie.

    Returns: None where nobody tells.
    """
    rooms = [room for room in (_outside(root), *of_process(want)) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _outside(root: str) -> int | None:
    """What the system and control groups leave: more, and the process is killed."""
    least = of_system(root)
    for group in groups(root, int(time.monotonic()) // 10):
        room = group.limit - (number(f"{group.folder}/{group.usage}") or 0)
        if least is None or room < least:  # only then does it matter what of it is cache that can go
            room += labelled(text(f"{group.folder}/memory.stat"), group.cache) or 0
            least = room if least is None else min(least, room)
    return least


def _cuda() -> Any:
    """torch.cuda while it is in use; None else."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def in_use() -> int:
    """Resident memory of this process."""
    pages = text("/proc/self/statm").split()
    if pages:
        return int(pages[1]) * PAGE
    import psutil

    return psutil.Process().memory_info().rss


def peak() -> int | None:
    """Peak resident memory since `forget_peak`; None where the system does not tell."""
    status = labelled(text("/proc/self/status"), "VmHWM:")  # ru_maxrss would count who started this process
    if status is not None:
        return 1024 * status
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Start the counts of peaks afresh (Linux, CUDA): a sweep runs many runs in one process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def device() -> tuple[int, int] | None:
    """CUDA's allocated bytes and their peak; None while CUDA is not in use."""
    cuda = _cuda()
    return (cuda.memory_allocated(), cuda.max_memory_allocated()) if cuda else None


def release() -> None:
    """Hand back what is held but free, of malloc (the kernels have it keep all it ever had) and of CUDA."""
    gc.collect()
    if cuda := _cuda():
        cuda.empty_cache()
    trim = of_libc("malloc_trim")  # glibc's
    if trim is not None:
        trim(0)


def is_out(error: BaseException) -> bool:
    """Whether an exception says that memory, or room for a thread, has run out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (RuntimeError, ImportError)):  # torch.OutOfMemoryError is a RuntimeError
        said = str(error).lower()
        return any(words in said for words in SPENT)
    return isinstance(error, MemoryError)
