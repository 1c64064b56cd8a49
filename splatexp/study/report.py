"""The report of a study: a web page that opens offline, Markdown, CSV and LaTeX."""

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
from splatexp.io.figures import MAX_ERROR, colormap
from splatexp.study import charts, view_images
from splatexp.study.fairness import first_few
from splatexp.study.findings import VERDICT_TEXT, Findings, Metric, analyze, is_finite
from splatexp.study.results import Result
from splatexp.study.tables import (
    change_table,
    cost_table,
    key_table,
    provenance_table,
    run_table,
    scene_table,
    seeds_needed_text,
    verdict_table,
)
from splatexp.study.text_report import latex, markdown, results_csv, scope

HERE = Path(__file__).parent
MAX_CHANGES = 3  # changes of a variant that the verdict table lists
CSS_CLASSES = {"better": "better", "worse": "worse", "within noise": "noise", "too few": "few"}
SIGNS = {"better": "▲", "worse": "▼", "within noise": "≈", "too few": "?"}
OUTLIER = 5.0  # an interval longer than so many median intervals does not set the scale of the bars


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
    """Write report.html, report.md, results.csv and report.tex into `folder`, and return the page's path.

    Args:
        baseline: the variant with which all others are compared.
        metrics: names in `per_view`; the first one decides which views are shown.
        command: the command line that runs the study again.

    Raises: ValueError for no metric, no run of the baseline, or two runs of one variant, scene and seed;
    OSError.
    """
    folder = Path(folder)
    findings = analyze(title, baseline, results, metrics, description, command)
    write_text(folder / "results.csv", results_csv(findings))
    write_text(folder / "report.md", markdown(findings))
    write_text(folder / "report.tex", latex(findings))
    write_text(folder / "report.html", page(findings))
    return folder / "report.html"


def page(findings: Findings) -> str:
    """Return the report as one HTML file that loads nothing else, which its security policy also forbids."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = findings.metrics[0]
    found = view_images.compare_views(findings, first)
    return environment.get_template("page.html").render(
        findings=findings,
        scope=scope(findings),
        script=Markup(script),
        script_hash=digest,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        verdicts=[_verdict(findings, metric) for metric in findings.metrics],
        scenes=[(metric, scene_table(findings, metric)) for metric in findings.metrics],
        plots=[_plots(findings, first, scene) for scene in findings.scenes],
        scatter=_charts(charts.scatter(findings, first)),
        legend=[
            (Markup(svg_plot.legend_key(n, line=True)), name) for n, name in enumerate(findings.variants)
        ],
        shapes=[(Markup(svg_plot.legend_key(0, shape=n)), name) for n, name in enumerate(findings.scenes)],
        pairs=found,
        missing=view_images.missing_reasons(found),
        first=first,
        max_error=f"{MAX_ERROR:g}",
        ramp=", ".join(f"rgb({r} {g} {b})" for r, g, b in colormap()[::17].tolist()),
        changes=[
            (name, change_table(findings, name), key_table(findings, name))
            for name in findings.compared_variants
        ],
        cost=cost_table(findings),
        provenance=provenance_table(findings),
        runs=run_table(findings),
    )


@dataclass(frozen=True)
class Row:
    """A row of the verdict table."""

    variant: str
    cells: Sequence[str]  # a row of `verdict_table`
    kind: str  # CSS class of the verdict
    sign: str
    verdict: str
    needed: str  # seeds that are needed
    bar: Any  # drawing of the interval; "" without one
    changes: Sequence[str]  # a summary
    count: int  # of changes


def _verdict(findings: Findings, metric: Metric) -> dict[str, Any]:
    """Return the table of a metric with bars of the intervals."""
    from markupsafe import Markup

    found = findings.verdicts[metric.name]
    ends = {name: (it.low, it.difference, it.high) for name, it in found.items()}
    ends = {name: three for name, three in ends.items() if all(map(is_finite, three))}
    reaches = [max(map(abs, three)) for three in ends.values()]
    bound = 1.08 * min(max(reaches), OUTLIER * median(reaches)) if any(reaches) else 1.0
    rows = []
    for cells in verdict_table(findings, metric).rows:
        variant, comparison = cells[0], found.get(cells[0])
        word = comparison.verdict if comparison else cells[6]
        kind = CSS_CLASSES.get(word, "base")
        text = f"{cells[2]} {metric.unit}, interval {cells[3]}"
        bar = Markup(svg_plot.interval_bar(*ends[variant], bound, kind, text)) if variant in ends else ""
        needed = seeds_needed_text(comparison) if comparison else ""
        changes = findings.changes(variant)
        sign, brief = SIGNS.get(word, ""), briefly(changes)
        rows.append(
            Row(variant, cells, kind, sign, VERDICT_TEXT.get(word, word), needed, bar, brief, len(changes))
        )
    return {
        "metric": metric,
        "rows": rows,
        "ruler": Markup(svg_plot.interval_axis(bound)),
        "tally": findings.verdict_summary(metric),
    }


def briefly(changes: Sequence[tuple[str, ...]]) -> list[str]:
    """Summarize the changes of a variant in three lines: up to two settings, otherwise the parts changed."""
    if len(changes) <= 2:
        return [f"{key} {after}" for key, _, after, *_ in changes]
    parts: dict[str, dict[str, None]] = {}
    for key, *_ in changes:
        head, _, rest = key.partition(".")
        parts.setdefault(head, {})[rest.partition(".")[0]] = None
    lines = []
    for head, by in parts.items():
        names = [name for name in by if name]
        lines.append(f"{head}: {first_few(names, MAX_CHANGES)}" if names else head)
    return lines[:MAX_CHANGES]


def _plots(findings: Findings, metric: Metric, scene: str) -> tuple[str, list[tuple[str, Any]]]:
    return scene, _charts([*charts.tradeoffs(findings, metric, scene), *charts.progress(findings, scene)])


def _charts(found: Sequence[charts.Chart]) -> list[tuple[str, Any]]:
    from markupsafe import Markup

    return [(chart.title, Markup(chart.svg)) for chart in found]
