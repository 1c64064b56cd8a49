"""`blend2d` of one image, forward only, of numpy arrays through the CPU backend; needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splatexp_kernels import extension

__all__ = ["draw", "pairs_of"]

MODES = ("sum", "normalized")
TILE_SIZE = 16
Floats = NDArray[np.floating]


def pairs_of(means: Floats, radii: Floats, width: int, height: int) -> int:
    """Return an upper estimate of the pairs of tile and Gaussian that `draw` lists, 24 bytes each."""
    tiles = np.array([-(-width // TILE_SIZE), -(-height // TILE_SIZE)])
    low = np.floor((means - radii) / TILE_SIZE).clip(0, tiles)
    high = np.ceil((means + radii) / TILE_SIZE + 1).clip(0, tiles)
    return int((high - low).clip(0).prod(1).sum())


def draw(
    means: Floats,
    conics: Floats,
    radii: Floats,
    colors: Floats,
    width: int,
    height: int,
    *,
    mode: str = "sum",
    top_k: int = 0,
    background: Floats,
) -> Floats:
    """Draw N Gaussians of weight 1, as `blend2d` does.

    Args:
        means: [N,2] px; conics: [N,3] px^-2; radii: [N,2] px, above 0; colors: [N,D], D up to 8; all float32.
        width, height: size of the image, px.
        mode: sum or normalized; top_k: as in `blend2d`, at most 32.
        background: [D] float32.

    Returns: [height,width,D] float32.
    """
    cpu, (n, channels) = extension(), colors.shape
    across, down = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
    order, first = np.empty(n, np.int32), np.empty(n + 1, np.int64)
    rects = np.empty((n, 4), np.int16)
    visible, pairs = cpu.tiles_sort(
        means[None], radii[None], np.zeros((1, n), np.float32), width, height, TILE_SIZE, order, first, rects
    )
    ids, slots = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    starts, ends = np.empty(across * down, np.int64), np.empty(across * down, np.int64)
    cpu.tiles_fill(1, n, visible, across, down, 0, order, first, rects, ids, slots, starts, ends)
    lists = cpu.Lists(
        1, n, visible, pairs, width, height, TILE_SIZE, order, ids, slots, first, starts, ends
    )  # fmt: skip
    records = np.empty((visible, cpu.record_floats(channels)), np.float32)
    gates = np.empty((1, height, width, 2), np.float32) if top_k else None
    image = np.empty((1, height, width, channels), np.float32)
    total = np.empty((1, height, width, 1), np.float32)
    cpu.blend2d_forward(
        lists, MODES.index(mode), top_k, means[None], conics[None], colors[None],
        np.ones((1, n), np.float32), radii[None], background[None], records, gates, image, total,
    )  # fmt: skip
    return image[0]
