"""The job cache of sweeps and studies: where each job was started, so that no job is run twice.

The cache is a folder with a small file `<job id>.json` per job, which names the folder of the job's run.
Whether the job is finished there is read from that folder itself.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from splatexp.io.atomic import write_text

if TYPE_CHECKING:
    pass

JOB_FILE = "job.json"  # in a job's folder: the identity of the job, and its status
RETRY_SECONDS = 0.2  # between two attempts to lock a job that another process runs
MAX_TRIES = 100  # to open a lock file in a folder that other processes may remove


@dataclass(frozen=True)
class JobCache:
    """A folder that records in which folder each job was started.

    Any number of processes may use it at once.
    """

    folder: Path

    @contextmanager
    def lock(self, job: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of a job while the context lasts.

        While another process holds it, this one waits, after it has called `on_wait` once. The operating
        system releases the lock of a process that ends, however it ends.
        """
        path = self.folder / f"{job}.lock"
        file = _open_locked(path, on_wait)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                self.folder.rmdir()  # leave no empty folder behind where the job was refused
                self.folder.parent.rmdir()
            file.close()

    def folder_of(self, job: str) -> Path | None:
        """Return the folder in which a job was started last, or None where none is recorded."""
        try:
            folder = json.loads((self.folder / f"{job}.json").read_text(encoding="utf-8"))["folder"]
            return Path(os.path.normpath(self.folder / folder))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record(self, job: str, folder: Path) -> None:
        """Record that a job is started in `folder`.

        Raises: OSError.
        """
        relative = os.path.relpath(folder, self.folder)  # cache and runs can be moved together
        write_text(self.folder / f"{job}.json", json.dumps({"folder": relative}) + "\n")


def _open_locked(path: Path, on_wait: Callable[[], None]) -> IO[str]:
    """Open the file at `path` and lock it.

    The holder of a lock removes the file before it releases the lock, so a lock counts only if the file that
    was locked is still the one at `path`.
    """
    import fcntl

    waiting = False
    tries = 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a", encoding="utf-8")
        except (FileNotFoundError, FileExistsError):  # another process has just removed the folder
            tries += 1
            if tries > MAX_TRIES:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(file, path):
                return file
        except BlockingIOError:
            if not waiting:
                on_wait()
            waiting = True
            time.sleep(RETRY_SECONDS)
        except OSError as error:
            warnings.warn(
                f"{path.parent}: the file system has no locks ({error.strerror}); a job may be run twice",
                stacklevel=3,
            )
            return file
        file.close()


def _is_same_file(file: IO[str], path: Path) -> bool:
    """Return whether an open file is still the one at `path`."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def read_job_record(folder: Path) -> dict[str, Any]:
    """Return the contents of job.json in a job's folder, or {} where there is none that can be read."""
    try:
        record = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def read_job_result(folder: Path | None, job: str) -> dict[str, Any] | None:
    """Return the contents of metrics.json if the job is finished in `folder`, otherwise None."""
    if folder is None or read_job_record(folder).get("id") != job:
        return None
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return result if isinstance(result, dict) else None
    except (OSError, ValueError):
        return None
