"""Processes of their own for what may crash or hang: an import of a broken wheel takes only itself along."""

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

QUIET = {"WANDB_ERROR_REPORTING": "false", "IMAGEIO_NO_INTERNET": "1"}  # nobody calls home
_running: set[subprocess.Popen[bytes]] = set()
_places: list[Path] = []
_lock = threading.Lock()
_serial = itertools.count()


@dataclass
class Answer:
    """What a process said, and in one line why it failed, "" if it did not."""

    text: str = ""
    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def ask(command: Sequence[str], seconds: float, given: str = "", **settings: str) -> Answer:
    """Run a command to its end or its limit; whatever it has started ends with it.

    given: its standard input. settings: further environment variables.
    """
    environment = os.environ | QUIET | {"TMPDIR": str(place())} | settings
    # files, not pipes: nobody has to read them, nor wait for a grandchild that keeps one open
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(given.encode())
        source.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=source, stdout=out, stderr=err, env=environment, start_new_session=True
            )
        except OSError as error:
            return Answer(failure=error.strerror or str(error))
        _running.add(process)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Answer(failure=f"no answer in {seconds:g} s")
        finally:
            _end(process)
        said, complaint = (_text(file) for file in (out, err))
    return Answer(said, _failure(status, complaint or said) if status else "")


def probe(name: str, seconds: float) -> Answer:
    """Run a function of `splatexp.doctor.probes` in a fresh Python; `facts` is what it found till its end."""
    path = place() / f"facts-{next(_serial)}"
    answer = ask([sys.executable, "-m", "splatexp.doctor.probes", name, str(path)], seconds)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):  # a last line that was cut
            answer.facts |= json.loads(line)
    answer.failure = answer.facts.pop("failure", answer.failure)
    return answer


def place() -> Path:
    """A folder for what the processes write, which `end_all` removes: one that is killed leaves its files."""
    with _lock:
        if not _places:
            _places.append(Path(tempfile.mkdtemp(prefix="splatexp-doctor-")))
            atexit.register(end_all)
        return _places[0]


def end_all() -> None:
    """End every process that is still asked, and remove what all of them wrote."""
    for process in list(_running):
        _end(process)
    with _lock:
        while _places:
            shutil.rmtree(_places.pop(), ignore_errors=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk or driver cannot end
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
