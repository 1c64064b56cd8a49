"""Processes for what may crash or hang, such as the import of a broken package."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = {"WANDB_ERROR_REPORTING": "false", "IMAGEIO_NO_INTERNET": "1"}  # send no reports, download nothing
_running: set[subprocess.Popen[bytes]] = set()
_places: list[Path] = []
_lock = threading.Lock()
_serial = itertools.count()


@dataclass
class ProbeResult:
    """The output of a process, and the reason why it failed, which is "" for success."""

    text: str = ""
    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def run_command(command: Sequence[str], seconds: float, given: str = "", **settings: str) -> ProbeResult:
    """Run a command until it ends or its time is up; the processes that it has started end with it.

    given: text for its standard input. settings: additional environment variables.
    """
    environment = os.environ | QUIET | {"TMPDIR": str(temp_folder())} | settings
    # files instead of pipes need no reader, and a grandchild that keeps one open blocks nobody
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(given.encode())
        source.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=source, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        except OSError as error:
            return ProbeResult(failure=error.strerror or str(error))
        _running.add(process)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return ProbeResult(failure=f"no answer in {seconds:g} s")
        finally:
            _end(process)
        said, complaint = (_text(file) for file in (out, err))
    return ProbeResult(said, _failure(status, complaint or said) if status else "")


def run_probe(name: str, seconds: float) -> ProbeResult:
    """Run a function of `splatexp.doctor.probes` in a new Python; `facts` is what it reported."""
    path = temp_folder() / f"facts-{next(_serial)}"
    answer = run_command([sys.executable, "-m", "splatexp.doctor.probes", name, str(path)], seconds)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):  # the last line may be incomplete
            answer.facts |= json.loads(line)
    answer.failure = answer.facts.pop("failure", answer.failure)
    return answer


def temp_folder() -> Path:
    """Return a folder for files of the processes, which `kill_all` removes."""
    with _lock:
        if not _places:
            _places.append(Path(tempfile.mkdtemp(prefix="splatexp-doctor-")))
            atexit.register(kill_all)
        return _places[0]


def kill_all() -> None:
    """Kill every process that still runs, and remove the files of all of them."""
    for process in list(_running):
        _end(process)
    with _lock:
        while _places:
            shutil.rmtree(_places.pop(), ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that waits for a dead disk or driver cannot end
        process.wait(1)
    _running.discard(process)


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip()


def _failure(status: int, complaint: str) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {status}"
