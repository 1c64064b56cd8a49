"""Several objectives at once: the jobs that no other beats in everything, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from splatexp.io.atomic import write_text

GROWS = {"psnr", "psnr_u8", "ssim"}  # the more the better; of all others the less
GROWS |= {"psnr_carried", "ssim_carried", "psnr_aligned", "ssim_aligned"}
NAMES = {
    "psnr": "PSNR, dB",
    "psnr_u8": "PSNR of 8 bits, dB",
    "psnr_aligned": "PSNR, poses fitted, dB",
    "ssim": "SSIM",
    "num_gaussians": "Gaussians",
    "train_seconds": "training, s",
    "wall_seconds": "all of it, s",
    "peak_memory_bytes": "peak memory, bytes",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 420, 62, 20, 46, 44
WIDE = 6.0  # ratio of largest to least from which on an axis is logarithmic
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


def front(points: Mapping[int, Sequence[float]], names: Sequence[str]) -> list[int]:
    """Of jobs with their objectives, those that no other beats in one and equals in all the others."""
    signs = [1 if name in GROWS else -1 for name in names]
    signed = {job: [s * v for s, v in zip(signs, values, strict=True)] for job, values in points.items()}
    return [job for job, mine in signed.items() if not any(_beats(other, mine) for other in signed.values())]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def draw(
    path: Path,
    points: Mapping[int, Sequence[float]],
    names: Sequence[str],
    told: Mapping[int, str],
    title: str,
) -> None:
    """Write an SVG: the first objective upwards, the second to the right; the front in colour, as stairs.

    told: what is said of each job when the pointer rests on it.
    Raises: OSError.
    """
    from splatexp.io.svg_plot import Panel, spanning, write

    best = set(front(points, names))
    across, height = [values[1] for values in points.values()], [values[0] for values in points.values()]
    log = min(across) > 0 and max(across) > WIDE * min(across)
    panel = Panel(
        name=f"{title}: {names[0]} against {names[1]}",
        x=spanning(across, LEFT, WIDTH - RIGHT, log),
        y=spanning(height, HEIGHT - BOTTOM, TOP),
        x_label=NAMES.get(names[1], names[1]),
        width=WIDTH,
        height=HEIGHT,
    )
    panel.parts += [write(NAMES.get(names[0], names[0]), LEFT, TOP - 10, css="axis")]
    panel.parts += [write(title, WIDTH - RIGHT, TOP - 28, "end")]
    joined = sorted((points[job][1], points[job][0]) for job in best)
    if len(names) == 2 and len(joined) > 1:
        places = [joined[0]]
        for (x, y), (to, up) in zip(joined, joined[1:], strict=False):
            corner = (x, up) if names[1] in GROWS else (to, y)
            places += [corner, (to, up)]
            level = panel.y(corner[1])  # where no label should be
            panel.crossed.append((panel.x(x), level - 2, panel.x(to), level + 2))
        panel.line(1, places, "no job is better in both")
    for job in sorted(points, key=lambda job: job in best):  # the front on top
        y, x = points[job][:2]
        panel.point(int(job in best), x, y, f"job {job}: {told.get(job, '')}", shape=0)
    for job in sorted(best, key=lambda job: points[job][1]):
        panel.label(1, points[job][1], points[job][0], f"#{job}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
    text = panel.svg().replace("<svg ", head, 1)
    write_text(path, text.replace(">", f"><style>{STYLE}</style>", 1) + "\n")
