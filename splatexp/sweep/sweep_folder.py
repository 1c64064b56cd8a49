"""The folder of a sweep.

sweep.json        the sweep: its overrides, the process that drives it, whether it has been stopped
<job>/job.json    the record of a job: its overrides, process, status, objective and the folder of its run
sweep.csv         all jobs, when the sweep has ended
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from splatexp.io.atomic import atomic_write, write_text
from splatexp.sweep.cache import JOB_FILE, read_job_record

SWEEP_FILE = "sweep.json"
CSV_FILE = "sweep.csv"
SUCCESSFUL = {"done", "cached"}  # states in which a job has a result: of this sweep, or of an earlier run
STOP_TIMEOUT = 60.0  # seconds that running jobs have for saving their state when a sweep is stopped
OLD_KEYS = {  # of sweep.json in version 0.1
    "words": "overrides",
    "varied": "swept_keys",
    "jobs": "num_jobs",
    "at_once": "max_parallel",
    "ended": "finished",
    "token": "session",
}


@dataclass
class Sweep:
    """The description of a sweep, which each of its jobs reads."""

    folder: Path
    overrides: list[str]  # as given, without those of Hydra itself and without `force`
    swept_keys: list[str]  # keys with several values
    num_jobs: int | None = None  # None: not known beforehand
    max_parallel: int = 1  # largest number of jobs that are started together
    stopped: bool = False
    finished: bool = False
    session: str = field(default_factory=lambda: uuid4().hex)  # tells job records of this sweep from others
    pid: int = field(default_factory=os.getpid)  # of the process that drives the sweep
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Return the sweep that runs, or ran last, in `folder`.

        Raises: OSError, ValueError.
        """
        values = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{folder / SWEEP_FILE}: expected an object, got {type(values).__name__}")
        values = {OLD_KEYS.get(name, name): value for name, value in values.items()}
        if unknown := sorted(set(values) - set(cls.__dataclass_fields__)):
            raise ValueError(f"{folder / SWEEP_FILE}: expected the keys of a sweep, got {unknown[0]}")
        return cls(folder=folder, **values)

    def write(self) -> None:
        """Write sweep.json.

        Raises: OSError.
        """
        values = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_text(self.folder / SWEEP_FILE, json.dumps(values, indent=1) + "\n")

    @property
    def name(self) -> str:
        """The path of the folder below multirun/, otherwise the folder's own name."""
        parts = self.folder.absolute().parts
        if "multirun" in parts:
            below = parts[len(parts) - parts[::-1].index("multirun") :]
            if below:
                return "/".join(below)
        return parts[-1]

    @property
    def is_driver(self) -> bool:
        """Return whether this process drives the sweep."""
        return self.pid == os.getpid() and self.is_this_host

    @property
    def is_this_host(self) -> bool:
        """Return whether the process that drives the sweep is on this machine."""
        return self.host == socket.gethostname()

    def describe(self, overrides: Sequence[str], exclude: Sequence[str] = ()) -> str:
        """Return those of a job's overrides that tell it from the other jobs, without the keys `exclude`."""
        values = _by_key(overrides)
        return " ".join(
            f"{key}={values[key]}" for key in self.swept_keys if key in values and key not in exclude
        )

    def update_job_record(self, folder: Path, /, **values: Any) -> None:
        """Update job.json in a job's folder.

        What another sweep wrote there is dropped, except for the identity of the run in the folder.
        """
        record = read_job_record(folder)
        if record.get("sweep") != self.session:
            record = {name: record[name] for name in ("id",) if name in record} | {"sweep": self.session}
        write_text(folder / JOB_FILE, json.dumps(record | values, indent=1, default=str) + "\n")

    def job_records(self) -> list[dict[str, Any]]:
        """Return the records of the sweep's jobs by number; `at` is the folder in which a record lies."""
        records = []
        for folder, subfolders, names in os.walk(self.folder):
            subfolders[:] = [name for name in subfolders if name[0] != "." and JOB_FILE not in names]
            record = read_job_record(Path(folder)) if JOB_FILE in names else {}
            if record.get("sweep") == self.session:
                records.append(record | {"at": folder})
        return sorted(records, key=lambda record: record["job"])

    def stop(self) -> None:
        """Start no more jobs; ask those in other processes of this machine to save their state, and wait."""
        self.stopped = True
        with suppress(OSError):
            self.write()
        asked: set[int] = set()
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            running = {
                record["pid"]
                for record in self.job_records()
                if record["status"] == "running" and record["host"] == self.host and record["pid"] != self.pid
            }
            running = {pid for pid in running if process_exists(pid)}
            for pid in running - asked:
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            asked |= running
            if not running:
                return
            time.sleep(0.1)


def process_exists(pid: int) -> bool:
    """Return whether there is a process with this number."""
    try:
        os.kill(pid, 0)
        return True
    except OSError:
        return False


def format_table(records: Sequence[Mapping[str, Any]], sweep: Sweep, front: Sequence[int] = ()) -> str:
    """Format the jobs as lines of text; those on the Pareto front, whose numbers are `front`, get a star."""
    names = _objective_names(records)
    rows = [["job", *sweep.swept_keys, *names, "seconds", "status", "folder"]]
    for record in records:
        values = _by_key(record["overrides"])
        objective = record.get("objective") or {}
        rows.append(
            [
                f"{record['job']}{'*' if record['job'] in front else ''}",
                *(_shorten(values.get(key, "")) for key in sweep.swept_keys),
                *(_format_number(objective.get(name)) for name in names),
                f"{record.get('seconds', 0):.1f}",
                record["status"],
                _short_path(record.get("folder", record["at"])),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def write_csv(records: Sequence[Mapping[str, Any]], sweep: Sweep, front: Sequence[int] | None) -> Path:
    """Write sweep.csv, with a row for each job and a column for each swept key and objective.

    front: numbers of the jobs on the Pareto front; None leaves out the column.
    Raises: OSError.
    """
    names = _objective_names(records)
    path = sweep.folder / CSV_FILE
    with atomic_write(path) as temp, open(temp, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        on_front = [] if front is None else ["pareto_optimal"]
        last = ["seconds", "status", "folder", "error", "overrides"]
        writer.writerow(["job", *sweep.swept_keys, *names, *on_front, *last])
        for record in records:
            values = _by_key(record["overrides"])
            objective = record.get("objective") or {}
            writer.writerow(
                [
                    record["job"],
                    *(values.get(key, "") for key in sweep.swept_keys),
                    *(objective.get(name, "") for name in names),
                    *([] if front is None else [record["job"] in front]),
                    record.get("seconds"),
                    record["status"],
                    record.get("folder", record["at"]),
                    record.get("error", ""),
                    " ".join(record["overrides"]),
                ]
            )
    return path


def _objective_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.get("objective") or ()))


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of overrides by their keys."""
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def _format_number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _shorten(value: str) -> str:
    """Return the value of an override as it was given, but a long number with five digits."""
    try:
        return f"{float(value):.5g}" if len(value) > 8 else value
    except ValueError:
        return value


def _short_path(folder: str) -> str:
    """Return a folder relative to the current one, if that is shorter."""
    return min(folder, os.path.relpath(folder), key=len)
