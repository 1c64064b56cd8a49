"""The plots of a study: quality against cost, training curves, and every view against the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from splatexp.io.svg_plot import Panel, fit_scale
from splatexp.study.findings import COSTS, Findings, Metric, is_finite
from splatexp.study.results import Result

WIDTH, HEIGHT = 360, 230  # of a plot, px
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 8, 38  # margins, px
SCATTER_WIDTH, SCATTER_HEIGHT = 280, 220  # px
MAX_POINTS = 90  # of a curve
CURVES = {  # title -> columns of metrics.csv, of which the first that exists is plotted
    "Gaussians": ("num_gaussians",),
    "loss": ("train/loss_mean", "train/loss"),
    "PSNR of training views, dB,": ("train/psnr_mean", "train/psnr"),
}
LOG_RATIO = 6.0  # a scale is logarithmic where the largest value is more than so many times the smallest


@dataclass(frozen=True)
class Chart:
    """A plot and its title."""

    title: str
    svg: str


def tradeoffs(findings: Findings, metric: Metric, scene: str) -> list[Chart]:
    """Plot a metric against each cost: means over seeds, with bars of one standard deviation."""
    charts = []
    for cost in ("num_gaussians", "train_seconds", "size", "bpp"):
        heading, unit, _ = COSTS[cost]
        at = []
        for series, variant in enumerate(findings.variants):
            x, y = (
                findings.mean_and_std(variant, cost, scene),
                findings.mean_and_std(variant, metric.name, scene),
            )
            if x and y:
                at.append((series, variant, x[0] / unit, x[1] / unit, *y))
        if not at:
            continue
        ends = [x + side * dx for _, _, x, dx, _, _ in at for side in (-1, 1)]
        log = min(ends) > 0 and max(ends) > LOG_RATIO * min(ends)
        heights = [y + side * dy for *_, y, dy in at for side in (-1, 1)]
        panel = _panel(f"{metric.label} against {heading}, {scene}", ends, heights, heading, log)
        for series, _, *place in at:
            panel.bars(series, place[0], place[2], place[1], place[3])
        for series, variant, x, _, y, _ in at:
            panel.point(series, x, y, f"{variant}: {metric.value(y)} {metric.unit}, {heading} {x:,.6g}")
        for series, variant, x, _, y, _ in at:
            panel.label(series, x, y, variant)
        charts.append(Chart(f"{_named(metric)}, against {heading}", panel.svg()))
    return charts


def progress(findings: Findings, scene: str) -> list[Chart]:
    """Plot Gaussians, loss and training PSNR over steps: means over seeds, and bands from min to max."""
    charts = []
    for title, names in CURVES.items():
        curves = []
        for series, variant in enumerate(findings.variants):
            curve = _curve(findings.runs(variant, scene), names)
            if curve:
                curves.append((series, variant, curve))
        if not curves:
            continue
        heights = [value for *_, curve in curves for _, *rest in curve for value in rest]
        log = title == "loss" and min(heights) > 0 and max(heights) > LOG_RATIO * min(heights)
        steps = [step for *_, curve in curves for step, *_ in curve]
        panel = _panel(f"{title} over steps, {scene}", steps, heights, "step", log_y=log)
        for series, _, curve in curves:
            if any(low < high for _, low, _, high in curve):
                panel.band(series, [(step, low, high) for step, low, _, high in curve])
        for series, variant, curve in reversed(curves):
            panel.line(series, [(step, mean) for step, _, mean, _ in curve], variant)
        charts.append(Chart(f"{title} over steps", panel.svg()))
    return charts


def scatter(findings: Findings, metric: Metric) -> list[Chart]:
    """Plot the difference in every held-out view over the baseline's value, as means over seeds."""
    charts, clouds = (
        [],
        {variant: _cloud(findings, variant, metric.name) for variant in findings.compared_variants},
    )
    usual = [before for cloud in clouds.values() for *_, before, _ in cloud]
    for series, (variant, cloud) in enumerate(clouds.items(), 1):
        if not cloud:
            continue
        x = fit_scale(usual, LEFT, SCATTER_WIDTH - RIGHT)
        y = fit_scale([0.0, *(after - before for *_, before, after in cloud)], SCATTER_HEIGHT - BOTTOM, TOP)
        name = f"{metric.label} of every view, {variant} against {findings.baseline}"
        panel = Panel(name, x, y, f"{findings.baseline}, {_named(metric)}", SCATTER_WIDTH, SCATTER_HEIGHT)
        panel.zero()
        for scene, view, before, after in cloud:
            change = metric.value(after - before, True)
            told = f"{scene} {view}: {metric.value(before)}, {variant} {metric.value(after)} ({change})"
            panel.point(series, before, after - before, told, findings.scenes.index(scene))
        ahead = sum((b > a) == metric.higher_is_better and a != b for *_, a, b in cloud)
        charts.append(Chart(f"{variant}: better in {ahead} of {len(cloud)} views", panel.svg()))
    return charts


def _panel(
    name: str,
    xs: Sequence[float],
    ys: Sequence[float],
    x_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Panel:
    x = fit_scale(xs, LEFT, WIDTH - RIGHT, log_x, 0.06)
    y = fit_scale(ys, HEIGHT - BOTTOM, TOP, log_y)
    return Panel(name, x, y, x_label, WIDTH, HEIGHT)


def _named(metric: Metric) -> str:
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def _cloud(findings: Findings, variant: str, name: str) -> list[tuple[str, str, float, float]]:
    """Return scene, view, and the means of the baseline and of the variant over the seeds that both have."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for base, run in findings.paired_runs(variant):
        usual = {view["view"]: view.get(name) for view in base.views}
        for view in run.views:
            one, other = usual.get(view["view"]), view.get(name)
            if is_finite(one) and is_finite(other):
                found.setdefault((run.scene, str(view["view"])), []).append((one, other))
    return [(*place, fmean(a for a, _ in both), fmean(b for _, b in both)) for place, both in found.items()]


def _curve(runs: Sequence[Result], names: Sequence[str]) -> list[tuple[float, ...]]:
    """Return step, min, mean and max over the runs, averaged to at most `MAX_POINTS` points."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for step, value in _column(run, names):
            found.setdefault(step, []).append(value)
    points = [(step, min(by), fmean(by), max(by)) for step, by in sorted(found.items())]
    size = max(1, -(-len(points) // MAX_POINTS))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(map(fmean, zip(*part, strict=True))) for part in parts]


def _column(run: Result, names: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Yield the step and the value of each row, from the first of the columns that holds a number."""
    for row in run.log_rows:
        found = [number for name in ("step", *names) if is_finite(number := _number(row.get(name)))]
        if len(found) > 1 and _number(row.get("step")) == found[0]:
            yield found[0], found[1]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
