"""The Pareto front of a sweep with several objectives, and a plot of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.io.atomic import write_text

if TYPE_CHECKING:
    from splatexp.io.svg_plot import Panel

# the metrics of which more is better; of all other objectives less is better
HIGHER_IS_BETTER = {
    "psnr",
    "psnr_u8",
    "ssim",
    "psnr_sim3",
    "ssim_sim3",
    "psnr_pose_opt",
    "ssim_pose_opt",
}
LABELS = {
    "psnr": "PSNR, dB",
    "psnr_u8": "PSNR of 8-bit images, dB",
    "psnr_pose_opt": "PSNR, poses optimized, dB",
    "ssim": "SSIM",
    "num_gaussians": "Gaussians",
    "train_seconds": "training time, s",
    "wall_seconds": "wall time, s",
    "peak_memory_bytes": "peak memory, bytes",
}
WIDTH, HEIGHT = 640, 420  # of the plot, px
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 46, 44  # margins, px
LOG_RATIO = 6.0  # an axis is logarithmic where the largest value is more than so many times the smallest
STYLE = """
svg { background: #fff; --ink: #1b1d22; --soft: #5a5f68; --rule: #e0e0da; --front: #0b66c3; --rest: #9a9ea6 }
@media (prefers-color-scheme: dark) {
  svg { background: #1a1c20; --ink: #e7e7e4; --soft: #a2a6ae; --rule: #30333a }
  svg { --front: #6db3ff; --rest: #7d828b }
}
text { font: 12px system-ui, sans-serif; fill: var(--soft) }
.axis, .title { font-size: 13px; fill: var(--ink) }
.grid { stroke: var(--rule); fill: none }
.line { stroke: var(--front); fill: none; stroke-width: 1.5 }
.s0 { color: var(--rest) } .s1 { color: var(--front) }
.mark path { fill: currentColor } .name { fill: var(--ink) }
"""


def pareto_front(points: Mapping[int, Sequence[float]], names: Sequence[str]) -> list[int]:
    """Return the jobs that no other job dominates.

    A job dominates another if it is better in one objective and no worse in all others.

    points: job number -> values of the objectives `names`.
    """
    signs = [1 if name in HIGHER_IS_BETTER else -1 for name in names]
    signed = {job: [s * v for s, v in zip(signs, values, strict=True)] for job, values in points.items()}
    return [
        job for job, own in signed.items() if not any(_dominates(other, own) for other in signed.values())
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def draw_pareto_front(
    path: Path,
    points: Mapping[int, Sequence[float]],
    names: Sequence[str],
    tooltips: Mapping[int, str],
    title: str,
) -> None:
    """Write a plot of the jobs as SVG: the first objective upwards, the second to the right.

    Of two objectives the front is drawn as a staircase.

    tooltips: job number -> text that is shown when the pointer rests on the job.
    Raises: OSError.
    """
    from splatexp.io.svg_plot import Panel, fit_scale, text_element

    front = set(pareto_front(points, names))
    xs = [values[1] for values in points.values()]
    ys = [values[0] for values in points.values()]
    log = min(xs) > 0 and max(xs) > LOG_RATIO * min(xs)
    panel = Panel(
        name=f"{title}: {names[0]} against {names[1]}",
        x=fit_scale(xs, LEFT, WIDTH - RIGHT, log),
        y=fit_scale(ys, HEIGHT - BOTTOM, TOP),
        x_label=LABELS.get(names[1], names[1]),
        width=WIDTH,
        height=HEIGHT,
    )
    panel.parts += [text_element(LABELS.get(names[0], names[0]), LEFT, TOP - 10, css="axis")]
    panel.parts += [text_element(title, WIDTH - RIGHT, TOP - 28, "end")]
    if len(names) == 2 and len(front) > 1:
        _draw_staircase(panel, sorted((points[job][1], points[job][0]) for job in front), names)
    for job in sorted(points, key=lambda job: job in front):  # those of the front last, on top
        y, x = points[job][:2]
        panel.point(int(job in front), x, y, f"job {job}: {tooltips.get(job, '')}", shape=0)
    for job in sorted(front, key=lambda job: points[job][1]):
        panel.label(1, points[job][1], points[job][0], f"#{job}")
    opening_tag = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    text = panel.svg().replace("<svg ", opening_tag, 1)
    write_text(path, text.replace(">", f"><style>{STYLE}</style>", 1) + "\n")


def _draw_staircase(panel: Panel, ends: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Draw the border between what the front reaches and what no job reaches."""
    corners = [ends[0]]
    for (x, y), (next_x, next_y) in zip(ends, ends[1:], strict=False):
        corner = (x, next_y) if names[1] in HIGHER_IS_BETTER else (next_x, y)
        corners += [corner, (next_x, next_y)]
        level = panel.y(corner[1])
        panel.crossed.append((panel.x(x), level - 2, panel.x(next_x), level + 2))  # keep labels off the line
    panel.line(1, corners, "no job is better in both")
