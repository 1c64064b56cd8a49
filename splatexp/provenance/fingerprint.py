"""Fingerprints of files and folders from names, sizes and times, without reading the files."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any

OUTPUT_FOLDER = "multirun"  # does not count: runs may be written into the folder of the data


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a hash of names, sizes and times of all files in a folder but hidden ones, or of one file."""
    digest = hashlib.sha256()
    top = os.fspath(path)
    if os.path.isfile(top):
        _add(digest, "", top)
    seen = set()
    for folder, below, names in os.walk(top, followlinks=True):
        seen.add(os.path.realpath(folder))
        below[:] = sorted(
            name
            for name in below
            if name[0] != "."
            and name != OUTPUT_FOLDER
            and os.path.realpath(os.path.join(folder, name)) not in seen
        )
        for name in sorted(name for name in names if name[0] != "."):
            _add(digest, os.path.relpath(os.path.join(folder, name), top), os.path.join(folder, name))
    return digest.hexdigest()[:16]


def _add(digest: Any, name: str, path: str) -> None:
    with suppress(OSError):  # a dangling link
        status = os.stat(path)
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
