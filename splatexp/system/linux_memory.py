"""What the system and limits of the process itself (ulimit) leave of memory, bytes; one to set on purpose."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, NamedTuple

from splatexp.system.cgroups import labelled, text

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_before: list[tuple[int, int]] = []  # the limits on data while there is a fence, and
_untouched = [0]  # bytes that are mapped and will hardly be used


def of_system(root: str) -> int | None:
    """What is free, caches that can go included."""
    free = labelled(text(f"{root}/proc/meminfo"), "MemAvailable:")
    if free is not None:
        return 1024 * free
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


def of_process(want: int) -> list[int]:
    """What `ulimit -v` and `ulimit -d` leave, where they are set, once `want` bytes have been taken.

    What malloc holds and nobody uses can be taken without asking.
    """
    try:
        import resource
    except ImportError:
        return []
    own = {"address_space": resource.getrlimit(resource.RLIMIT_AS)[0]}
    own["data"] = (_before or [resource.getrlimit(resource.RLIMIT_DATA)])[0][0]
    own = {name: limit for name, limit in own.items() if limit != resource.RLIM_INFINITY}
    pages = _pages() if own else None
    return [limit - getattr(pages, name) + idle() - want for name, limit in own.items() if pages]


def fence(left: int) -> None:
    """Have allocations fail once this process has taken `left` bytes more, by its soft limit on data (Linux).

    An error can be caught; where a control group's limit or the system's memory is exceeded the process is
    killed. What malloc holds counts as taken even if it is not resident: nobody is asked when it is touched.
    """
    pages = _pages()
    if pages is None:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not _before:
        _before.append((soft, hard))
        _untouched[:] = [0]
    private = pages.resident - pages.shared
    _untouched[0] = max(_untouched[0], pages.data - private - idle())  # stacks and the like, far from full
    bounds = [private + _untouched[0] + left, _before[0][0], hard]
    least = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (max(0, least), hard))


def lift_fence() -> None:
    """The limit that was there before."""
    if _before:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, _before.pop())


class _Pages(NamedTuple):
    """Parts of the address space, bytes."""

    address_space: int
    resident: int
    shared: int  # of the resident
    code: int
    library: int
    data: int


def _pages() -> _Pages | None:
    """Of this process; None where Linux does not tell."""
    words = text("/proc/self/statm").split()
    return _Pages(*(int(word) * PAGE for word in words[:6])) if words else None


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 tells."""

    _fields_ = [(f"field{place}", ctypes.c_size_t) for place in range(8)]
    _fields_ += [("idle", ctypes.c_size_t), ("top", ctypes.c_size_t)]


def idle() -> int:
    """What malloc holds and nobody uses; 0 where it does not tell."""
    tell = of_libc("mallinfo2")
    if tell is None:
        return 0
    tell.restype = _Heap
    return tell().idle


def of_libc(name: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
