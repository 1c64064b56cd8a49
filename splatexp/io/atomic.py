"""Files that are either whole or not there: every result of a run is written through `replaced`."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_serial = itertools.count()


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, flush it to disk and let it take `path`'s place.

    The temporary file lies in the same folder (so that the replacement is one atomic rename) and keeps the
    suffix (so that writers which go by the suffix work). When anything fails, also a disk that fills up, the
    previous file survives and the temporary one is removed.

    Raises: OSError naming `path` and the cause: NotADirectoryError where a file is in the folder's place.
    """
    path = Path(path)
    temp = path.with_name(f".{path.stem}.{os.getpid()}-{next(_serial)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp
        _flush(temp)
        os.replace(temp, path)
    except OSError as error:
        if isinstance(error, FileExistsError):  # of mkdir
            error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        kept = " (the previous file is kept)" if path.exists() else ""
        why = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, f"could not write {path}: {why}{kept}") from error
    finally:
        with suppress(NotADirectoryError):  # there is no such folder, so there is no such file
            temp.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until the file's bytes are on the disk: the last moment at which a full disk can be noticed."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically (see `replaced`)."""
    with replaced(path) as temp:
        temp.write_text(text, encoding="utf-8", newline="\n")
