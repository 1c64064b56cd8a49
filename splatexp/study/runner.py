"""Carrying a study out: run what is missing, here or in several processes, and write the reports."""

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
from splatexp.study.plan import Study, Task, rows_of_bytes, same_budget, scene_name
from splatexp.sweep.job import say

NEAR = 0.05  # a run whose seconds differ from the budget by this share is taken


@dataclass
class Order(Study):
    """A study as it was asked for."""

    study: str = ""
    folder: str = ""
    only: list[str] = field(default_factory=list)
    jobs: int = 1
    force: bool = False


def carry_out(task: Task, order: Order) -> Path:
    """Run a task, or find it done.  Returns: its folder.  Raises: Refused and what training raises."""
    words, place = list(task.words), Path(order.folder, task.place)
    if order.budget.bytes:
        words += _as_many(words, order.budget.bytes)
    if not order.budget.seconds:
        return _run(words, place, order)[0]
    steps, found = order.steps, None
    for attempt in range(3):  # a run's pace changes with its number of Gaussians, so that a guess may miss
        found, seconds = _run([*words, f"steps={steps}"], Path(f"{place}.{attempt}"), order)
        if abs(seconds / order.budget.seconds - 1) <= NEAR:
            break
        steps = max(1, round(steps * order.budget.seconds / seconds))
    assert found is not None
    return found


def _as_many(words: list[str], size: int) -> list[str]:
    """Overrides that make a model of so many bytes."""
    from splatexp.config.build import build, compose

    rows = rows_of_bytes(size, build(compose(words)).model.sh_degree)
    return [f"densify.max_gaussians={rows}", "densify.exact=true"]


def _run(words: list[str], place: Path, order: Order) -> tuple[Path, float]:
    """One run, in `place` or where it was done.  Returns: the folder, and the seconds of training."""
    from splatexp.config.build import build, compose, save
    from splatexp.sweep.cache import CARD, job_id, read_card
    from splatexp.sweep.job import once
    from splatexp.system.cgroups import processors
    from splatexp.tracking import Console, WandB

    cfg = compose(words)
    run = build(cfg)
    trackers = {name: tracker for name, tracker in run.tracker.items() if not isinstance(tracker, Console)}
    for name, tracker in trackers.items():
        if isinstance(tracker, WandB):
            group = tracker.group or f"study {Path(order.folder).name}"
            trackers[name] = replace(tracker, group=group, name=tracker.name or "/".join(place.parts[-3:]))
    threads = run.threads or max(1, processors() // order.jobs)
    run = replace(run, tracker=trackers, threads=threads, force=order.force)
    job = job_id(run)
    if read_card(place).get("id", job) != job:  # what was run there, with other settings or code, is kept
        place = place.with_name(f"{place.name}-{job}")
    save(cfg, place, words)
    write_text(place / CARD, json.dumps({"id": job, "overrides": words}) + "\n")
    with open(place / "output.txt", "w", encoding="utf-8") as file, redirect_stdout(file):
        result, found, _ = once(run, job, place, words)
    return found, result["train_seconds"]


def _outcomes(tasks: list[Task], order: Order) -> Iterator[tuple[Task, Path | str]]:
    """Each task as it ends, with its folder or why it failed."""
    if order.jobs == 1:
        for task in tasks:
            yield task, _attempt(task, order)
        return
    with ProcessPoolExecutor(order.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_attempt, task, order): task for task in tasks}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _attempt(task: Task, order: Order) -> Path | str:
    """One failed run does not end a study."""
    try:
        return carry_out(task, order)
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


def conduct(order: Order, command: str = "") -> tuple[list[Path], int]:
    """Run what is missing, then write the reports.  Returns: the pages, and how many runs failed."""
    from splatexp.study.results import Result, read

    tasks = [
        task for task in order.tasks() if not order.only or _named(task) in (*order.only, order.baseline)
    ]
    found: dict[Task, Result] = {}
    failed, width = 0, max(len(task.variant) for task in tasks)
    for number, (task, outcome) in enumerate(_outcomes(tasks, order), 1):
        count = f"{number:>{len(str(len(tasks)))}}/{len(tasks)}"
        head = f"{count}  {task.variant:<{width}}  {task.scene}  seed {task.seed}"
        if isinstance(outcome, str):
            failed += 1
            say(f"{head}  failed: {outcome}")
            continue
        found[task] = read(outcome, task.variant, task.scene, task.seed)
        say(f"{head}  {_brief(found[task].metrics, order.metrics)}")
    return _reports(order, found, command), failed


def check(order: Order) -> None:
    """Every variant's settings, before anything is run.  Raises: Refused, with the variant's name."""
    from splatexp.config.build import build, compose
    from splatexp.config.schema import Refused

    for task in order.tasks():
        if (task.scene, task.seed) == (scene_name(order.scenes[0]), 0):
            try:
                build(compose(list(task.words)))
            except Refused as error:
                raise Refused(f"{task.variant}: {error}") from error


def _named(task: Task) -> str:
    return task.variant.partition(" @ ")[0] if task.budget else task.variant


def _brief(metrics: dict[str, Any], names: list[str]) -> str:
    numbers = [f"{name} {metrics[name]:.4g}" for name in names if metrics.get(name) is not None]
    return "  ".join(
        [*numbers, f"{metrics['num_gaussians']:,} Gaussians", f"{metrics['train_seconds']:.0f} s"]
    )


def _reports(order: Order, found: dict[Task, Any], command: str) -> list[Path]:
    """A page of everything, compared with the baseline of the middle budget; and one of each of several."""
    from splatexp.study.report import write

    pages = []
    groups = same_budget(list(found))
    middle = sorted(groups)[len(groups) // 2] if groups else 0
    for budget, tasks in [(middle, list(found)), *(groups.items() if len(groups) > 1 else ())]:
        base = f"{order.baseline} @ {budget:,}" if order.budgets else order.baseline
        if not any(task.variant == base for task in tasks):
            say(f"no report: no run of the baseline {base} has come to its end")
            continue
        alone = len(groups) > 1 and len(tasks) < len(found)
        folder = Path(order.folder, f"{budget}") if alone else Path(order.folder)
        title = f"{order.title or order.study}, {budget:,} Gaussians" if alone else order.title or order.study
        results = [found[task] for task in tasks]
        known: dict[str, Any] = {"metrics": order.metrics, "command": command, "description": _told(order)}
        pages.append(write(folder, title, base, results, **known))
    return pages


def _told(order: Order) -> str:
    """What was held equal, in words."""
    spent = [
        f"{n:,} Gaussians" for n in ([order.budget.gaussians] if order.budget.gaussians else order.budgets)
    ]
    spent += [f"{order.budget.bytes:,} bytes"] if order.budget.bytes else []
    budget = f" Budget: {', '.join(spent)}." if spent else ""
    seeds = "1 seed" if order.seeds == 1 else f"{order.seeds} seeds"
    if order.budget.seconds:
        return f"Each run trains for about {order.budget.seconds:g} s, {seeds}."
    return f"{order.steps:,} steps, {seeds}.{budget}"
