"""What sweeps remember: which jobs were begun, and where. So one is run once, whoever asks for it."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from splatexp.io.atomic import write_text
from splatexp.provenance.fingerprint import fingerprint
from splatexp.provenance.identity import run_id
from splatexp.settings.serialize import settings
from splatexp.train.recipe import RECIPE

if TYPE_CHECKING:
    from splatexp.run.run import Run

CARD = "job.json"  # in a job's folder: which job it is, and how it went
TIMED = {"train_seconds", "wall_seconds", "peak_memory_bytes"}  # objectives that threads have a say in
PAUSE = 0.2  # seconds between two looks at a job that another process has
TRIES = 100  # to open a file in a folder that others may remove


def job_id(run: Run, varied: Collection[str] = ()) -> str:
    """Return the identity of a job: 16 hex digits; a job need not be run where one of equal identity is done.

    It follows from what the identity of a run follows from, but no data are read: a folder or file that a
    setting names counts by the names, sizes and times of what is in it. Besides, it follows from what is
    measured and drawn (`evaluate`), from a checkpoint to start from, and from the number of threads where
    seconds or memory are the objective.

    Args:
        varied: keys that a sweep varies: they count even if they cannot change a number of the result.
    """
    outside = {each.name for each in fields(run) if each.metadata.get("in_job_id", True)} - set(RECIPE)
    told = {key.lstrip("+~").partition(".")[0] for key in varied} & outside
    extra = {
        "evaluate": settings(run.evaluate) | {"lpips_weights": ""},
        "resume": run.resume if run.resume != "auto" else "",
        "threads": run.threads if TIMED & set(run.objectives) else 0,
        "varied": {key: settings(getattr(run, key)) for key in sorted(told)},
        "files": dict(_files(run)),
    }
    return run_id(run.config(), "", json.dumps(extra, sort_keys=True, default=str))


def _files(part: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The settings that name a file or folder, each with the fingerprint of what is there."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.metadata.get("unit") == "path" and value and at + field.name != "ledger":
            yield at + field.name, fingerprint(value)
        for name, each in (value if isinstance(value, dict) else {"": value}).items():
            if is_dataclass(each):
                yield from _files(each, f"{at}{field.name}.{name}.")


@dataclass(frozen=True)
class Ledger:
    """A folder with a small file for each job that says where it was begun; there one sees if it is done."""

    folder: Path

    @contextmanager
    def turn(self, job: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Have a job to oneself. While another process has it, `waits` is called once, and then waited.

        The system takes it back from a process that ends, in whatever way.
        """
        path = self.folder / f"{job}.lock"
        file = _locked(path, waits)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                self.folder.rmdir()  # nothing is left of a job that was refused
                self.folder.parent.rmdir()
            file.close()

    def place(self, job: str) -> Path | None:
        """Where it was begun last; None where that is not known."""
        try:
            said = json.loads((self.folder / f"{job}.json").read_text(encoding="utf-8"))["folder"]
            return Path(os.path.normpath(self.folder / said))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, job: str, folder: Path) -> None:
        """It is begun in `folder`.  Raises: OSError."""
        where = os.path.relpath(folder, self.folder)  # so that all can be moved together
        write_text(self.folder / f"{job}.json", json.dumps({"folder": where}) + "\n")


def _locked(path: Path, waits: Callable[[], None]) -> IO[str]:
    """The file at `path`, open and locked; who lets go of it removes it, so that none is left behind."""
    import fcntl

    asked, tries = False, 0
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a", encoding="utf-8")
        except (FileNotFoundError, FileExistsError):  # the folder was removed that very moment
            if (tries := tries + 1) > TRIES:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(file, path):
                return file
        except BlockingIOError:
            if not asked:
                waits()
            asked = True
            time.sleep(PAUSE)
        except OSError as error:  # a file system that has no locks
            warnings.warn(
                f"{path.parent}: no locks there ({error.strerror}); jobs may be run twice", stacklevel=3
            )
            return file
        file.close()


def _same(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    with suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def read_card(folder: Path) -> dict[str, Any]:
    """What the card in a job's folder says; {} where there is none that can be read."""
    try:
        said = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    except (OSError, ValueError):
        return {}


def result_of(folder: Path | None, job: str) -> dict[str, Any] | None:
    """What a job's metrics.json holds, if it is finished in `folder`; None else."""
    if folder is None or read_card(folder).get("id") != job:
        return None
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return result if isinstance(result, dict) else None
    except (OSError, ValueError):
        return None
