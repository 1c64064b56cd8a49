"""The driver of a sweep: it checks and launches the jobs, stops them on a signal, and summarizes them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins import basic_sweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import OverrideParseException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from splatexp.config.build import build, created_folders
from splatexp.config.compose import ConfigLoader
from splatexp.config.schema import ConfigError
from splatexp.settings.messages import one_line
from splatexp.sweep.cache import JOB_FILE
from splatexp.sweep.job import ERROR_FILE, OUTPUT_FILE, print_message, remove_if_unused, run_job
from splatexp.sweep.launchers import make_launcher
from splatexp.sweep.optuna_sweeper import OptunaSweeper, OptunaSweeperConf
from splatexp.sweep.pareto import draw_pareto_front, pareto_front
from splatexp.sweep.sweep_folder import (
    SUCCESSFUL,
    SWEEP_FILE,
    Sweep,
    format_table,
    process_exists,
    write_csv,
)
from splatexp.system.signals import StoppedBySignal, StopSignals

PARETO_FILE = "pareto.svg"
MAX_CHECKED_VALUES = 64  # of one key whose settings are checked before the sweep starts


def run_sweep(app: Any, loader: ConfigLoader, config_name: str, overrides: list[str]) -> int:
    """Run a sweep and return the exit status: 1 where a job has failed, otherwise 0.

    All settings are checked before a folder is created.

    Raises: ConfigError; KeyboardInterrupt when the sweep was stopped.
    """
    for job_overrides in validation_jobs(loader, overrides):
        if build(loader.compose_job(config_name, job_overrides)).raster.distributed:
            raise ConfigError(
                "raster.distributed: expected false in a sweep, got true; each job is one process"
            )
    cfg = app.compose_config(config_name, [*overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, True)
    task_overrides: Any = OmegaConf.to_container(cfg.hydra.overrides.task, resolve=False)
    callbacks = Callbacks(cfg)
    callbacks.on_multirun_start(config=cfg, config_name=config_name)
    try:
        sweep = prepare_sweep(loader, cfg, task_overrides)
        sweeper = _make_sweeper(cfg, HydraContext(loader, callbacks), sweep)
        with _SweepSignals(sweep) as signals:
            try:
                sweeper.sweep(task_overrides)
            except KeyboardInterrupt as stop:  # a launcher may raise one of its own
                sweep.stop()
                _summarize(sweep)
                raise StoppedBySignal(signals.caught) if signals.caught else stop from None
        callbacks.on_multirun_end(config=cfg, config_name=config_name)
        return _summarize(sweep)
    except ConfigError:
        for folder in created_folders:
            remove_if_unused(folder, {"multirun.yaml", SWEEP_FILE, ".submitit"})
        raise


def validation_jobs(loader: ConfigLoader, overrides: list[str]) -> Iterator[list[str]]:
    """Yield the overrides of jobs in which each value of each swept key occurs once.

    All other keys have their first value. Of a key with many values the first `MAX_CHECKED_VALUES` occur.
    """
    try:
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
    except OverrideParseException:  # composing the config explains what is wrong
        yield overrides
        return
    choices: list[list[str]] = []
    for override in parsed:
        values: tuple[str, ...] = ()
        if override.is_discrete_sweep():
            values = tuple(islice(override.sweep_string_iterator(), MAX_CHECKED_VALUES))
        elif override.is_sweep_override() and isinstance(interval := override.value(), IntervalSweep):
            values = (str(interval.start),)
        key = override.get_key_element()
        choices.append([f"{key}={value}" for value in values] or [override.input_line or ""])
    first = [values[0] for values in choices]
    yield first
    for index, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:index], value, *first[index + 1 :]]


def prepare_sweep(loader: ConfigLoader, cfg: DictConfig, overrides: list[str]) -> Sweep:
    """Write sweep.json, which the jobs read, and return its contents.

    Raises: ConfigError where another sweep is in that folder, and for an override that the sweeper does not
    support.
    """
    sweeper = cfg.hydra.sweeper
    folder = Path(str(cfg.hydra.sweep.dir)).absolute()
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(loader).parse_overrides([*params, *overrides])
    swept = [override for override in parsed if override.is_sweep_override()]
    num_jobs = None
    max_parallel = sweeper.get("n_jobs", 1)
    if _is_basic(cfg):
        for override in swept:
            if not override.is_discrete_sweep():
                raise ConfigError(f"{override.get_key_element()}: an interval needs hydra/sweeper=optuna")
        num_jobs = math.prod(_count_values(override) for override in swept)
        max_parallel = min(num_jobs, sweeper.max_batch_size or num_jobs)
    kept = [override for override in overrides if override.partition("=")[0] != "force"]
    keys = [override.get_key_element() for override in swept]
    sweep = Sweep(folder, kept, keys, num_jobs, max_parallel)
    try:
        earlier = Sweep.read(folder)
    except (OSError, ValueError):
        earlier = None
    if earlier and earlier.overrides != kept:
        raise ConfigError(
            f"hydra.sweep.dir: expected a new folder, got {folder}, which holds a sweep with other overrides"
        )
    if earlier and not earlier.finished and earlier.is_this_host and process_exists(earlier.pid):
        raise ConfigError(f"{folder}: process {earlier.pid} is running this sweep; wait for it or stop it")
    sweep.write()
    return sweep


def _make_sweeper(cfg: DictConfig, context: HydraContext, sweep: Sweep) -> Any:
    """Return the sweeper that `hydra/sweeper` chooses, with the launcher that `hydra/launcher` chooses."""
    chosen = cfg.hydra.sweeper
    if _is_basic(cfg):
        sweeper: Any = basic_sweeper.BasicSweeper(chosen.max_batch_size, chosen.params)
    elif chosen._target_ == OptunaSweeperConf._target_:
        sweeper = OptunaSweeper(**{key: value for key, value in chosen.items() if key != "_target_"})
    else:
        return Plugins.instance().instantiate_sweeper(
            hydra_context=context, task_function=run_job, config=cfg
        )
    sweeper.hydra_context = context
    sweeper.config = cfg
    sweeper.launcher = FaultTolerantLauncher(make_launcher(cfg, context, run_job), sweep)
    return sweeper


def _is_basic(cfg: DictConfig) -> bool:
    return cfg.hydra.sweeper._target_ == basic_sweeper.BasicSweeperConf._target_


def _count_values(override: Override) -> int:
    return sum(1 for _ in override.sweep_string_iterator())


class FaultTolerantLauncher:
    """A launcher that continues when the process of a job is lost: it runs the other jobs one at a time."""

    def __init__(self, launcher: Any, sweep: Sweep):
        self.launcher = launcher
        self.sweep = sweep

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and return what they returned.

        Raises: ConfigError where no job could be started.
        """
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        try:
            return self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except ConfigError:
            raise
        except Exception as error:
            reason = one_line(error)
            if not set(numbers) & set(self._records()):
                raise ConfigError(f"no job could be started: {reason[:300]}") from error
        print_message(f"the process of a job was lost ({reason[:200]}); the other jobs run one at a time")
        return [
            self._finish(number, overrides) for number, overrides in zip(numbers, job_overrides, strict=True)
        ]

    def _records(self) -> dict[int, dict[str, Any]]:
        return {record["job"]: record for record in self.sweep.job_records()}

    def _finish(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """Run a job unless it has ended, and return its objective."""
        record = self._records().get(number)
        if record is None or record["status"] == "running":
            try:
                return self.launcher.launch([overrides], initial_job_idx=number)[0]
            except Exception as error:
                record = self._records().get(number, {})
                line = f"the process of the job was lost: {one_line(error)[:300]}"
                if record:
                    self.sweep.update_job_record(Path(record["at"]), status="failed", error=line)
                    Path(record["at"], ERROR_FILE).write_text(f"{line}\n", encoding="utf-8")
                print_message(f"job {number} failed: {line}")
        values = tuple((record.get("objective") or {}).values())
        returned = JobReturn()
        returned.status = JobStatus.COMPLETED
        returned.return_value = values if len(values) > 1 else values[0] if values else None
        return returned


class _SweepSignals(StopSignals):
    """Signals that stop a whole sweep: jobs in other processes save their state first."""

    def __init__(self, sweep: Sweep):
        super().__init__()
        self.sweep = sweep

    def _catch(self, number: int, frame: FrameType | None) -> None:
        again = bool(self.caught)
        self.caught = number
        if not again:
            self.sweep.stop()
        raise StoppedBySignal(number, ", at once" if again else "")


def _summarize(sweep: Sweep) -> int:
    """Print a summary of the sweep, write it to the sweep's folder, and return the exit status.

    Raises: ConfigError where every job was refused for the same reason; the folders of the jobs are removed
    then.
    """
    sweep.finished = True
    sweep.write()
    records = sweep.job_records()
    for record in records:
        same_host = record["host"] == sweep.host
        if record["status"] == "running" and same_host and not process_exists(record["pid"]):
            record["status"] = "lost"
    if records and all(record.get("invalid_input") for record in records):
        errors = {record["error"] for record in records}
        if len(errors) == 1:
            for record in records:
                remove_if_unused(Path(record["at"]), {".hydra", JOB_FILE, ERROR_FILE, OUTPUT_FILE})
            raise ConfigError(errors.pop())
    points, names = _objective_values(records)
    front = pareto_front(points, names) if len(names) > 1 else None
    print(format_table(records, sweep, front or ()))
    try:
        files = [str(write_csv(records, sweep, front))]
        if front:
            tooltips = {record["job"]: sweep.describe(record["overrides"]) for record in records}
            path = sweep.folder / PARETO_FILE
            draw_pareto_front(path, points, names, tooltips, f"{sweep.name}, {len(points)} jobs")
            files.append(str(path))
    except OSError as error:
        files = [f"no table was written: {error.strerror}"]
    counts = Counter(record["status"] for record in records)
    if sweep.num_jobs and sweep.num_jobs > len(records):
        counts["not started"] = sweep.num_jobs - len(records)
    legend = "  * on the Pareto front" if front else ""
    print(f"{', '.join(f'{count} {status}' for status, count in counts.items())}{legend}\n{'  '.join(files)}")
    return 0 if set(counts) <= SUCCESSFUL else 1


def _objective_values(records: Sequence[Mapping[str, Any]]) -> tuple[dict[int, list[float]], list[str]]:
    """Return the objectives of the jobs that have measured all of them, and the names of the objectives."""
    found = {record["job"]: record["objective"] for record in records if record.get("objective")}
    names = [str(name) for name in next(iter(found.values()), {})]
    complete = {job: list(each.values()) for job, each in found.items() if None not in each.values()}
    return complete, names if complete else []
