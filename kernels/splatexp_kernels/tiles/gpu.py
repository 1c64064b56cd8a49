"""Depth order and tile lists in Triton and torch's radix sort (kernels/README.md, "On the GPU").

Gaussians are sorted by depth once; ranks are places in that order. Each rank's box of tiles is emitted as
pairs (tile, rank), and the pairs are sorted by tile alone, stably, so that ranks ascend within a tile.
Tile numbers of most images fit into 16 bits: two radix passes instead of the six that keys (tile, depth)
would take. A Gaussian's pairs are neighbours in emission order: `slots` leads from a tile's list back
there, and `blend` keeps its sums in that order. The host reads one pair of numbers, how long the lists
are.
"""

import torch
import triton
import triton.language as tl

from splatexp_kernels.launch import blocks
from splatexp_kernels.tiles.reference import Tiles

MAX_PAIRS = 2**31 - 1
RANKS = 256  # of a program that measures boxes
PAIRS = 1024  # of a program that emits: balanced over pairs, however many one Gaussian has
SHORT = 2**15 - 1  # tile numbers and coordinates up to here are 16 bits


def tiles(means2d, radii, depths, width, height, *, tile_size, per_tile_max) -> Tiles:
    C, N = depths.shape
    across, down = blocks(width, tile_size), blocks(height, tile_size)
    if C * N > MAX_PAIRS or max(across, down) > SHORT or C * across * down >= MAX_PAIRS:
        raise ValueError(
            f"tiles: {C} x {N} Gaussians in {width}x{height} exceed the indices of backend 'gpu'"
        )
    seen = (radii > 0).all(-1)
    order = _depth_order(depths, seen)
    boxes = torch.empty(C * N, 4, dtype=torch.int16, device=order.device)
    offsets = torch.zeros(C * N + 1, dtype=torch.int64, device=order.device)
    counts = torch.empty(C * N, dtype=torch.int32, device=order.device)
    if C * N:
        means2d, radii = means2d.contiguous(), radii.contiguous()
        _measure[(blocks(C * N, RANKS),)](
            means2d, radii, order, boxes, counts, C * N, width, height, across, down,
            TILE=tile_size, RANKS=RANKS,
        )  # fmt: skip
        torch.cumsum(counts, 0, out=offsets[1:])
    visible, pairs = torch.stack([seen.sum(), offsets[-1]]).tolist()  # the one wait for the device
    if pairs > MAX_PAIRS:
        raise ValueError(f"tiles: {pairs} pairs of tile and Gaussian exceed {MAX_PAIRS}; lower the size or N")
    order, boxes, offsets = order[:visible], boxes[:visible], offsets[: visible + 1]
    ranks, ids, slots, bounds = _lists(order, boxes, offsets, pairs, N, across, across * down, C)
    starts, ends = bounds[:-1], bounds[1:]
    if per_tile_max > 0:
        ends = torch.minimum(ends, starts + per_tile_max)
    backend_data = (slots, ranks, offsets, boxes, bounds, depths)
    return Tiles(order, ids, starts, ends, tile_size, tile_size, across, down, backend_data)


def _depth_order(depths, seen):
    """Return flat indices [C*N] int32 by camera, depth, index; Gaussians that are not seen come last."""
    C = len(depths)
    if C == 1:
        keys = torch.where(seen, depths, torch.nan).flatten()  # NaN goes behind infinity
    else:
        bits = (depths.contiguous() + 0.0).view(torch.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers that order as the floats do
        camera = torch.arange(C, device=depths.device)[:, None]
        keys = torch.where(seen, (camera << 32) + bits, C << 32).flatten()
    return keys.sort(stable=True).indices.int()


def _lists(order, boxes, offsets, pairs, N, across, per_image, C):
    """Return the ranks of the pairs as emitted; then, by tile, their ranks and where each was emitted; and
    the tiles' bounds.
    """
    device, tiles = order.device, C * per_image
    short = torch.int16 if tiles <= SHORT else torch.int32
    keys = torch.empty(pairs, dtype=short, device=device)
    ranks = torch.empty(pairs, dtype=torch.int32, device=device)
    if pairs:
        _emit[(blocks(pairs, PAIRS),)](
            order, boxes, offsets, keys, ranks, pairs, len(order), N, across, per_image,
            len(order).bit_length(), PAIRS=PAIRS,
        )  # fmt: skip
    keys, slots = keys.sort(stable=True)
    bounds = torch.searchsorted(keys, torch.arange(tiles + 1, dtype=short, device=device))
    return ranks, ranks[slots], slots.int(), bounds


@triton.jit(do_not_specialize=["count"])
def _measure(
    means2d, radii, order, boxes, counts, count, width, height, across, down,
    TILE: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """Store the tiles that contain a pixel centre of each Gaussian's box: first column and row, columns,
    rows.
    """
    rank = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    held = rank < count
    row = tl.load(order + rank, held, 0).to(tl.int64)
    column, columns = _span(means2d + 2 * row, radii + 2 * row, held, width, across, TILE)
    line, lines = _span(means2d + 2 * row + 1, radii + 2 * row + 1, held, height, down, TILE)
    any_tile = (columns > 0) & (lines > 0)
    tl.store(counts + rank, tl.where(any_tile, columns * lines, 0), held)
    box = boxes + 4 * rank.to(tl.int64)
    tl.store(box, column.to(tl.int16), held)
    tl.store(box + 1, line.to(tl.int16), held)
    tl.store(box + 2, columns.to(tl.int16), held)
    tl.store(box + 3, lines.to(tl.int16), held)


@triton.jit
def _span(means, radii, held, size, tiles, TILE: tl.constexpr):
    """Return the first tile along an axis that the interval reaches, and how many; 0 where it contains no
    pixel centre.
    """
    mean, radius = tl.load(means, held, 0.0), tl.load(radii, held, 0.0)
    low, high = mean - radius, mean + radius
    reaches = (low <= size - 0.5) & (high >= 0.5) & (radius > 0)
    low = tl.minimum(tl.maximum(tl.where(reaches, low, 0.0), 0.0), size - 0.5)
    high = tl.minimum(tl.where(reaches, high, 0.0), size - 0.5)
    first = (low / TILE).to(tl.int32)  # exact: TILE is a power of two
    first += (first * TILE + (TILE - 0.5) < low).to(tl.int32)  # between two tiles' pixel centres
    last = tl.minimum(((high - 0.5) / TILE).to(tl.int32), tiles - 1)
    return first, tl.where(reaches, last - first + 1, 0)


@triton.jit(do_not_specialize=["pairs", "visible", "N", "steps"])
def _emit(
    order, boxes, offsets, keys, ranks, pairs, visible, N, across, per_image, steps, PAIRS: tl.constexpr
):
    """Store tile and rank of each pair; the rank is found by bisection of the offsets, whose first halvings
    are cached.
    """
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    held = pair < pairs
    pair_ = tl.where(held, pair, 0)
    low = tl.zeros([PAIRS], tl.int32)
    high = tl.zeros([PAIRS], tl.int32) + (visible - 1)
    for _ in range(steps):
        middle = (low + high) // 2
        beyond = tl.load(offsets + middle + 1) <= pair_
        low, high = tl.where(beyond, middle + 1, low), tl.where(beyond, high, middle)
    place = (pair_ - tl.load(offsets + low)).to(tl.int32)
    box = boxes + 4 * low.to(tl.int64)
    columns = tl.load(box + 2).to(tl.int32)
    column = tl.load(box).to(tl.int32) + place % columns
    line = tl.load(box + 1).to(tl.int32) + place // columns
    image = tl.load(order + low) // N
    tl.store(keys + pair, (image * per_image + line * across + column).to(keys.dtype.element_ty), held)
    tl.store(ranks + pair, low, held)
