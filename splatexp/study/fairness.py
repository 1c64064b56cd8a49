"""What makes a comparison of runs unfair, found from what the runs say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from splatexp.study.results import ABSENT, Result, differences, shown

TOLERANCE = 0.01  # of the number of Gaussians
MOST, RUNS = 6, 3  # things that one doubt lists, and runs
MACHINE = ("cpu", "gpu", "cores", "threads", "isa", "cuda", "driver")


@dataclass(frozen=True)
class Doubt:
    """A reason not to take a comparison as it stands."""

    about: str  # such as "protocol"
    text: str  # which runs, and what they say
    grave: bool = True  # the numbers do not compare; else only the cost, or something to know


def doubts(
    results: Sequence[Result], baseline: str, metrics: Sequence[str] = ("psnr", "ssim")
) -> list[Doubt]:
    """Everything that is unfair in comparing `results` with those of `baseline`, grave ones first."""
    found = [
        *_missing(results),
        *_within_scenes("protocol", results, lambda r: r.metrics.get("protocol")),
        *_within_scenes("data", results, lambda r: _of(r, "scene", "data_sha256")),
        *_truths(results),
        *_within_scenes("steps", results, lambda r: r.config.get("steps")),
        *_counts(results, baseline),
        *_across("code", results, lambda r: _trained(r, "code_sha256")),
        *_across("packages", results, lambda r: _trained(r, "packages")),
        *_across("hardware", results, _machine, "seconds and memory compare on one machine alone"),
        *_overrides(results, baseline),
        *_parts(results),
        *_unmeasured(results, metrics),
    ]
    return sorted(found, key=lambda doubt: not doubt.grave)


def named(chosen: Iterable[Result], everything: Sequence[Result]) -> str:
    """Runs in few words: the variant alone, or with the scene, where all of its runs are meant."""
    names = {run.name for run in chosen}
    words: dict[str, None] = {}
    for run in everything:
        if run.name in names:
            alike = [other for other in everything if other.variant == run.variant]
            here = [other for other in alike if other.scene == run.scene]
            whole = all(other.name in names for other in alike)
            scene = f"{run.variant} / {run.scene}" if all(other.name in names for other in here) else run.name
            words[run.variant if whole else scene] = None
    return listed(list(words), RUNS if len(words) > MOST else MOST)


def listed(words: Sequence[str], most: int = MOST) -> str:
    """The first few of some words, and how many more there are."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")


def _missing(results: Sequence[Result]) -> list[Doubt]:
    """Scenes and seeds that some variants lack, and seeds that whole scenes lack."""
    variants, there = _each(results, lambda r: r.variant), {(run.variant, *run.key) for run in results}
    gone = []
    for scene in _each(results, lambda r: r.scene):
        for seed in sorted(_each(results, lambda r: r.seed)):
            lacking = [variant for variant in variants if (variant, scene, seed) not in there]
            every = len(lacking) == len(variants)
            gone += [f"{who} / {scene} / seed {seed}" for who in (["every variant"] if every else lacking)]
    text = f"no finished run of {listed(gone)}; what there is is compared"
    return [Doubt("missing runs", text)] if gone else []


def _within_scenes(about: str, results: Sequence[Result], of: Callable[[Result], Any]) -> list[Doubt]:
    """A doubt for every scene in which some runs say something else than most."""
    found = []
    for scene in _each(results, lambda r: r.scene):
        mine = [run for run in results if run.scene == scene]
        found += [Doubt(about, f"{scene}: {text}") for text in _odd(mine, of)]
    return found


def _across(about: str, results: Sequence[Result], of: Callable[[Result], Any], so: str = "") -> list[Doubt]:
    """A doubt where runs differ in what should be one for all; not grave if only the cost hangs on it."""
    return [Doubt(about, text + (f"; {so}" if so else ""), not so) for text in _odd(results, of)]


def _odd(results: Sequence[Result], of: Callable[[Result], Any]) -> list[str]:
    """What `of` says of which runs, where that is not the same of all; of tables the lines that differ."""
    groups: dict[str, list[Result]] = {}
    for run in results:
        groups.setdefault(json.dumps(of(run), sort_keys=True, default=str), []).append(run)
    if len(groups) < 2:
        return []
    found = sorted(groups.items(), key=lambda group: -len(group[1]))
    values = [json.loads(text) for text, _ in found]
    tables = [value for value in values if isinstance(value, dict)]
    keys = [key for key in tables[0] if len({str(t.get(key)) for t in tables}) > 1] if tables else []
    told = []
    for value, (_, runs) in zip(values, found, strict=True):
        lines = [f"{key} {_short(value.get(key))}" for key in keys] if isinstance(value, dict) else []
        told.append(f"{listed(lines, RUNS) if lines else _short(value)} in {named(runs, results)}")
    more = len(told) - MOST
    return ["; ".join(told[:MOST]) + (f"; and {more} more" if more > 0 else "")]


def _short(value: Any) -> str:
    text = "nothing" if value is None else shown(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _truths(results: Sequence[Result]) -> list[Doubt]:
    """The held-out views: the same ones, against the same pictures?"""
    found = _within_scenes("held-out views", results, lambda r: sorted(str(v["view"]) for v in r.views))
    found = [Doubt(d.about, f"{d.text.partition(':')[0]}: runs have different views", True) for d in found]
    seen: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for run in results:
        for view in run.views:
            place = seen.setdefault((run.scene, str(view["view"])), {})
            place.setdefault(str(view.get("truth_sha256")), []).append(run)
    for scene in _each(results, lambda r: r.scene):
        split = {view: by for (where, view), by in seen.items() if where == scene and len(by) > 1}
        if split:
            view, by = next(iter(split.items()))
            few = min(by.values(), key=len)
            text = f"{scene}: {len(split)} views were compared with other pictures, such as {view} in "
            found.append(Doubt("ground truth", text + named(few, results)))
    return found


def _counts(results: Sequence[Result], baseline: str) -> list[Doubt]:
    """Variants that end with another number of Gaussians than the baseline."""
    base = {run.key: run.metrics.get("num_gaussians") for run in results if run.variant == baseline}
    apart: dict[str, list[float]] = {}
    for run in results:
        count, usual = run.metrics.get("num_gaussians"), base.get(run.key)
        if count and usual and abs(count / usual - 1) > TOLERANCE:
            apart.setdefault(run.variant, []).append(count / usual - 1)
    words = []
    for name, by in apart.items():
        low, high = percent(min(by)), percent(max(by))
        words.append(f"{name} {low}" if low == high else f"{name} {low} to {high}")
    text = f"not as many as {baseline} at the end: {'; '.join(words)}; more Gaussians alone raise a score"
    return [Doubt("number of Gaussians", text)] if words else []


def percent(share: float) -> str:
    """A relative difference: +3.1 %, −40 %, 0 %."""
    if abs(share) < 0.0005:
        return "0 %"
    text = f"{100 * share:+.0f}" if abs(share) >= 0.0995 else f"{100 * share:+.1f}"
    return text.replace("-", "−") + " %"


def _overrides(results: Sequence[Result], baseline: str) -> list[Doubt]:
    """Variants that set something else from scene to scene or seed to seed, or nothing but the baseline's."""
    found, base = [], {run.key: run.config for run in results if run.variant == baseline}
    for variant in _each(results, lambda r: r.variant):
        mine = [run for run in results if run.variant == variant]
        for scene in _each(mine, lambda r: r.scene):
            runs = [run for run in mine if run.scene == scene]
            if keys := {key for run in runs for key in differences(runs[0].config, run.config)}:
                text = f"{variant} / {scene}: {listed(sorted(keys))} not the same for all seeds"
                found.append(Doubt("settings", text))
        against = [differences(base[run.key], run.config) for run in mine if run.key in base]
        if variant == baseline or not against:
            continue
        told = {key: {_arrow(by.get(key)) for by in against} for by in against for key in by}
        if odd := sorted(key for key, pairs in told.items() if len(pairs) > 1):
            text = f"{variant}: {listed(odd)} set otherwise in some scenes than in others"
            found.append(Doubt("per-scene overrides", text))
        if not told:
            text = f"{variant} has the settings of {baseline}: what differs is their code, or noise"
            found.append(Doubt("settings", text))
    return found + _scenes(results, baseline)


def _scenes(results: Sequence[Result], baseline: str) -> list[Doubt]:
    """What the baseline sets from scene to scene, the data's own settings apart."""
    ours: dict[str, Any] = {}
    for run in results:
        if run.variant == baseline:
            ours.setdefault(run.scene, run.config)
    first = next(iter(ours.values()), {})
    keys = {key for config in ours.values() for key in differences(first, config)}
    lines = []
    for key in sorted(key for key in keys if key.partition(".")[0] != "data"):
        values = [f"{shown(config.get(key, ABSENT))} in {scene}" for scene, config in ours.items()]
        lines.append(f"{key} {', '.join(values)}")
    text = f"{baseline}, and so perhaps every variant: {listed(lines)}"
    return [Doubt("per-scene overrides", text, grave=False)] if lines else []


def _parts(results: Sequence[Result]) -> list[Doubt]:
    """Runs that did not go through in one piece, or on code that is in no commit."""
    shrunk = [run for run in results if _of(run, "run", "shrunk")]
    resumed = [run for run in results if _of(run, "run", "resumed")]
    dirty = [run for run in results if str(_trained(run, "git") or "").endswith("-dirty")]
    told = [
        ("shrunk runs", shrunk, "ran out of memory and went on with less", True),
        (
            "resumed runs",
            resumed,
            "interrupted and resumed: seconds and peak memory are of several parts",
            False,
        ),
        ("uncommitted code", dirty, "ran on a checkout that differs from its commit", False),
    ]
    return [
        Doubt(about, f"{named(runs, results)}: {text}", grave) for about, runs, text, grave in told if runs
    ]


def _unmeasured(results: Sequence[Result], metrics: Sequence[str]) -> list[Doubt]:
    """Metrics that some views lack."""
    found = []
    for name in metrics:
        if gone := [run for run in results if any(view.get(name) is None for view in run.views)]:
            text = f"{named(gone, results)}: no {name} of some views, which are left out of its comparison"
            found.append(Doubt("missing values", text))
    return found


def _arrow(pair: tuple[Any, Any] | None) -> str:
    return "" if pair is None else f"{shown(pair[0])} -> {shown(pair[1])}"


def _each(results: Sequence[Result], of: Callable[[Result], Any]) -> list[Any]:
    return list(dict.fromkeys(of(run) for run in results))


def _of(run: Result, part: str, name: str) -> Any:
    return (run.metrics.get(part) or {}).get(name)


def _trained(run: Result, name: str) -> Any:
    """What the training ran on, also where it was measured again later."""
    return (run.metrics.get("trained_with") or run.metrics).get(name)


def _machine(run: Result) -> dict[str, Any]:
    hardware = _trained(run, "hardware") or {}
    return {name: hardware.get(name) for name in MACHINE}
