"""Depth order and binning into screen tiles, in plain torch: every Gaussian is tested against every tile."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tiles(NamedTuple):
    """The Gaussians that each tile blends, front to back; tiles are ordered by camera, then row, then
    column.
    """

    order: Tensor  # [V] int32, c*N+n of the visible Gaussians, by camera, then depth, then n
    ids: Tensor  # [P] int32, ranks into `order`, tile after tile, ascending inside each
    starts: Tensor  # [T] int64, where a tile's ids start, T = C * tiles_y * tiles_x
    ends: Tensor  # [T] int64, one past where they end
    tile_width: int  # px
    tile_height: int  # px
    tiles_x: int
    tiles_y: int
    backend_data: tuple[Tensor, ...] = ()  # further data of the backend that made them, for its `blend`


@torch.no_grad()
def tiles(means2d, radii, depths, width, height, *, tile_size, per_tile_max) -> Tiles:
    C, N = depths.shape
    tiles_x, tiles_y = -(-width // tile_size), -(-height // tile_size)
    camera, row = (radii > 0).all(-1).nonzero(as_tuple=True)
    by_depth = depths[camera, row].argsort(stable=True)
    order = by_depth[camera[by_depth].argsort(stable=True)]
    camera, row = camera[order], row[order]

    low, high = (means2d - radii)[camera, row], (means2d + radii)[camera, row]
    across = _overlap(low[:, 0], high[:, 0], tile_size, tiles_x, width)  # [V, tiles_x]
    down = _overlap(low[:, 1], high[:, 1], tile_size, tiles_y, height)  # [V, tiles_y]
    own = camera == torch.arange(C, device=camera.device)[:, None]  # [C, V]
    held = own[:, None, None, :] & down.T[None, :, None, :] & across.T[None, None, :, :]
    held = held.flatten(0, 2)  # [T, V]
    if per_tile_max > 0:
        held &= held.cumsum(1) <= per_tile_max
    ends = held.sum(1).cumsum(0)
    ids = held.nonzero()[:, 1]
    order = camera * N + row
    starts = ends - held.sum(1)
    return Tiles(order.int(), ids.int(), starts, ends, tile_size, tile_size, tiles_x, tiles_y)


def _overlap(low, high, tile_size, count, size):
    """Return [V, count] bool: whether an interval contains a pixel centre of a tile, along one axis."""
    first = torch.arange(count, device=low.device) * tile_size
    last = (first + tile_size).clamp_max(size)
    return (low[:, None] <= last - 0.5) & (high[:, None] >= first + 0.5)
