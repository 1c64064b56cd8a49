"""The tables of a report as text, for all of its formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splatexp.study.fairness import name_runs
from splatexp.study.findings import COSTS, DASH, VERDICT_TEXT, Findings, Metric, format_decimal, format_p
from splatexp.study.results import Result, format_setting

BASELINE = "baseline"
MAX_SEEDS_SHOWN = 100  # nobody runs more seeds


@dataclass(frozen=True)
class Table:
    """A table: rows of text under headings."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = field(default_factory=frozenset)  # columns that are aligned to the right


def verdict_table(findings: Findings, metric: Metric) -> Table:
    """Return a row per variant: metric, difference from the baseline, its significance, verdict and costs."""
    costs = ("num_gaussians", "train_seconds", "size")
    heading = [
        "variant",
        f"{metric.label} ({metric.unit})" if metric.unit else metric.label,
        "difference",
        "95 % interval",
        "p (Holm)",
        "p (Wilcoxon)",
        "verdict",
        *(COSTS[name][0] for name in costs),
    ]
    rows = []
    for variant in findings.variants:
        found = findings.verdicts[metric.name].get(variant)
        row = [variant, metric.value(findings.mean(variant, metric.name))]
        if found is None:
            row += [DASH] * 4 + [BASELINE if variant == findings.baseline else "no paired views"]
        else:
            row += [metric.value(found.difference, True), metric.interval(found)]
            if found.verdict == "too few":
                row += [DASH, DASH]
            else:
                row += [format_p(found.p_holm), format_p(found.p_wilcoxon)]
            verdict = VERDICT_TEXT.get(found.verdict, found.verdict)
            row.append("; ".join(filter(None, (verdict, seeds_needed_text(found)))))
        rows.append([*row, *(findings.cost(variant, name) for name in costs)])
    return Table(heading, rows, frozenset({1, 2, 3, 4, 5, 7, 8, 9}))


def seeds_needed_text(found: Any) -> str:
    """Return how many seeds are needed to find the difference; "" where the number is not known."""
    count = found.seeds_needed
    if not count:
        return ""
    return (
        f"about {count} seeds needed" if count <= MAX_SEEDS_SHOWN else f"over {MAX_SEEDS_SHOWN} seeds needed"
    )


def scene_table(findings: Findings, metric: Metric) -> Table:
    """Return the difference of every variant in every scene."""
    found = findings.verdicts[metric.name]
    rows = [
        [name, *(metric.value(found[name].per_scene.get(scene), True) for scene in findings.scenes)]
        for name in findings.compared_variants
        if name in found
    ]
    return Table(["variant", *findings.scenes], rows, frozenset(range(1, len(findings.scenes) + 1)))


def change_table(findings: Findings, variant: str) -> Table:
    """Return the settings that a variant changes; a part that only one run has is one row."""
    rows = findings.changes(variant)
    scenes = any(row[3] for row in rows)
    heading = ["setting", findings.baseline, variant, *["in"] * scenes]
    return Table(heading, [row if scenes else row[:3] for row in rows])


def key_table(findings: Findings, variant: str) -> Table:
    """Return every single setting that a variant changes."""
    rows = [
        [key, format_setting(before), format_setting(after)]
        for key, (before, after) in findings.setting_differences(variant).items()
    ]
    return Table(["setting", findings.baseline, variant], rows)


def cost_table(findings: Findings) -> Table:
    """Return the costs of every variant, absolute and relative to the baseline's."""
    heading = ["variant"]
    for name in findings.costs:
        heading += [COSTS[name][0], "vs. baseline"]
    rows = []
    for variant in findings.variants:
        row = [variant]
        for name in findings.costs:
            relative = "" if variant == findings.baseline else findings.relative_cost(variant, name)
            row += [findings.cost(variant, name), relative]
        rows.append(row)
    return Table(heading, rows, frozenset(range(1, len(heading))))


def run_table(findings: Findings) -> Table:
    """Return every run with its metrics and its folder."""
    heading = ["variant", "scene", "seed", *(metric.label for metric in findings.metrics)]
    heading += ["Gaussians", "training (s)", "run", "folder"]
    rows = []
    for variant in findings.variants:
        for run in findings.runs(variant):
            means = [metric.value(run.metrics.get(metric.name)) for metric in findings.metrics]
            count, seconds = (run.metrics.get(name) for name in ("num_gaussians", "train_seconds"))
            costs = [format_decimal(count, 0), format_decimal(seconds, 1)]
            run_id = str((run.metrics.get("run") or {}).get("id") or DASH)
            rows.append([variant, run.scene, str(run.seed), *means, *costs, run_id, str(run.folder)])
    width = len(findings.metrics)
    return Table(heading, rows, frozenset({2, *range(3, 5 + width)}))


def provenance_table(findings: Findings) -> Table:
    """Return code, packages, hardware and data; a value that not all runs share is shown with its runs."""
    runs = findings.results
    rows = [["study", findings.command]] if findings.command else []
    rows += _lines("code", runs, lambda run: _trained(run).get("code_sha256"))
    rows += _lines("git", runs, lambda run: _trained(run).get("git"))
    rows += _lines("packages", runs, lambda run: _pairs(_trained(run).get("packages")))
    rows += _lines("hardware", runs, lambda run: _pairs(_trained(run).get("hardware")))
    rows += _lines("steps", runs, lambda run: run.config.get("steps"))
    for scene in findings.scenes:
        mine = [run for run in runs if run.scene == scene]
        rows += _lines(f"protocol, {scene}", mine, lambda run: run.metrics.get("protocol"))
        rows += _lines(
            f"data, {scene}", mine, lambda run: (run.metrics.get("scene") or {}).get("data_sha256")
        )
    for run in findings.runs(findings.baseline)[:1]:
        rows += [["command of a run", " ".join(map(str, _trained(run).get("command") or [])) or DASH]]
    return Table(["item", "value"], rows)


def _lines(item: str, runs: Sequence[Result], of: Callable[[Result], Any]) -> list[list[str]]:
    """Return a row for each value of `of`, with the runs that have it where there are several values."""
    groups: dict[str, list[Result]] = {}
    for run in runs:
        value = of(run)
        groups.setdefault(DASH if value is None else str(value), []).append(run)
    if len(groups) == 1:
        return [[item, text] for text in groups]
    return [[f"{item} ({name_runs(by, runs)})", text] for text, by in groups.items()]


def _pairs(table: Any) -> str | None:
    """Return a dictionary as text in one line."""
    if not isinstance(table, dict):
        return table if table is None else json.dumps(table)
    return ", ".join(f"{name} {format_setting(value)}" for name, value in table.items() if value is not None)


def _trained(run: Result) -> dict[str, Any]:
    """Return what the training recorded, also where the run was evaluated again later."""
    return run.metrics.get("trained_with") or run.metrics
