"""The report of a study as text: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

from splatexp.study.findings import Findings, is_finite
from splatexp.study.tables import (
    BASELINE,
    Table,
    change_table,
    cost_table,
    provenance_table,
    run_table,
    scene_table,
    verdict_table,
)

LATEX = {  # characters with a meaning in LaTeX, and those that fonts may lack
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "…": r"\dots{}",
}
KEY_COLUMNS = ("variant", "scene", "seed", "view")


def markdown(findings: Findings) -> str:
    """Return the whole report as Markdown."""
    parts = [f"# {_marked(findings.title)}", _marked(findings.description)]
    parts += [", ".join(_marked(word) for word in scope(findings))]
    if findings.issues:
        severe = any(issue.severe for issue in findings.issues)
        parts += ["## Fairness warnings" if severe else "## Notes"]
        parts += [
            "\n".join(f"- **{_marked(issue.topic)}**: {_marked(issue.message)}" for issue in findings.issues)
        ]
    parts += ["## Verdict"]
    for metric in findings.metrics:
        better = "higher is better" if metric.higher_is_better else "lower is better"
        parts += [f"### {metric.label} ({better})", _marked(findings.verdict_summary(metric))]
        parts += [_pipes(verdict_table(findings, metric))]
    if len(findings.scenes) > 1:
        parts += ["## Scene by scene"]
        for metric in findings.metrics:
            parts += [f"### {metric.label}, difference", _pipes(scene_table(findings, metric))]
    parts += ["## Changes of every variant"]
    for variant in findings.compared_variants:
        table = change_table(findings, variant)
        parts += [f"### {_marked(variant)}", _pipes(table) if table.rows else "No setting."]
    parts += [
        "## Cost",
        _pipes(cost_table(findings)),
        "Costs relative to the baseline are over the runs that both variants have.",
    ]
    parts += ["## Provenance", _pipes(provenance_table(findings))]
    parts += ["## Runs", _pipes(run_table(findings))]
    return "\n\n".join(part for part in parts if part) + "\n"


def scope(findings: Findings) -> list[str]:
    """Return the numbers of variants, scenes, seeds, runs and views in words, and the baseline."""
    views = len({(run.scene, view["view"]) for run in findings.results for view in run.views})
    counts = [
        (len(findings.variants), "variant"),
        (len(findings.scenes), "scene"),
        (len(findings.seeds), "seed"),
    ]
    counts += [(len(findings.results), "run"), (views, "held-out view")]
    return [f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts] + [
        f"baseline {findings.baseline}"
    ]


def results_csv(findings: Findings) -> str:
    """Return CSV with a row for each held-out view of each run, with all of its metrics."""
    metrics = dict.fromkeys(
        name
        for run in findings.results
        for view in run.views
        for name, value in view.items()
        if is_finite(value) and name not in ("width", "height")
    )
    heading = [*KEY_COLUMNS, *metrics, "target_sha256", "num_gaussians", "train_seconds", "wall_seconds"]
    heading += ["peak_memory_bytes", "model_bytes", "protocol", "code_sha256"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heading)
    for run in findings.results:
        known = run.metrics | {"model_bytes": run.size}
        for view in run.views:
            names = [run.variant, run.scene, run.seed, view["view"]]
            values = [view.get(name) for name in (*metrics, "target_sha256")]
            writer.writerow(
                [*names, *values, *(known.get(name) for name in heading[len(names) + len(values) :])]
            )
    return file.getvalue()


def latex(findings: Findings) -> str:
    """Return the verdicts as LaTeX: a table for each metric, for the package booktabs."""
    lines = ["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}"]
    for metric in findings.metrics:
        table = verdict_table(findings, metric)
        align = "".join("r" if column in table.numbers else "l" for column in range(len(table.heading)))
        title = f"{findings.title}: {metric.label} against {findings.baseline}"
        lines += ["\\begin{table}", "  \\centering\\small", f"  \\caption{{{_tex(title)}}}"]
        lines += [f"  \\begin{{tabular}}{{{align}}}", "    \\toprule"]
        lines += [_row(table.heading, _tex), "    \\midrule"]
        for row in table.rows:
            cells = [*row[:6], row[6].partition(";")[0], *row[7:]]
            lines += [_row(cells, _tex)] + (["    \\midrule"] if row[6] == BASELINE else [])
        lines += ["    \\bottomrule", "  \\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str], escaped: Callable[[str], str]) -> str:
    return "    " + " & ".join(map(escaped, cells)) + r" \\"


def _tex(text: str) -> str:
    """Escape text for LaTeX; braces keep an initial bracket from being an option of the line break before."""
    escaped = "".join(LATEX.get(letter, letter) for letter in _line(text))
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped


def _pipes(table: Table) -> str:
    """Return a table as Markdown."""
    rule = ["---:" if column in table.numbers else "---" for column in range(len(table.heading))]
    rows = [[_marked(cell) for cell in row] for row in (table.heading, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _marked(text: str) -> str:
    """Escape text for Markdown, so that it is shown letter by letter."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", _line(text)).replace("&", "&amp;")


def _line(text: str) -> str:
    return " ".join(str(text).split())
