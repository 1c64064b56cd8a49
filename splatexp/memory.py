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
from typing import TYPE_CHECKING, Any

from splatexp.cgroups import groups, labelled, number, text
from splatexp.choices import check_range
from splatexp.limits import PAGE, fence, lift_fence, of_libc, of_process, of_system

if TYPE_CHECKING:
    import torch

# What training takes beyond its start: least squares over peaks of resident memory (CPU kernels, steps with
# edits of density control; 50,000 to 800,000 rows, 0.1 to 5 million pixels, SH degrees 0 to 4), 15 % off at
# most. Strategies that survey every view take up to a quarter more for a row.
NUMBER_BYTES = 23  # a parameter, its gradient, two moments and, for a while, the copy that an edit makes
ROW_BYTES = 280  # identity, statistics, projection, sorting and tile lists of a row
PIXEL_BYTES = 120  # picture, target, loss, their gradients, and what is listed in the tiles of a pixel
STAYING_NUMBER_BYTES, STAYING_ROW_BYTES = 12, 50  # of these, between steps
KEPT_BYTES = 3  # of a pixel of every picture of the data set

CAP, FACTOR = "densify.max_gaussians", "schedule.least_factor"  # what `shrink` may set
LEAST_ROWS, LEAST_SIDE = 1_000, 64  # fewer rows, and pictures with a shorter side (px), do not shrink
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


def step_takes(count: int, sh_degree: int, width: int, height: int) -> int:
    """Bytes that a step takes and frees again, about; what stays is parameters, moments and identity."""
    stays = count * (STAYING_ROW_BYTES + STAYING_NUMBER_BYTES * _numbers(sh_degree))
    return rows_take(count, sh_degree) - stays + pixels_take(width, height)


def rows_take(count: int, sh_degree: int) -> int:
    """Bytes that training takes for so many Gaussians, about."""
    return count * (ROW_BYTES + NUMBER_BYTES * _numbers(sh_degree))


def pixels_take(width: int, height: int) -> int:
    """Bytes that a step takes for a picture, about."""
    return width * height * PIXEL_BYTES


def advice(
    count: int, width: int, height: int, sh_degree: int, *, oom: str = "stop",
    factor: int = 1, pictures: int = 0, downscale: int = 1, device: torch.device | None = None,
) -> str:  # fmt: skip
    """One line: what is used and left, and which settings would have taken less, that which helps most first.

    Args:
        count: rows.
        width, height: px, of the pictures as they are drawn, which is reduced by `factor`.
        pictures: so many the data set keeps in memory.
        downscale: of the data, now; 0: it cannot be set.
        oom: what the run does.
        device: where it trains; None: on the CPU.
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
    used, left = _room(device)
    other = ", or oom=shrink" if oom != "shrink" else ""
    kept_too = f", {_size(kept)} for {pictures:,} pictures" if kept else ""
    return (
        f"{_size(used)} in use, {'unknown' if left is None else _size(left)} available; "
        f"about {_size(rows)} for {count:,} Gaussians of SH degree {sh_degree}, "
        f"{_size(pixels)} for a step at {width}x{height}{kept_too}; what helps: {named}{other}"
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


def _room(device: torch.device | None) -> tuple[int, int | None]:
    """Bytes in use and available, of a device or else of this process."""
    from splatexp.devices import room

    return (device and room(device)) or (in_use(), available())


def _numbers(sh_degree: int) -> int:
    """Numbers that are the parameters of a row."""
    return 11 + 3 * (sh_degree + 1) ** 2


def _round(count: int) -> int:
    """Down to two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return max(1, count // unit * unit)


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
