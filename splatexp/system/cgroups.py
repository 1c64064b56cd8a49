"""What the kernel says of this process: files under /proc and /sys, control groups and what they grant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

UNLIMITED = 1 << 60  # version 1 of control groups writes a huge number where there is no limit


class Group(NamedTuple):
    """A control group that bounds this process."""

    folder: str
    limit: int
    usage: str  # the file that says what is used
    cache: str  # what memory.stat calls cache that has not been touched lately


@lru_cache(maxsize=8)
def groups(root: str, when: int) -> list[Group]:
    """The groups of this process, and those around them, that have a limit; `when` says how fresh."""
    found = []
    for line in text(f"{root}/proc/self/cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if "memory" in controllers.split(","):
            kind, names = "cgroup", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            kind, names = "cgroup2", ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        for folder in _levels(root, kind, path):
            limit = number(f"{folder}/{names[0]}")
            if limit is not None and limit < UNLIMITED:
                found.append(Group(folder, limit, *names[1:]))
    return found


def _levels(root: str, kind: str, path: str) -> Iterator[str]:
    """Folders of a group and of all around it, as far as they are mounted."""
    for line in text(f"{root}/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[:1] != [kind] or (kind == "cgroup" and "memory" not in right.split()[-1].split(",")):
            continue
        top, mount = left.split()[3:5]  # a container's mount may begin at its own group
        top = top.rstrip("/")
        below = path[len(top) :] if f"{path}/".startswith(f"{top}/") and ".." not in path else ""
        parts = [part for part in below.split("/") if part]
        for length in range(len(parts), -1, -1):
            yield "/".join([f"{root}{mount}", *parts[:length]])


def processor_share(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors' worth of time that the control group (version 2 or 1) grants; None: no limit."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((root / "cpu" / name).read_text().strip() for name in names)
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None


def processors() -> int:
    """Processors that this process may use: those it is bound to, or a container's share if less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = processor_share()
    return count if share is None else max(1, min(count, -int(-share // 1)))


def text(path: str) -> str:
    """A small file, read with few system calls; "" where it cannot be."""
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


def number(path: str) -> int | None:
    """The number that a file holds; None for another word, or no file."""
    word = text(path).strip()
    return int(word) if word.isdecimal() else None


def labelled(lines: str, label: str) -> int | None:
    """The number after a label that begins a line; None without."""
    found = re.search(rf"^{label}\s+(\d+)", lines, re.MULTILINE)
    return int(found[1]) if found else None
