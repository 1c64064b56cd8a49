"""A job: the function that every launcher calls, in this process, in another one or on another machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
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
from splatexp.config.schema import ConfigError
from splatexp.settings.messages import one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from splatexp.data.scene import Scene
    from splatexp.run.run import Run
    from splatexp.run.state import TrainingState
    from splatexp.sweep.sweep_folder import Sweep
    from splatexp.tracking import Tracker

ERROR_FILE = "error.txt"  # in a job's folder: why it failed, with the traceback
OUTPUT_FILE = "output.txt"  # in a job's folder: what it printed
ObjectiveValues = float | tuple[float | None, ...] | None


class InvalidInput(ConfigError):
    """Input that was refused before anything was written."""


def run_job(cfg: DictConfig) -> ObjectiveValues:
    """Run the job of a config in the folder that Hydra created for it, and return its objective.

    A job of a sweep records its status in job.json and raises only what stops it. It is not run again if it
    is finished somewhere.

    Raises: ConfigError for input that cannot be used, whose folder is removed, and for a full disk.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    overrides = list(hydra.overrides.task)
    if hydra.mode == RunMode.MULTIRUN:
        from splatexp.sweep.sweep_folder import Sweep

        sweep = Sweep.read(Path(hydra.sweep.dir))
        exit_if_orphaned(sweep)
        values = None if sweep.stopped else _run_in_sweep(cfg, hydra, sweep, folder, overrides)
        exit_if_orphaned(sweep)
        return values
    run = build(cfg)
    try:
        scene, state = _prepare(run, folder)
    except InvalidInput:
        remove_if_unused(folder, {".hydra"})
        raise
    return _objective_values(run, _fit(run, scene, state, folder, overrides))


def _prepare(run: Run, folder: Path) -> tuple[Scene, TrainingState]:
    try:
        return run.prepare(folder)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(one_line(error)) from error


def _fit(
    run: Run, scene: Scene, state: TrainingState, folder: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    for line in state.messages:
        print_message(line)
    try:
        return run.fit(scene, state, folder, overrides)
    except (OSError, FloatingPointError, MemoryError) as error:
        raise ConfigError(one_line(error)) from error


def run_or_reuse(
    run: Run, job: str, folder: Path, overrides: Sequence[str]
) -> tuple[dict[str, Any], Path, bool]:
    """Run a job in `folder`, unless the job cache knows a folder in which it is finished.

    A job that was started elsewhere and has left a checkpoint is resumed in that folder.

    job: the identity of the job, see `cache.job_id`.
    Returns: the contents of metrics.json, the folder in which it lies, and whether it was there before.
    Raises: InvalidInput, ConfigError.
    """
    from splatexp.run.checkpoint import list_checkpoints
    from splatexp.sweep.cache import JobCache, read_job_record, read_job_result

    if not run.job_cache:
        scene, state = _prepare(run, folder)
        return _fit(run, scene, state, folder, overrides), folder, False
    cache = JobCache(Path(run.job_cache))
    with cache.lock(job, on_wait=lambda: print_message("waiting for another process that runs the same job")):
        earlier = cache.folder_of(job)
        if run.force:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        elif earlier:
            result = read_job_result(earlier, job)
            if result is not None:
                return result, earlier, True
            if read_job_record(earlier).get("id") == job and list_checkpoints(earlier / "checkpoints"):
                folder = earlier
                run = replace(run, resume="auto")
        scene, state = _prepare(run, folder)
        (folder / "metrics.json").unlink(
            missing_ok=True
        )  # that of an earlier run is not the result of this one
        cache.record(job, folder)
        return _fit(run, scene, state, folder, overrides), folder, False


def exit_if_orphaned(sweep: Sweep) -> None:
    """End this process if it runs jobs for a driver on this machine that no longer exists.

    Worker processes of joblib would never end otherwise.
    """
    from splatexp.sweep.sweep_folder import process_exists

    if sweep.is_this_host and not process_exists(sweep.pid) and not _in_submitit():
        os._exit(1)


def _in_submitit() -> bool:
    return "SUBMITIT_EXECUTOR" in os.environ


def _run_in_sweep(
    cfg: DictConfig, hydra: Any, sweep: Sweep, folder: Path, overrides: list[str]
) -> ObjectiveValues:
    """Run a job of a sweep, and record its status."""
    number = int(hydra.job.num)
    started = time.perf_counter()
    timed_out: list[Callable[[], None]] = []
    record: dict[str, Any] = {
        "job": number,
        "overrides": overrides,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }

    def finish(status: str, **values: Any) -> None:
        seconds = round(time.perf_counter() - started, 3)
        sweep.update_job_record(folder, **record, status=status, seconds=seconds, **values)

    try:
        with _worker_signals(sweep, timed_out):
            run = _adapt_to_sweep(build(cfg), sweep, hydra.launcher, overrides)
            record["id"] = _job_id(run, sweep, folder)
            sweep.update_job_record(folder, **record, status="running", error="")
            with open(folder / OUTPUT_FILE, "w", encoding="utf-8") as file, redirect_stdout(file):
                result, result_folder, cached = run_or_reuse(run, record["id"], folder, overrides)
    except KeyboardInterrupt as stop:
        finish("stopped", error=str(stop))
        for call_handler in timed_out[:1]:
            call_handler()
        if (
            sweep.is_driver or _in_submitit()
        ):  # a process of submitit that ends without a result tells its driver
            raise
        return None
    except Exception as error:
        line = one_line(error)
        (folder / ERROR_FILE).write_text(f"{line}\n\n{traceback.format_exc()}", encoding="utf-8")
        finish("failed", error=line, invalid_input=isinstance(error, InvalidInput))
        print_message(f"job {number} failed: {line} ({folder / ERROR_FILE})")
        return None
    (folder / ERROR_FILE).unlink(missing_ok=True)
    objective = {name: result.get(name) for name in run.objectives}
    status = "cached" if cached else "done"
    finish(status, objective=objective, folder=str(result_folder.absolute()))
    numbers = [f"{name} {value:.5g}" for name, value in objective.items() if value is not None]
    print_message("  ".join([f"job {number} is {status}: {sweep.describe(overrides)}", *numbers]))
    return _objective_values(run, result)


def _job_id(run: Run, sweep: Sweep, folder: Path) -> str:
    """Return the identity of a job.

    Raises: InvalidInput where its folder holds another run.
    """
    from splatexp.sweep.cache import read_job_record
    from splatexp.sweep.job_identity import job_id

    job = job_id(run, sweep.swept_keys)
    if (folder / "metrics.json").exists() and read_job_record(folder).get("id") != job:
        raise InvalidInput(
            f"hydra.sweep.dir: expected a new folder, got one in which {folder} holds another run"
        )
    return job


def _adapt_to_sweep(run: Run, sweep: Sweep, launcher: Any, overrides: Sequence[str]) -> Run:
    """Return the run with its share of the processors, and with trackers that know that it is one of many."""
    from splatexp.sweep.launchers import threads_per_job
    from splatexp.tracking import Console, WandB

    trackers: dict[str, Tracker] = {}
    for name, tracker in run.tracker.items():
        if isinstance(tracker, WandB):
            job_type = "search" if sweep.num_jobs is None else sweep.describe(overrides, exclude=("seed",))
            tracker = replace(
                tracker,
                group=tracker.group or sweep.name,
                job_type=tracker.job_type or job_type,
                name=tracker.name or sweep.describe(overrides),
            )
        if sweep.is_driver or not isinstance(
            tracker, Console
        ):  # progress bars of several jobs are unreadable
            trackers[name] = tracker
    return replace(
        run, tracker=trackers, threads=run.threads or threads_per_job(launcher, sweep.max_parallel)
    )


@contextmanager
def _worker_signals(sweep: Sweep, timed_out: list[Callable[[], None]]) -> Iterator[None]:
    """Let a signal to a worker process stop its job, after the job has saved its state.

    SLURM sends SIGUSR2 before the time is up, and submitit's handler submits the job again. That handler must
    run after the job has been saved, so a call of it is appended to `timed_out` and the job is stopped.
    """
    from splatexp.system.signals import StopSignals

    if sweep.is_driver:
        yield
        return
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    with suppress(OSError):
        if os.getpgrp() == os.getpgid(sweep.pid):
            os.setpgrp()  # Ctrl-C then reaches the driver alone, which asks its workers to stop
    handler: Any = signal.getsignal(signal.SIGUSR2)

    def stop(number: int, _: Any) -> None:
        timed_out.append(lambda: handler(number, None))
        signal.raise_signal(signal.SIGTERM)

    with StopSignals():
        if callable(handler):
            signal.signal(signal.SIGUSR2, stop)
        try:
            yield
        finally:
            if callable(handler):
                signal.signal(signal.SIGUSR2, handler)


def _objective_values(run: Run, result: dict[str, Any]) -> ObjectiveValues:
    """Return the objective of a finished run in the form that Hydra's sweepers expect."""
    values = [result.get(name) for name in run.objectives]
    return tuple(values) if len(values) > 1 else values[0]


def print_message(line: str) -> None:
    """Print a line for people to stderr."""
    print(line, file=sys.stderr, flush=True)


def remove_if_unused(folder: Path, expendable: set[str]) -> None:
    """Remove a folder that holds no other files than `expendable`, and its parents that are empty then."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - expendable:
        return
    shutil.rmtree(folder)
    for parent in folder.parents:
        if Path.cwd() not in parent.parents or any(parent.iterdir()):
            return
        parent.rmdir()
