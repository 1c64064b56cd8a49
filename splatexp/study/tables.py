"""The tables of a report, as text that every form of it writes in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splatexp.study.fairness import named
from splatexp.study.findings import COSTS, NOTHING, TOLD, Findings, Metric, chance, decimal
from splatexp.study.results import Result, shown

BASELINE = "baseline"
MANY = 100  # seeds that nobody will run


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = field(default_factory=frozenset)  # columns that are set flush right


def verdict_table(findings: Findings, metric: Metric) -> Table:
    """A row a variant: its score, how far that is from the baseline's, whether it is noise, what it costs."""
    unit = f" {metric.unit}" if metric.unit else ""
    heading = ["variant", f"{metric.label}{unit}", "difference", "95 % interval", "p (Holm)", "p (ranks)"]
    heading += ["verdict", "Gaussians", "training s", "model MB"]
    rows = []
    for variant in findings.variants:
        found = findings.verdicts[metric.name].get(variant)
        row = [variant, metric.value(findings.mean(variant, metric.name))]
        if found is None:
            row += [NOTHING] * 4 + [BASELINE if variant == findings.baseline else "nothing to pair"]
        else:
            row += [metric.value(found.difference, True), metric.interval(found)]
            row += (
                [NOTHING] * 2 if found.verdict == "too few" else [chance(found.p_holm), chance(found.p_ranks)]
            )
            row += ["; ".join(filter(None, (TOLD.get(found.verdict, found.verdict), wanted(found))))]
        rows.append(
            [*row, *(findings.cost(variant, name) for name in ("num_gaussians", "train_seconds", "size"))]
        )
    return Table(heading, rows, frozenset({1, 2, 3, 4, 5, 7, 8, 9}))


def wanted(found: Any) -> str:
    """How many seeds would settle a comparison; nothing where that is not known."""
    count = found.seeds_needed
    return "" if not count else f"{count if count <= MANY else f'over {MANY}'} seeds would settle it"


def scene_table(findings: Findings, metric: Metric) -> Table:
    """The difference of every variant in every scene."""
    found = findings.verdicts[metric.name]
    rows = [
        [name, *(metric.value(found[name].per_scene.get(scene), True) for scene in findings.scenes)]
        for name in findings.others
        if name in found
    ]
    return Table(["variant", *findings.scenes], rows, frozenset(range(1, len(findings.scenes) + 1)))


def change_table(findings: Findings, variant: str) -> Table:
    """Settings in which a variant differs from the baseline; a part that one side lacks is one line."""
    rows = findings.changes(variant)
    scenes = any(row[3] for row in rows)
    heading = ["setting", findings.baseline, variant, *["in"] * scenes]
    return Table(heading, [row if scenes else row[:3] for row in rows])


def key_table(findings: Findings, variant: str) -> Table:
    """The same, every single setting of it."""
    rows = [[key, shown(before), shown(after)] for key, (before, after) in findings.keys(variant).items()]
    return Table(["setting", findings.baseline, variant], rows)


def cost_table(findings: Findings) -> Table:
    """What a variant costs, and how that compares with the baseline."""
    heading = ["variant"]
    for name in findings.costs:
        heading += [COSTS[name][0], "±"]
    rows = []
    for variant in findings.variants:
        row = [variant]
        for name in findings.costs:
            own = variant == findings.baseline
            row += [findings.cost(variant, name), "" if own else findings.against(variant, name)]
        rows.append(row)
    return Table(heading, rows, frozenset(range(1, len(heading))))


def run_table(findings: Findings) -> Table:
    """Every run with its means and its folder."""
    heading = ["variant", "scene", "seed", *(metric.label for metric in findings.metrics)]
    heading += ["Gaussians", "training s", "run", "folder"]
    rows = []
    for variant in findings.variants:
        for run in findings.runs(variant):
            means = [metric.value(run.metrics.get(metric.name)) for metric in findings.metrics]
            count, seconds = (run.metrics.get(name) for name in ("num_gaussians", "train_seconds"))
            told = [decimal(count, 0), decimal(seconds, 1)]
            which = str((run.metrics.get("run") or {}).get("id") or NOTHING)
            rows.append([variant, run.scene, str(run.seed), *means, *told, which, str(run.folder)])
    width = len(findings.metrics)
    return Table(heading, rows, frozenset({2, *range(3, 5 + width)}))


def provenance_table(findings: Findings) -> Table:
    """Where the numbers come from; what is not one for all is told with the runs that it is of."""
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
        rows += [["a run's command", " ".join(map(str, _trained(run).get("command") or [])) or NOTHING]]
    return Table(["what", "value"], rows)


def _lines(what: str, runs: Sequence[Result], of: Callable[[Result], Any]) -> list[list[str]]:
    groups: dict[str, list[Result]] = {}
    for run in runs:
        value = of(run)
        groups.setdefault(NOTHING if value is None else str(value), []).append(run)
    if len(groups) == 1:
        return [[what, text] for text in groups]
    return [[f"{what} ({named(by, runs)})", text] for text, by in groups.items()]


def _pairs(table: Any) -> str | None:
    """A table in one line."""
    if not isinstance(table, dict):
        return table if table is None else json.dumps(table)
    return ", ".join(f"{name} {shown(value)}" for name, value in table.items() if value is not None)


def _trained(run: Result) -> dict[str, Any]:
    """What the training ran on, also where it was measured again later."""
    return run.metrics.get("trained_with") or run.metrics
