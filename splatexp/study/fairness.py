"""Issues that make a comparison of runs unfair, found in what the runs have recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from splatexp.study.results import ABSENT, Result, differences, format_setting

COUNT_TOLERANCE = 0.01  # relative difference of numbers of Gaussians that is fair
MAX_ITEMS = 6  # that are listed in one issue
MAX_RUNS = 3  # that are listed in one issue, where there are more than MAX_ITEMS
# the parts of `hardware` that are compared
MACHINE = ("cpu", "gpu", "cores", "threads", "isa", "cuda", "driver")


@dataclass(frozen=True)
class FairnessIssue:
    """A reason why a comparison is unfair, or a note about it."""

    topic: str  # such as "protocol"
    message: str  # which runs differ, and how
    severe: bool = True  # the metrics are not comparable; otherwise only the costs are not, or it is a note


def find_issues(
    results: Sequence[Result], baseline: str, metrics: Sequence[str] = ("psnr", "ssim")
) -> list[FairnessIssue]:
    """Return all issues of comparing `results` with those of the variant `baseline`, severe ones first."""
    found = [
        *_missing(results),
        *_within_scenes("protocol", results, lambda r: r.metrics.get("protocol")),
        *_within_scenes("data", results, lambda r: _of(r, "scene", "data_sha256")),
        *_targets(results),
        *_within_scenes("steps", results, lambda r: r.config.get("steps")),
        *_counts(results, baseline),
        *_across("code", results, lambda r: _trained(r, "code_sha256")),
        *_across("packages", results, lambda r: _trained(r, "packages")),
        *_across("hardware", results, _machine, "seconds and memory compare on one machine alone"),
        *_overrides(results, baseline),
        *_interrupted(results),
        *_unmeasured(results, metrics),
    ]
    return sorted(found, key=lambda issue: not issue.severe)


def name_runs(chosen: Iterable[Result], everything: Sequence[Result]) -> str:
    """Return the names of runs in short: the variant, or variant and scene, stands for all of its runs."""
    labels = {run.label for run in chosen}
    names: dict[str, None] = {}
    for run in everything:
        if run.label in labels:
            of_variant = [other for other in everything if other.variant == run.variant]
            of_scene = [other for other in of_variant if other.scene == run.scene]
            if all(other.label in labels for other in of_variant):
                names[run.variant] = None
            elif all(other.label in labels for other in of_scene):
                names[f"{run.variant} / {run.scene}"] = None
            else:
                names[run.label] = None
    return first_few(list(names), MAX_RUNS if len(names) > MAX_ITEMS else MAX_ITEMS)


def first_few(items: Sequence[str], count: int = MAX_ITEMS) -> str:
    """Return the first `count` items as a list in words, and how many more there are."""
    more = len(items) - count
    return ", ".join(items[:count]) + (f" and {more} more" if more > 0 else "")


def _missing(results: Sequence[Result]) -> list[FairnessIssue]:
    """Find scenes and seeds that some variants lack, and seeds that whole scenes lack."""
    variants, there = _each(results, lambda r: r.variant), {(run.variant, *run.pair_key) for run in results}
    gone = []
    for scene in _each(results, lambda r: r.scene):
        for seed in sorted(_each(results, lambda r: r.seed)):
            lacking = [variant for variant in variants if (variant, scene, seed) not in there]
            every = len(lacking) == len(variants)
            gone += [f"{who} / {scene} / seed {seed}" for who in (["every variant"] if every else lacking)]
    text = f"no finished run of {first_few(gone)}; the other runs are compared"
    return [FairnessIssue("missing runs", text)] if gone else []


def _within_scenes(topic: str, results: Sequence[Result], of: Callable[[Result], Any]) -> list[FairnessIssue]:
    """Find the scenes whose runs differ in a value that should be the same for all runs of a scene."""
    found = []
    for scene in _each(results, lambda r: r.scene):
        mine = [run for run in results if run.scene == scene]
        found += [FairnessIssue(topic, f"{scene}: {text}") for text in _describe_groups(mine, of)]
    return found


def _across(
    topic: str, results: Sequence[Result], of: Callable[[Result], Any], hint: str = ""
) -> list[FairnessIssue]:
    """Find differences in a value that should be the same for all runs.

    hint: what the difference means, where it affects only the costs; the issue is not severe then.
    """
    hint = f"; {hint}" if hint else ""
    return [FairnessIssue(topic, text + hint, not hint) for text in _describe_groups(results, of)]


def _describe_groups(results: Sequence[Result], of: Callable[[Result], Any]) -> list[str]:
    """Describe which runs have which value of `of`; [] where all have the same.

    Of values that are dictionaries only the entries that differ are described.
    """
    groups: dict[str, list[Result]] = {}
    for run in results:
        groups.setdefault(json.dumps(of(run), sort_keys=True, default=str), []).append(run)
    if len(groups) < 2:
        return []
    found = sorted(groups.items(), key=lambda group: -len(group[1]))
    values = [json.loads(text) for text, _ in found]
    tables = [value for value in values if isinstance(value, dict)]
    keys = [key for key in tables[0] if len({str(t.get(key)) for t in tables}) > 1] if tables else []
    groups_text = []
    for value, (_, runs) in zip(values, found, strict=True):
        lines = [f"{key} {_shorten(value.get(key))}" for key in keys] if isinstance(value, dict) else []
        text = first_few(lines, MAX_RUNS) if lines else _shorten(value)
        groups_text.append(f"{text} in {name_runs(runs, results)}")
    more = len(groups_text) - MAX_ITEMS
    return ["; ".join(groups_text[:MAX_ITEMS]) + (f"; and {more} more" if more > 0 else "")]


def _shorten(value: Any) -> str:
    """Return a value as text; of a SHA-256 the first 12 digits."""
    text = "nothing" if value is None else format_setting(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _targets(results: Sequence[Result]) -> list[FairnessIssue]:
    """Find scenes whose runs have different held-out views, or different target images of a view."""
    found = _within_scenes("held-out views", results, lambda r: sorted(str(v["view"]) for v in r.views))
    found = [
        FairnessIssue(d.topic, f"{d.message.partition(':')[0]}: runs have different views", True)
        for d in found
    ]
    seen: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for run in results:
        for view in run.views:
            place = seen.setdefault((run.scene, str(view["view"])), {})
            place.setdefault(str(view.get("target_sha256")), []).append(run)
    for scene in _each(results, lambda r: r.scene):
        split = {view: by for (where, view), by in seen.items() if where == scene and len(by) > 1}
        if split:
            view, by = next(iter(split.items()))
            few = min(by.values(), key=len)
            text = f"{scene}: {len(split)} views have different target images, such as {view} in "
            found.append(FairnessIssue("ground truth", text + name_runs(few, results)))
    return found


def _counts(results: Sequence[Result], baseline: str) -> list[FairnessIssue]:
    """Find variants that end with a different number of Gaussians than the baseline."""
    base = {run.pair_key: run.metrics.get("num_gaussians") for run in results if run.variant == baseline}
    apart: dict[str, list[float]] = {}
    for run in results:
        count, usual = run.metrics.get("num_gaussians"), base.get(run.pair_key)
        if count and usual and abs(count / usual - 1) > COUNT_TOLERANCE:
            apart.setdefault(run.variant, []).append(count / usual - 1)
    parts = []
    for name, by in apart.items():
        low, high = format_percent(min(by)), format_percent(max(by))
        parts.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    text = f"differs from {baseline} at the end: {'; '.join(parts)}; more Gaussians alone improve a metric"
    return [FairnessIssue("number of Gaussians", text)] if parts else []


def format_percent(fraction: float) -> str:
    """Return a relative difference as text, such as +3.1 %, −40 % or 0 %."""
    if abs(fraction) < 0.0005:
        return "0 %"
    text = f"{100 * fraction:+.0f}" if abs(fraction) >= 0.0995 else f"{100 * fraction:+.1f}"
    return text.replace("-", "−") + " %"


def _overrides(results: Sequence[Result], baseline: str) -> list[FairnessIssue]:
    """Find variants whose settings depend on the scene or the seed, or equal those of the baseline."""
    found, base = [], {run.pair_key: run.config for run in results if run.variant == baseline}
    for variant in _each(results, lambda r: r.variant):
        mine = [run for run in results if run.variant == variant]
        for scene in _each(mine, lambda r: r.scene):
            runs = [run for run in mine if run.scene == scene]
            if keys := {key for run in runs for key in differences(runs[0].config, run.config)}:
                text = f"{variant} / {scene}: {first_few(sorted(keys))} differ between seeds"
                found.append(FairnessIssue("settings", text))
        against = [differences(base[run.pair_key], run.config) for run in mine if run.pair_key in base]
        if variant == baseline or not against:
            continue
        values = {key: {_arrow(by.get(key)) for by in against} for by in against for key in by}
        if odd := sorted(key for key, pairs in values.items() if len(pairs) > 1):
            text = f"{variant}: {first_few(odd)} are overridden differently from scene to scene"
            found.append(FairnessIssue("per-scene overrides", text))
        if not values:
            text = f"{variant} has the same settings as {baseline}: only code or noise can differ"
            found.append(FairnessIssue("settings", text))
    return found + _scenes(results, baseline)


def _scenes(results: Sequence[Result], baseline: str) -> list[FairnessIssue]:
    """Find settings of the baseline that depend on the scene, apart from those of the data."""
    ours: dict[str, Any] = {}
    for run in results:
        if run.variant == baseline:
            ours.setdefault(run.scene, run.config)
    first = next(iter(ours.values()), {})
    keys = {key for config in ours.values() for key in differences(first, config)}
    lines = []
    for key in sorted(key for key in keys if key.partition(".")[0] != "data"):
        values = [f"{format_setting(config.get(key, ABSENT))} in {scene}" for scene, config in ours.items()]
        lines.append(f"{key} {', '.join(values)}")
    text = f"{baseline}, and so perhaps every variant: {first_few(lines)}"
    return [FairnessIssue("per-scene overrides", text, severe=False)] if lines else []


def _interrupted(results: Sequence[Result]) -> list[FairnessIssue]:
    """Find runs that were reduced or resumed, or whose code is in no commit."""
    reduced = [run for run in results if _of(run, "run", "oom_reductions")]
    resumed = [run for run in results if _of(run, "run", "resumed_at")]
    dirty = [run for run in results if str(_trained(run, "git") or "").endswith("-dirty")]
    found = [
        ("reduced runs", reduced, "ran out of memory and continued with less", True),
        (
            "resumed runs",
            resumed,
            "interrupted and resumed: seconds and peak memory are of several sessions",
            False,
        ),
        ("uncommitted code", dirty, "ran on a checkout that differs from its commit", False),
    ]
    return [
        FairnessIssue(topic, f"{name_runs(runs, results)}: {text}", severe)
        for topic, runs, text, severe in found
        if runs
    ]


def _unmeasured(results: Sequence[Result], metrics: Sequence[str]) -> list[FairnessIssue]:
    """Find metrics that some views lack."""
    found = []
    for name in metrics:
        if gone := [run for run in results if any(view.get(name) is None for view in run.views)]:
            text = (
                f"{name_runs(gone, results)}: no {name} of some views, which are left out of its comparison"
            )
            found.append(FairnessIssue("missing values", text))
    return found


def _arrow(pair: tuple[Any, Any] | None) -> str:
    return "" if pair is None else f"{format_setting(pair[0])} -> {format_setting(pair[1])}"


def _each(results: Sequence[Result], of: Callable[[Result], Any]) -> list[Any]:
    return list(dict.fromkeys(of(run) for run in results))


def _of(run: Result, part: str, name: str) -> Any:
    return (run.metrics.get(part) or {}).get(name)


def _trained(run: Result, name: str) -> Any:
    """Return a value that the training recorded, also where the run was evaluated again later."""
    return (run.metrics.get("trained_with") or run.metrics).get(name)


def _machine(run: Result) -> dict[str, Any]:
    hardware = _trained(run, "hardware") or {}
    return {name: hardware.get(name) for name in MACHINE}
