"""Depth order and tile lists in C++ (kernels/README.md, "tiles")."""

import torch

from splatexp_kernels import _cpu  # type: ignore[attr-defined]
from splatexp_kernels.tiles.reference import Tiles

MAX_PAIRS = 2**31 - 1


def tiles(means2d, radii, depths, width, height, *, tile_size, per_tile_max) -> Tiles:
    C, N = depths.shape
    tiles_x, tiles_y = -(-width // tile_size), -(-height // tile_size)
    if C * N > MAX_PAIRS or max(tiles_x, tiles_y) > 2**15 - 1:
        raise ValueError(
            f"tiles: {C} x {N} Gaussians in {width}x{height} exceed the indices of backend 'cpu'"
        )
    means2d, radii, depths = means2d.contiguous(), radii.contiguous(), depths.contiguous()
    order = torch.empty(C * N, dtype=torch.int32)
    first = torch.empty(C * N + 1, dtype=torch.int64)
    rects = torch.empty(C * N, 4, dtype=torch.int16)
    visible, pairs = _cpu.tiles_sort(means2d, radii, depths, width, height, tile_size, order, first, rects)
    if pairs > MAX_PAIRS:
        raise ValueError(f"tiles: {pairs} pairs of tile and Gaussian exceed {MAX_PAIRS}; lower the size or N")
    ids, slots = torch.empty(pairs, dtype=torch.int32), torch.empty(pairs, dtype=torch.int32)
    starts, ends = (torch.empty(C * tiles_x * tiles_y, dtype=torch.int64) for _ in range(2))
    _cpu.tiles_fill(
        C, N, visible, tiles_x, tiles_y, per_tile_max, order, first, rects, ids, slots, starts, ends
    )
    order, first = order[:visible], first[: visible + 1]
    return Tiles(order, ids, starts, ends, tile_size, tile_size, tiles_x, tiles_y, (slots, first, radii))
