"""A study as a page that opens offline, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from splatexp.io import svg_plot
from splatexp.io.atomic import write_text
from splatexp.io.figures import ERROR_FULL, colormap
from splatexp.study import charts, pictures
from splatexp.study.fairness import listed
from splatexp.study.findings import TOLD, Findings, Metric, find, finite
from splatexp.study.results import Result
from splatexp.study.tables import (
    change_table,
    cost_table,
    key_table,
    provenance_table,
    run_table,
    scene_table,
    verdict_table,
    wanted,
)
from splatexp.study.text_report import latex, long_form, markdown, scope

HERE = Path(__file__).parent
BRIEF = 3  # parts that the verdict table names of what a variant changes
KINDS = {"better": "better", "worse": "worse", "within noise": "noise", "too few": "few"}
SIGNS = {"better": "▲", "worse": "▼", "within noise": "≈", "too few": "?"}
OUTLIER = 5.0  # times the median interval: what lies beyond does not set the scale of all bars


def write(
    folder: Path,
    title: str,
    baseline: str,
    results: Sequence[Result],
    *,
    metrics: Sequence[str] = ("psnr", "ssim"),
    description: str = "",
    command: str = "",
) -> Path:
    """Write report.html, report.md, results.csv and report.tex into `folder`; returns the page's path.

    Args:
        baseline: the variant that all others are compared with.
        metrics: of `per_view`; the first one chooses which views are shown.
        command: what makes the study again.

    Raises: ValueError for no metric, no run of the baseline, or two of one variant, scene and seed; OSError.
    """
    folder = Path(folder)
    findings = find(title, baseline, results, metrics, description, command)
    write_text(folder / "results.csv", long_form(findings))
    write_text(folder / "report.md", markdown(findings))
    write_text(folder / "report.tex", latex(findings))
    write_text(folder / "report.html", page(findings))
    return folder / "report.html"


def page(findings: Findings) -> str:
    """The report as one HTML file that needs nothing else, and lets nothing else in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    shelf = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = findings.metrics[0]
    found = pictures.pairs(findings, first)
    return shelf.get_template("page.html").render(
        findings=findings,
        scope=scope(findings),
        script=Markup(script),
        script_hash=digest,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        verdicts=[_verdict(findings, metric) for metric in findings.metrics],
        scenes=[(metric, scene_table(findings, metric)) for metric in findings.metrics],
        plots=[_plots(findings, first, scene) for scene in findings.scenes],
        scatter=_charts(charts.scatter(findings, first)),
        legend=[(Markup(svg_plot.key(n, line=True)), name) for n, name in enumerate(findings.variants)],
        shapes=[(Markup(svg_plot.key(0, shape=n)), name) for n, name in enumerate(findings.scenes)],
        pairs=found,
        without=pictures.missing(found),
        first=first,
        error_full=f"{ERROR_FULL:g}",
        ramp=", ".join(f"rgb({r} {g} {b})" for r, g, b in colormap()[::17].tolist()),
        changes=[(name, change_table(findings, name), key_table(findings, name)) for name in findings.others],
        cost=cost_table(findings),
        provenance=provenance_table(findings),
        runs=run_table(findings),
    )


@dataclass(frozen=True)
class Row:
    """A line of the verdict table."""

    variant: str
    cells: Sequence[str]  # as `verdict_table` has them
    kind: str  # class of the verdict
    sign: str
    verdict: str
    needed: str
    bar: Any  # the interval drawn; "" without one
    changes: Sequence[str]  # in brief
    count: int  # of them


def _verdict(findings: Findings, metric: Metric) -> dict[str, Any]:
    """A metric's table with its bars."""
    from markupsafe import Markup

    found = findings.verdicts[metric.name]
    ends = {name: (it.low, it.difference, it.high) for name, it in found.items()}
    ends = {name: three for name, three in ends.items() if all(map(finite, three))}
    reaches = [max(map(abs, three)) for three in ends.values()]
    bound = 1.08 * min(max(reaches), OUTLIER * median(reaches)) if any(reaches) else 1.0
    rows = []
    for cells in verdict_table(findings, metric).rows:
        variant, comparison = cells[0], found.get(cells[0])
        word = comparison.verdict if comparison else cells[6]
        kind = KINDS.get(word, "base")
        text = f"{cells[2]} {metric.unit}, interval {cells[3]}"
        bar = Markup(svg_plot.interval(*ends[variant], bound, kind, text)) if variant in ends else ""
        needed = wanted(comparison) if comparison else ""
        changes = findings.changes(variant)
        sign, brief = SIGNS.get(word, ""), briefly(changes)
        rows.append(Row(variant, cells, kind, sign, TOLD.get(word, word), needed, bar, brief, len(changes)))
    return {
        "metric": metric,
        "rows": rows,
        "ruler": Markup(svg_plot.ruler(bound)),
        "tally": findings.tally(metric),
    }


def briefly(changes: Sequence[tuple[str, ...]]) -> list[str]:
    """What a variant changes, in a line or three: each setting of a few, else the parts they belong to."""
    if len(changes) <= 2:
        return [f"{key} {after}" for key, _, after, *_ in changes]
    parts: dict[str, dict[str, None]] = {}
    for key, *_ in changes:
        head, _, rest = key.partition(".")
        parts.setdefault(head, {})[rest.partition(".")[0]] = None
    lines = []
    for head, by in parts.items():
        names = [name for name in by if name]
        lines.append(f"{head}: {listed(names, BRIEF)}" if names else head)
    return lines[:BRIEF]


def _plots(findings: Findings, metric: Metric, scene: str) -> tuple[str, list[tuple[str, Any]]]:
    return scene, _charts([*charts.tradeoffs(findings, metric, scene), *charts.progress(findings, scene)])


def _charts(found: Sequence[charts.Chart]) -> list[tuple[str, Any]]:
    from markupsafe import Markup

    return [(chart.title, Markup(chart.svg)) for chart in found]
