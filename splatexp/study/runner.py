"""The runner of a study: it runs what is missing, in this process or in several, and writes the reports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from splatexp.io.atomic import write_text
from splatexp.settings.messages import one_line
from splatexp.study.plan import Study, Task, gaussians_for_bytes, group_by_budget, scene_name
from splatexp.sweep.job import OUTPUT_FILE, print_message

TIME_TOLERANCE = 0.05  # a run is accepted if its time is within this fraction of the budget
MAX_ATTEMPTS = 3  # to reach a budget of seconds


@dataclass
class StudyRequest(Study):
    """A study, and how it is to be run."""

    study: str = ""  # name of a file of conf/study/, or the path of a YAML file
    folder: str = ""  # output folder
    only: list[str] = field(default_factory=list)  # variants to be run, besides the baseline; [] runs all
    jobs: int = 1  # number of runs at once
    force: bool = False  # run again what is finished


def run_task(task: Task, request: StudyRequest) -> Path:
    """Run a task, unless it is finished, and return its folder.

    Raises: ConfigError, and whatever training raises.
    """
    overrides = list(task.overrides)
    folder = Path(request.folder, task.folder)
    if request.budget.bytes:
        overrides += _overrides_for_bytes(overrides, request.budget.bytes)
    if not request.budget.seconds:
        return _run(overrides, folder, request)[0]
    steps = request.steps
    result_folder = None
    for attempt in range(MAX_ATTEMPTS):  # the time of a step changes with the number of Gaussians
        attempt_folder = Path(f"{folder}.{attempt}")
        result_folder, seconds = _run([*overrides, f"steps={steps}"], attempt_folder, request)
        if abs(seconds / request.budget.seconds - 1) <= TIME_TOLERANCE:
            break
        steps = max(1, round(steps * request.budget.seconds / seconds))
    assert result_folder is not None
    return result_folder


def _overrides_for_bytes(overrides: list[str], size: int) -> list[str]:
    """Return the overrides that give a model of `size` bytes."""
    from splatexp.config.build import build, compose

    count = gaussians_for_bytes(size, build(compose(overrides)).model.sh_degree)
    return [f"densify.max_gaussians={count}", "densify.exact=true"]


def _run(overrides: list[str], folder: Path, request: StudyRequest) -> tuple[Path, float]:
    """Run a job, and return the folder with its results and the seconds of training.

    The results lie in `folder`, or where another study or sweep has finished the same job.
    """
    from splatexp.config.build import build, compose, save_config
    from splatexp.sweep.cache import JOB_FILE, read_job_record
    from splatexp.sweep.job import run_or_reuse
    from splatexp.sweep.job_identity import job_id
    from splatexp.system.linux_memory import cpu_count
    from splatexp.tracking import Console, WandB

    cfg = compose(overrides)
    run = build(cfg)
    trackers = {name: tracker for name, tracker in run.tracker.items() if not isinstance(tracker, Console)}
    for name, tracker in trackers.items():
        if isinstance(tracker, WandB):
            group = tracker.group or f"study {Path(request.folder).name}"
            run_name = tracker.name or "/".join(folder.parts[-3:])
            trackers[name] = replace(tracker, group=group, name=run_name)
    threads = run.threads or max(1, cpu_count() // request.jobs)
    run = replace(run, tracker=trackers, threads=threads, force=request.force)
    job = job_id(run)
    if read_job_record(folder).get("id", job) != job:  # keep a run with other settings or other code
        folder = folder.with_name(f"{folder.name}-{job}")
    save_config(cfg, folder, overrides)
    write_text(folder / JOB_FILE, json.dumps({"id": job, "overrides": overrides}) + "\n")
    with open(folder / OUTPUT_FILE, "w", encoding="utf-8") as file, redirect_stdout(file):
        result, result_folder, _ = run_or_reuse(run, job, folder, overrides)
    return result_folder, result["train_seconds"]


def _run_tasks(tasks: list[Task], request: StudyRequest) -> Iterator[tuple[Task, Path | str]]:
    """Yield each task when it has ended, with its folder or the reason why it failed."""
    if request.jobs == 1:
        for task in tasks:
            yield task, _try_task(task, request)
        return
    with ProcessPoolExecutor(request.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_try_task, task, request): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _try_task(task: Task, request: StudyRequest) -> Path | str:
    """Run a task; a run that fails does not end the study."""
    try:
        return run_task(task, request)
    except Exception as error:
        return one_line(error)


def run_study(request: StudyRequest, command: str = "") -> tuple[list[Path], int]:
    """Run what is missing, and write the reports.

    command: the command line of the study, for the reports.
    Returns: the pages, and the number of runs that failed.
    """
    from splatexp.study.results import Result, read_result

    chosen = (*request.only, request.baseline)
    tasks = [task for task in request.tasks() if not request.only or _variant_name(task) in chosen]
    results: dict[Task, Result] = {}
    num_failed = 0
    width = max(len(task.variant) for task in tasks)
    for number, (task, outcome) in enumerate(_run_tasks(tasks, request), 1):
        count = f"{number:>{len(str(len(tasks)))}}/{len(tasks)}"
        head = f"{count}  {task.variant:<{width}}  {task.scene}  seed {task.seed}"
        if isinstance(outcome, str):
            num_failed += 1
            print_message(f"{head}  failed: {outcome}")
            continue
        results[task] = read_result(outcome, task.variant, task.scene, task.seed)
        print_message(f"{head}  {_format_metrics(results[task].metrics, request.metrics)}")
    return _write_reports(request, results, command), num_failed


def check_variants(request: StudyRequest) -> None:
    """Check the settings of every variant before anything is run.

    Raises: ConfigError with the name of the variant.
    """
    from splatexp.config.build import build, compose
    from splatexp.config.schema import ConfigError

    for task in request.tasks():
        if (task.scene, task.seed) == (scene_name(request.scenes[0]), 0):
            try:
                build(compose(list(task.overrides)))
            except ConfigError as error:
                raise ConfigError(f"{task.variant}: {error}") from error


def _variant_name(task: Task) -> str:
    """Return the name of a task's variant without its budget."""
    return task.variant.partition(" @ ")[0] if task.budget else task.variant


def _format_metrics(metrics: dict[str, Any], names: list[str]) -> str:
    numbers = [f"{name} {metrics[name]:.4g}" for name in names if metrics.get(name) is not None]
    numbers += [f"{metrics['num_gaussians']:,} Gaussians", f"{metrics['train_seconds']:.0f} s"]
    return "  ".join(numbers)


def _write_reports(request: StudyRequest, results: dict[Task, Any], command: str) -> list[Path]:
    """Write a report of all runs, and with several budgets one of each.

    The report of all runs compares with the baseline of the middle budget.
    """
    from splatexp.study.report import write

    groups = group_by_budget(list(results))
    middle = sorted(groups)[len(groups) // 2] if groups else 0
    reports = [(middle, list(results))]
    if len(groups) > 1:
        reports += groups.items()
    title = request.title or request.study
    pages = []
    for budget, tasks in reports:
        baseline = f"{request.baseline} @ {budget:,}" if request.gaussian_budgets else request.baseline
        if not any(task.variant == baseline for task in tasks):
            print_message(f"no report: no run of the baseline {baseline} has finished")
            continue
        is_part = len(groups) > 1 and len(tasks) < len(results)
        page = write(
            Path(request.folder, f"{budget}") if is_part else Path(request.folder),
            f"{title}, {budget:,} Gaussians" if is_part else title,
            baseline,
            [results[task] for task in tasks],
            metrics=request.metrics,
            command=command,
            description=_describe(request),
        )
        pages.append(page)
    return pages


def _describe(request: StudyRequest) -> str:
    """Return a sentence about what all runs have in common."""
    seeds = "1 seed" if request.seeds == 1 else f"{request.seeds} seeds"
    budget = request.budget
    if budget.seconds:
        return f"Each run trains for about {budget.seconds:g} s, {seeds}."
    counts = [budget.gaussians] if budget.gaussians else request.gaussian_budgets
    budgets = [f"{count:,} Gaussians" for count in counts]
    if budget.bytes:
        budgets.append(f"{budget.bytes:,} bytes")
    text = f"{request.steps:,} steps, {seeds}."
    return f"{text} Budget: {', '.join(budgets)}." if budgets else text
