"""Atomic writing: a file is either complete or unchanged. Every result of a run is written in this way."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_serial = itertools.count()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, flush the file there to disk and rename it to `path`.

    The temporary file is in the same folder, so that renaming it is atomic, and keeps the suffix, by which
    some writers choose the format. When anything fails, including a full disk, the previous file stays and
    the temporary one is removed.

    Raises: OSError that names `path` and the cause; NotADirectoryError where a parent of `path` is a file.
    """
    path = Path(path)
    temp = path.with_name(f".{path.stem}.{os.getpid()}-{next(_serial)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        _flush(temp)
        os.replace(temp, path)
    except OSError as error:
        if isinstance(error, FileExistsError):  # raised by mkdir
            error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        kept = " (the previous file is kept)" if path.exists() else ""
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, f"could not write {path}: {reason}{kept}") from error
    finally:
        with suppress(NotADirectoryError):  # there is no such folder, so there is no such file
            temp.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the file's bytes are on the disk, the last moment at which a full disk can be noticed."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically (see `atomic_write`)."""
    with atomic_write(path) as temp:
        temp.write_text(text, encoding="utf-8", newline="\n")
