"""A model of a step's time, and the counts that it depends on.

    t = 75 ns N + 25-35 ns pairs + 0.26-0.36 ns tested + 0.41-0.62 ns composited + 17 ns pixels

was fitted to a prototype on 2 threads of a 3.6 GHz Zen 4 with AVX-512. `pairs` are those of 16x16 tile and
Gaussian, `tested` the pixels in the rows of a tile that a Gaussian's box reaches, `composited` those in rows
that its ellipse reaches. Both are counted to the end of each tile's list, also where the tile has become
opaque before.
"""

from __future__ import annotations

import torch
from workload import Workload

from splatexp_kernels.constants import ALPHA_MIN
from splatexp_kernels.project import Projection, project
from splatexp_kernels.tiles import Tiles, tiles

NANOSECONDS = {
    "gaussians": (75, 75),
    "pairs": (25, 35),
    "tested": (0.26, 0.36),
    "composited": (0.41, 0.62),
    "pixels": (17, 17),
}
CHUNK = 1 << 19  # pairs at a time


def milliseconds(counts: dict[str, int]) -> tuple[float, float]:
    """Return the low and high estimate of the model."""
    low, high = (sum(ns[i] * counts[name] for name, ns in NANOSECONDS.items()) / 1e6 for i in (0, 1))
    return low, high


@torch.no_grad()
def counts(w: Workload) -> dict[str, int]:
    """Return the counts that the model multiplies."""
    p = project(*list(w.params.values())[:4], w.viewmats, w.Ks, *w.size)
    t = tiles(p.means2d, p.radii, p.depths, *w.size)
    tile = torch.arange(len(t.starts)).repeat_interleave(t.ends - t.starts)
    tested = composited = 0
    for ids, own in zip(t.ids.split(CHUNK), tile.split(CHUNK), strict=True):
        box, ellipse = _rows(w, p, t, ids.long(), own)
        tested += box * t.tile_width
        composited += ellipse * t.tile_width
    return {
        "gaussians": len(w),
        "pairs": len(t.ids),
        "tested": tested,
        "composited": composited,
        "pixels": w.width * w.height,
    }


def _rows(w: Workload, p: Projection, t: Tiles, ids: torch.Tensor, tile: torch.Tensor) -> tuple[int, int]:
    """Return the numbers of rows of the pairs' tiles that the Gaussian's box reaches, and its ellipse alpha
    >= ALPHA_MIN.
    """
    splat = t.order[ids].long()
    (x, y), (a, b, c) = p.means2d[0, splat].unbind(-1), p.conics[0, splat].unbind(-1)
    power = 2 * torch.log(w.params["opacities"][splat] / ALPHA_MIN)
    left, top = tile % t.tiles_x * t.tile_width, tile // t.tiles_x * t.tile_height
    rows = top[:, None] + torch.arange(t.tile_height)
    dy = rows + 0.5 - y[:, None]
    inside = (dy.abs() <= p.radii[0, splat, 1:]) & (rows < w.height)
    middle = x[:, None] - b[:, None] * dy / a[:, None]
    square = (b[:, None] * dy) ** 2 - a[:, None] * (c[:, None] * dy**2 - power[:, None])
    reach = square.clamp_min(0).sqrt() / a[:, None]
    first = torch.maximum((middle - reach - 0.5).ceil(), left[:, None])
    last = torch.minimum((middle + reach - 0.5).floor(), left[:, None] + t.tile_width - 1)
    return int(inside.sum()), int((inside & (square >= 0) & (first <= last)).sum())
