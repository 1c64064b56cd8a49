"""The plots of a study: quality against cost, training as it went, every view against the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from splatexp.io.svg_plot import Panel, spanning
from splatexp.study.findings import COSTS, Findings, Metric, finite
from splatexp.study.results import Result

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 44, 14, 8, 38
SMALL, HIGH = 280, 220
POINTS = 90  # of a curve
CURVES = {  # title -> columns of metrics.csv, the first that there is
    "Gaussians": ("num_gaussians",),
    "loss": ("loss_mean", "loss"),
    "PSNR of training views, dB,": ("psnr_mean", "psnr"),
}
LOG = 6.0  # ratio of largest to least from which on a scale is logarithmic


@dataclass(frozen=True)
class Chart:
    """A plot and its heading."""

    title: str
    svg: str


def tradeoffs(findings: Findings, metric: Metric, scene: str) -> list[Chart]:
    """A metric against Gaussians, seconds and bytes: means over seeds, bars of one standard deviation."""
    charts = []
    for cost in ("num_gaussians", "train_seconds", "size", "bpp"):
        heading, unit, _ = COSTS[cost]
        at = []
        for series, variant in enumerate(findings.variants):
            x, y = findings.spread(variant, cost, scene), findings.spread(variant, metric.name, scene)
            if x and y:
                at.append((series, variant, x[0] / unit, x[1] / unit, *y))
        if not at:
            continue
        ends = [x + side * dx for _, _, x, dx, _, _ in at for side in (-1, 1)]
        log = min(ends) > 0 and max(ends) > LOG * min(ends)
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
    """Gaussians, loss and training PSNR over steps: means over seeds, and from the least to the largest."""
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
        log = title == "loss" and min(heights) > 0 and max(heights) > LOG * min(heights)
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
    """Every held-out view of every variant: the baseline across, the difference up; means over seeds."""
    charts, clouds = [], {variant: _cloud(findings, variant, metric.name) for variant in findings.others}
    usual = [before for cloud in clouds.values() for *_, before, _ in cloud]
    for series, (variant, cloud) in enumerate(clouds.items(), 1):
        if not cloud:
            continue
        x = spanning(usual, LEFT, SMALL - RIGHT)
        y = spanning([0.0, *(after - before for *_, before, after in cloud)], HIGH - BOTTOM, TOP)
        name = f"{metric.label} of every view, {variant} against {findings.baseline}"
        panel = Panel(name, x, y, f"{findings.baseline}, {_named(metric)}", SMALL, HIGH)
        panel.zero()
        for scene, view, before, after in cloud:
            change = metric.value(after - before, True)
            told = f"{scene} {view}: {metric.value(before)}, {variant} {metric.value(after)} ({change})"
            panel.point(series, before, after - before, told, findings.scenes.index(scene))
        ahead = sum((b > a) == metric.higher_is_better and a != b for *_, a, b in cloud)
        charts.append(Chart(f"{variant}: better in {ahead} of {len(cloud)} views", panel.svg()))
    return charts


def _panel(
    name: str, xs: Sequence[float], ys: Sequence[float], x_label: str,
    log_x: bool = False, log_y: bool = False,
) -> Panel:  # fmt: skip
    x = spanning(xs, LEFT, WIDTH - RIGHT, log_x, 0.06)
    y = spanning(ys, HEIGHT - BOTTOM, TOP, log_y)
    return Panel(name, x, y, x_label, WIDTH, HEIGHT)


def _named(metric: Metric) -> str:
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def _cloud(findings: Findings, variant: str, name: str) -> list[tuple[str, str, float, float]]:
    """Scene, view, and the means of the baseline and the variant over the seeds that both have."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for base, run in findings.paired(variant):
        usual = {view["view"]: view.get(name) for view in base.views}
        for view in run.views:
            one, other = usual.get(view["view"]), view.get(name)
            if finite(one) and finite(other):
                found.setdefault((run.scene, str(view["view"])), []).append((one, other))
    return [(*place, fmean(a for a, _ in both), fmean(b for _, b in both)) for place, both in found.items()]


def _curve(runs: Sequence[Result], names: Sequence[str]) -> list[tuple[float, ...]]:
    """Step, and least, mean and largest over the runs, in at most `POINTS` means over stretches."""
    found: dict[float, list[float]] = {}
    for run in runs:
        for step, value in _column(run, names):
            found.setdefault(step, []).append(value)
    points = [(step, min(by), fmean(by), max(by)) for step, by in sorted(found.items())]
    size = max(1, -(-len(points) // POINTS))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(map(fmean, zip(*part, strict=True))) for part in parts]


def _column(run: Result, names: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Step and value of the first of some columns that a row has a number in."""
    for row in run.rows:
        found = [number for name in ("step", *names) if finite(number := _number(row.get(name)))]
        if len(found) > 1 and _number(row.get("step")) == found[0]:
            yield found[0], found[1]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
