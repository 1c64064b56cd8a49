"""The body of one job: what every launcher runs, in this process, in another one or on another machine."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.config.build import build
from splatexp.config.schema import Refused

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from splatexp.data.scene import Scene
    from splatexp.run.run import Run
    from splatexp.run.state import State
    from splatexp.sweep.sweep_folder import Sweep

ERROR, OUTPUT = "error.txt", "output.txt"  # of a job in a sweep: why it failed, and what it printed
Values = float | tuple[float | None, ...] | None


class Unusable(Refused):
    """Input that was refused before anything was written."""


def job(cfg: DictConfig) -> Values:
    """One run in the folder that Hydra made for it.  Returns: its objective, or objectives.

    A job of a sweep notes on its card how it went and raises nothing but what stops it; one that is finished
    somewhere is not run again.

    Raises: Refused for input that cannot be used (then the folder is gone again) and for a disk that is full.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder, words = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN:
        from splatexp.sweep.sweep_folder import Sweep

        sweep = Sweep.read(Path(hydra.sweep.dir))
        _leave_if_alone(sweep)
        values = None if sweep.stopped else _member(cfg, hydra, sweep, folder, words)
        _leave_if_alone(sweep)
        return values
    run = build(cfg)
    try:
        scene, state = _prepared(run, folder)
    except Unusable:
        remove(folder, {".hydra"})
        raise
    return _values(run, _fit(run, scene, state, folder, words))


def _prepared(run: Run, folder: Path) -> tuple[Scene, State]:
    try:
        return run.prepare(folder)
    except (OSError, ValueError, ImportError) as error:
        raise Unusable(_line(error)) from error


def _fit(run: Run, scene: Scene, state: State, folder: Path, words: Sequence[str]) -> dict[str, Any]:
    for line in state.news:
        say(line)
    try:
        return run.fit(scene, state, folder, words)
    except (OSError, FloatingPointError, MemoryError) as error:
        raise Refused(_line(error)) from error


def once(run: Run, job: str, folder: Path, words: Sequence[str]) -> tuple[dict[str, Any], Path, bool]:
    """Run a job, unless the ledger knows where it is done; where it was only begun, it goes on there.

    Returns: what metrics.json holds, the folder it lies in, and whether it was known.
    Raises: Unusable, Refused.
    """
    from splatexp.run.checkpoint import found
    from splatexp.sweep.cache import Ledger, read_card, result_of

    if not run.ledger:
        scene, state = _prepared(run, folder)
        return _fit(run, scene, state, folder, words), folder, False
    ledger = Ledger(Path(run.ledger))
    with ledger.turn(job, lambda: say("waits for another process that runs the same job")):
        place = ledger.place(job)
        if run.force:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        elif place and (result := result_of(place, job)) is not None:
            return result, place, True
        elif place and read_card(place).get("id") == job and found(place / "checkpoints"):
            folder, run = place, replace(run, resume="auto")
        scene, state = _prepared(run, folder)
        (folder / "metrics.json").unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
        ledger.note(job, folder)
        return _fit(run, scene, state, folder, words), folder, False


def _leave_if_alone(sweep: Sweep) -> None:
    """End a process that runs jobs for one of this machine which is no more; joblib's would stay forever."""
    from splatexp.sweep.sweep_folder import lives

    if sweep.host == sweep.here and not lives(sweep.pid) and "SUBMITIT_EXECUTOR" not in os.environ:
        os._exit(1)


def _member(cfg: DictConfig, hydra: Any, sweep: Sweep, folder: Path, words: list[str]) -> Values:
    """A job of a sweep."""
    number, began = int(hydra.job.num), time.perf_counter()
    asked: list[Callable[[], None]] = []
    plain: dict[str, Any] = {"job": number, "overrides": words, "pid": os.getpid(), "host": sweep.here}

    def end(status: str, **more: Any) -> None:
        seconds = round(time.perf_counter() - began, 3)
        sweep.card(folder, **plain, status=status, seconds=seconds, **more)

    try:
        with _signals(sweep, asked):
            run = _fitted(build(cfg), sweep, hydra.launcher, words)
            plain["id"] = _taken(run, sweep, folder)
            sweep.card(folder, **plain, status="running", error="")
            with open(folder / OUTPUT, "w", encoding="utf-8") as file, redirect_stdout(file):
                result, place, known = once(run, plain["id"], folder, words)
    except KeyboardInterrupt as stop:
        end("stopped", error=str(stop))
        for tell in asked[:1]:
            tell()
        if sweep.ours or "SUBMITIT_EXECUTOR" in os.environ:  # its own end says to who waits that it has none
            raise
        return None
    except Exception as error:
        line = _line(error)
        (folder / ERROR).write_text(f"{line}\n\n{traceback.format_exc()}", encoding="utf-8")
        end("failed", error=line, unusable=isinstance(error, Unusable))
        say(f"job {number} failed: {line} ({folder / ERROR})")
        return None
    (folder / ERROR).unlink(missing_ok=True)
    found = {name: result.get(name) for name in run.objectives}
    end("known" if known else "done", objective=found, folder=str(place.absolute()))
    numbers = [f"{name} {value:.5g}" for name, value in found.items() if value is not None]
    say("  ".join([f"job {number} is {'known' if known else 'done'}: {sweep.choice(words)}", *numbers]))
    return _values(run, result)


def _taken(run: Run, sweep: Sweep, folder: Path) -> str:
    """A job's id.  Raises: Unusable where its folder holds another run."""
    from splatexp.sweep.cache import job_id, read_card

    job = job_id(run, sweep.varied)
    if (folder / "metrics.json").exists() and read_card(folder).get("id") != job:
        raise Unusable(f"{folder}: another run is there; hydra.sweep.dir=<folder> begins elsewhere")
    return job


def _fitted(run: Run, sweep: Sweep, launcher: Any, words: Sequence[str]) -> Run:
    """The run with its share of the processors, and its trackers told that it is one of many."""
    from splatexp.sweep.launchers import share
    from splatexp.tracking import Console, WandB

    trackers = {}
    for name, tracker in run.tracker.items():
        if isinstance(tracker, WandB):
            kind = "search" if sweep.jobs is None else sweep.choice(words, aside=("seed",))
            tracker = replace(
                tracker,
                group=tracker.group or sweep.name,
                job_type=tracker.job_type or kind,
                name=tracker.name or sweep.choice(words),
            )
        if sweep.ours or not isinstance(tracker, Console):  # of several bars at once none could be read
            trackers[name] = tracker
    return replace(run, tracker=trackers, threads=run.threads or share(launcher, sweep.at_once))


@contextmanager
def _signals(sweep: Sweep, asked: list[Callable[[], None]]) -> Iterator[None]:
    """In a process that runs jobs for another: what stops one saves it first, and only it.

    On the signal by which SLURM says that time is up, submitit hands a job in anew; here it hears of that
    signal later: what tells it is put into `asked`.
    """
    from splatexp.system.signals import Signals

    if sweep.ours:
        yield
        return
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    with suppress(OSError):
        if os.getpgrp() == os.getpgid(sweep.pid):
            os.setpgrp()  # Ctrl-C is for the process that runs the sweep, which asks the others
    theirs: Any = signal.getsignal(signal.SIGUSR2)

    def ask(number: int, _: Any) -> None:
        asked.append(lambda: theirs(number, None))
        signal.raise_signal(signal.SIGTERM)

    with Signals():
        if callable(theirs):
            signal.signal(signal.SIGUSR2, ask)
        try:
            yield
        finally:
            if callable(theirs):
                signal.signal(signal.SIGUSR2, theirs)


def _values(run: Run, result: dict[str, Any]) -> Values:
    """The objective of a finished run as Hydra's sweepers take it."""
    values = [result.get(name) for name in run.objectives]
    return tuple(values) if len(values) > 1 else values[0]


def _line(error: Exception) -> str:
    """What an error says, in one line; an OSError that says it all in words comes without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    return " ".join(text.split()) or type(error).__name__


def say(line: str) -> None:
    """A line for people."""
    print(line, file=sys.stderr, flush=True)


def remove(folder: Path, but: set[str]) -> None:
    """Remove a folder that holds nothing `but` what is no result, and those above it that are empty then."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - but:
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if Path.cwd() not in parent.parents or any(parent.iterdir()):
            return
        parent.rmdir()
