"""Readings of memory and processors from Linux: /proc, control groups (containers), the process's own limits.

Sizes are bytes. `limit_allocations` sets a limit on purpose, so that an allocation fails with an error, which
a run can answer with a checkpoint; where the limit of a container is exceeded the process is killed instead.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_previous_limit: list[
    tuple[int, int]
] = []  # RLIMIT_DATA before `limit_allocations`; empty: it is not in force
_mapped_unused = [0]  # bytes that are mapped but will hardly be used, as seen since `limit_allocations`


class MemoryGroup(NamedTuple):
    """A control group that limits the memory of this process."""

    folder: str
    limit: int


class AddressSpace(NamedTuple):
    """Parts of the address space of a process."""

    address_space: int
    resident: int
    shared: int  # of the resident part
    code: int
    library: int
    data: int


class _Mallinfo2(ctypes.Structure):
    """The result of glibc's mallinfo2: ten sizes, of which the free bytes in the heap are used here."""

    _fields_ = [(f"field{index}", ctypes.c_size_t) for index in range(8)]
    _fields_ += [("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t)]


def system_available(root: str = "") -> int | None:
    """Return the memory that the system has available, including caches that can be dropped; None if unknown.

    Args:
        root: the folder that holds /proc.
    """
    available = read_label(read_text(f"{root}/proc/meminfo"), "MemAvailable:")
    if available is not None:
        return 1024 * available
    try:
        import psutil
    except ImportError:
        return None
    return psutil.virtual_memory().available


def limits_available(want: int) -> list[int]:
    """Return what `ulimit -v` and `ulimit -d` leave, where they are set, after taking `want` bytes.

    What malloc holds but does not use is counted as available.
    """
    try:
        import resource
    except ImportError:
        return []
    data_limit = _previous_limit[0] if _previous_limit else resource.getrlimit(resource.RLIMIT_DATA)
    limits = {"address_space": resource.getrlimit(resource.RLIMIT_AS)[0], "data": data_limit[0]}
    limits = {name: limit for name, limit in limits.items() if limit != resource.RLIM_INFINITY}
    used = address_space() if limits else None
    if used is None:
        return []
    return [limit - getattr(used, name) + free_heap_bytes() - want for name, limit in limits.items()]


@lru_cache(maxsize=8)
def memory_groups(root: str, when: int) -> list[MemoryGroup]:
    """Return the control groups (version 2) of this process, inner ones first, that have a memory limit.

    Args:
        root: the folder that holds /proc and /sys.
        when: a result is cached for each value.
    """
    groups = []
    for line in read_text(f"{root}/proc/self/cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers:  # a hierarchy of version 1, which is not supported
            continue
        for folder in _group_folders(root, path):
            limit = read_number(f"{folder}/memory.max")
            if limit is not None:
                groups.append(MemoryGroup(folder, limit))
    return groups


def _group_folders(root: str, path: str) -> Iterator[str]:
    """Yield the folder of a group and those of all groups around it, as far as they are mounted."""
    for line in read_text(f"{root}/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[:1] != ["cgroup2"]:
            continue
        top, mount = left.split()[3:5]  # in a container the mount may start at its own group
        top = top.rstrip("/")
        below = path[len(top) :] if f"{path}/".startswith(f"{top}/") and ".." not in path else ""
        parts = [part for part in below.split("/") if part]
        for length in range(len(parts), -1, -1):
            yield "/".join([f"{root}{mount}", *parts[:length]])


def limit_allocations(available: int) -> None:
    """Let allocations fail once this process has taken `available` bytes more, by its soft limit on data.

    What malloc holds counts as taken even if it is not resident, because the kernel checks no limit when such
    a page is touched.
    """
    used = address_space()
    if used is None:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if not _previous_limit:
        _previous_limit.append((soft, hard))
        _mapped_unused[0] = 0
    private = used.resident - used.shared
    # stacks of threads and the like, which are far from full
    _mapped_unused[0] = max(_mapped_unused[0], used.data - private - free_heap_bytes())
    bounds = [private + _mapped_unused[0] + available, _previous_limit[0][0], hard]
    lowest = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (max(0, lowest), hard))


def remove_allocation_limit() -> None:
    """Put back the limit on data that was in force before `limit_allocations`."""
    if _previous_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, _previous_limit.pop())


def address_space() -> AddressSpace | None:
    """Return the parts of this process's address space; None where there is no /proc/self/statm."""
    words = read_text("/proc/self/statm").split()
    return AddressSpace(*(int(word) * PAGE for word in words[:6])) if words else None


def free_heap_bytes() -> int:
    """Return what malloc holds but does not use; 0 where it is unknown."""
    mallinfo2 = libc_function("mallinfo2")
    if mallinfo2 is None:
        return 0
    mallinfo2.restype = _Mallinfo2
    return mallinfo2().fordblks


def libc_function(name: str) -> Any:
    """Return a function of the C library; None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def cpu_count() -> int:
    """Return how many processors this process may use: those it is bound to, or the container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return count if quota is None else max(1, min(count, -int(-quota // 1)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many processors' time the control group grants; None where it is unlimited."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def read_text(path: str) -> str:
    """Return the contents of a small file, with few system calls; "" where it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return os.fsdecode(b"".join(parts))
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def read_number(path: str) -> int | None:
    """Return the number in a file; None where there is another word ("max"), or no file."""
    word = read_text(path).strip()
    return int(word) if word.isdecimal() else None


def read_label(lines: str, label: str) -> int | None:
    """Return the number after a label at the start of a line; None where there is no such line."""
    found = re.search(rf"^{label}\s+(\d+)", lines, re.MULTILINE)
    return int(found[1]) if found else None
