"""How much memory there is and was, when it has run out, and what would have taken less.

Sizes are bytes. Linux answers everything; elsewhere limits of processes and containers are not looked for.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splatexp.cgroups import groups, labelled, number, text
from splatexp.choices import check_range

# What training takes beyond its start: least squares over peaks of resident memory (CPU kernels, steps with
# edits of density control; 50,000 to 800,000 rows, 0.1 to 5 million pixels, SH degrees 0 to 4), 15 % off at
# most. Strategies that survey every view take up to a quarter more for a row.
NUMBER_BYTES = 23  # a parameter, its gradient, two moments and, for a while, the copy that an edit makes
ROW_BYTES = 280  # identity, statistics, projection, sorting and tile lists of a row
PIXEL_BYTES = 120  # picture, target, loss, their gradients, and what is listed in the tiles of a pixel
KEPT_BYTES = 3  # of a pixel of every picture of the data set

CAP, FACTOR = "densify.max_gaussians", "schedule.least_factor"  # what `shrink` may set
LEAST_ROWS, LEAST_SIDE = 1_000, 64  # fewer rows, and pictures with a shorter side (px), do not shrink
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
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
    """Looks now and then whether memory is about to run out."""

    reserve: int  # bytes that are to stay available; 0: it does not look
    pause: float = 0.2  # seconds between two looks
    _next: float = field(default=0.0, init=False)
    _short: bool = field(default=False, init=False)

    def __call__(self) -> int | None:
        """What is available where the second look in a row finds less than the reserve; None else.

        After the first one what is held but free is handed back, as it may be left from loading or from an
        evaluation and nothing that the steps between the two looks want again.
        """
        if not self.reserve or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self.pause
        left = available()
        before, self._short = self._short, left is not None and left < self.reserve
        if self._short and not before:
            release()
        return left if self._short and before else None


def available(root: str = "") -> int | None:
    """What this process may still take: the least that the system, control groups and its own limits leave.

    What the process holds and does not use (see `release`) counts where its own limits are concerned, as more
    than they allow is an error that can be caught. The others end the process: there it counts as taken, as
    the next step will want it again.

    Args:
        root: where /proc and /sys lie.

    Returns: None where nobody tells.
    """
    least = min((room for room in (_of_system(root), *_of_process()) if room is not None), default=None)
    for group in groups(root, int(time.monotonic()) // 10):
        room = group.limit - (number(f"{group.folder}/{group.usage}") or 0)
        if least is None or room < least:  # only then does it matter what of it is cache that can go
            room += labelled(text(f"{group.folder}/memory.stat"), group.cache) or 0
            least = room if least is None else min(least, room)
    return None if least is None else max(0, least)


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
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def device() -> tuple[int, int] | None:
    """CUDA's allocated bytes and their peak; None while CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def release() -> None:
    """Hand back what is held but free, of malloc (the kernels have it keep all it ever had) and of CUDA."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = _of_libc("malloc_trim")  # glibc's
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


def rows_take(count: int, sh_degree: int) -> int:
    """Bytes that training takes for so many Gaussians, about."""
    return count * (ROW_BYTES + NUMBER_BYTES * (11 + 3 * (sh_degree + 1) ** 2))


def pixels_take(width: int, height: int) -> int:
    """Bytes that a step takes for a picture, about."""
    return width * height * PIXEL_BYTES


def advice(
    count: int, width: int, height: int, sh_degree: int,
    *, factor: int = 1, pictures: int = 0, downscale: int = 1,
) -> str:  # fmt: skip
    """One line: what is used and left, and which settings would have taken less, that which helps most first.

    Args:
        count: rows.
        width, height: px, of the pictures as they are drawn, which is reduced by `factor`.
        pictures: so many the data set keeps in memory.
        downscale: of the data, now; 0: it cannot be set.
    """
    rows, pixels = rows_take(count, sh_degree), pixels_take(width, height)
    kept = pictures * width * height * factor**2 * KEPT_BYTES
    fewer = _round(count * 3 // 4)
    saved = {f"{CAP}={fewer:_}": rows - rows_take(fewer, sh_degree)}
    if sh_degree:
        saved[f"model.sh_degree={sh_degree - 1}"] = rows - rows_take(count, sh_degree - 1)
    if downscale:
        saved[f"data.downscale={2 * downscale}"] = (pixels + kept) * 3 // 4
    saved[f"{FACTOR}={2 * factor}"] = pixels * 3 // 4
    most = max(saved.values())
    helps = sorted((name for name in saved if saved[name] * 20 >= most), key=lambda name: -saved[name])
    named = ", ".join(f"{name} ({_size(saved[name])} less)" for name in helps)
    left = available()
    kept_too = f", {_size(kept)} for {pictures:,} pictures" if kept else ""
    return (
        f"{_size(in_use())} in use, {'unknown' if left is None else _size(left)} available; "
        f"about {_size(rows)} for {count:,} Gaussians of SH degree {sh_degree}, "
        f"{_size(pixels)} for a step at {width}x{height}{kept_too}; what helps: {named}, or oom=shrink"
    )


def shrink(
    count: int, width: int, height: int, factor: int = 1, sh_degree: int = 3
) -> tuple[str, int] | None:
    """What to go on with after memory has run out: a setting, CAP or FACTOR, and its new value.

    Rows go to three quarters of what there are, or pictures to half their size, whichever take more; or the
    other, where those are few or small already.

    Args:
        count, width, height, factor: as for `advice`.

    Returns: None where neither can shrink.
    """
    ways = []
    if count >= LEAST_ROWS:
        ways.append((rows_take(count, sh_degree), CAP, count * 3 // 4))
    if min(width, height) >= LEAST_SIDE:
        ways.append((pixels_take(width, height), FACTOR, 2 * factor))
    return max(ways)[1:] if ways else None


def _of_system(root: str) -> int | None:
    """What is free, caches that can go included."""
    free = labelled(text(f"{root}/proc/meminfo"), "MemAvailable:")
    if free is not None:
        return 1024 * free
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


def _of_process() -> list[int]:
    """What `ulimit -v` and `ulimit -d` leave, where they are set."""
    try:
        import resource
    except ImportError:
        return []
    kinds = ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))  # with their columns of statm
    limits = {column: resource.getrlimit(kind)[0] for kind, column in kinds}
    limits = {column: limit for column, limit in limits.items() if limit != resource.RLIM_INFINITY}
    pages = text("/proc/self/statm").split() if limits else []
    return [limit - int(pages[column]) * PAGE + _idle() for column, limit in limits.items() if pages]


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 tells."""

    _fields_ = [(f"field{place}", ctypes.c_size_t) for place in range(8)]
    _fields_ += [("idle", ctypes.c_size_t), ("top", ctypes.c_size_t)]


def _idle() -> int:
    """What malloc holds and nobody uses; 0 where it does not tell."""
    tell = _of_libc("mallinfo2")
    if tell is None:
        return 0
    tell.restype = _Heap
    return tell().idle


def _of_libc(name: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _round(count: int) -> int:
    """Down to two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return max(1, count // unit * unit)


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
