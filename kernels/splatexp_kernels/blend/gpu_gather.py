"""From the sums of `blend`'s backward walk to gradients, in Triton (kernels/README.md, "On the GPU").

A Gaussian's slots are neighbours, in the order of its tiles. Their moments are moved from tile centres to
the Gaussian's mean and added up in an order that depends on their number alone: no atomics, the same bits
every time.
"""

import triton
import triton.language as tl

from splatexp_kernels.blend.gpu_tile import (
    AT_ONCE,
    CHUNK,
    RECORD,
    ROWS,
    exp2,
    items_of,
    slot_of,
    zeros,
)
from splatexp_kernels.launch import LN2, blocks

SLOT = tl.constexpr(12)  # words of a pair: g, gx, gy, gxx, gxy, gyy, |gradient| x, y, w v of 4 channels


def gathered(sums, records, tiles, lists, shape, size, v_abs):
    """Gradients of means2d, conics, colors and opacities; fills `v_abs` where it is given."""
    (C, N, D), (_, ranks, offsets, boxes, _) = shape, lists
    visible, tile = len(tiles.order), tiles.tile_width
    if len(ranks) >= CHUNK:
        grid = (len(ranks) // CHUNK,)
        _fold[grid](sums, ranks, offsets, boxes, records, *size, TILE=tile, CHUNK=CHUNK, num_warps=1)
    found = [sums.new_zeros(C, N, words) for words in (2, 3, D)] + [sums.new_zeros(C, N)]
    if visible:
        _gather[(blocks(visible, ROWS),)](
            sums, tiles.order, offsets, boxes, records, *found, found[0] if v_abs is None else v_abs,
            visible, *size,
            D=D, TILE=tile, CHUNK=CHUNK, ROWS=ROWS, AT_ONCE=AT_ONCE, ABS=v_abs is not None,
        )  # fmt: skip
    return found


@triton.jit
def _moments(sums, slot, held, shift_x, shift_y):
    """A slot's twelve sums, the moments about a point that lies -shift from where they were taken."""
    at = sums + slot * SLOT
    words = ()
    for k in tl.static_range(12):
        words = words + (tl.load(at + k, held, 0.0),)
    g, gx, gy, gxx, gxy, gyy, abs_x, abs_y, c0, c1, c2, c3 = words
    x, y = gx + shift_x * g, gy + shift_y * g
    xx, yy = gxx + shift_x * (gx + x), gyy + shift_y * (gy + y)
    return g, x, y, xx, gxy + shift_x * gy + shift_y * x, yy, abs_x, abs_y, c0, c1, c2, c3


@triton.jit
def middle(first, size, TILE: tl.constexpr):
    """From the edge of a tile's first pixel to the middle of its pixels inside the image, along one axis."""
    return tl.minimum(size - first, TILE).to(tl.float32) * 0.5


@triton.jit
def _shift(boxes, records, rank, place, width, height, TILE: tl.constexpr):
    """From a Gaussian's mean to the middle of the tile of its pair number `place`."""
    box, record = boxes + 4 * rank, records + rank * RECORD
    columns = tl.maximum(tl.load(box + 2).to(tl.int32), 1)
    left = (tl.load(box).to(tl.int32) + place % columns) * TILE
    top = (tl.load(box + 1).to(tl.int32) + place // columns) * TILE
    x, y = tl.load(record), tl.load(record + 1)
    return (
        left.to(tl.float32) + middle(left, width, TILE) - x,
        top.to(tl.float32) + middle(top, height, TILE) - y,
    )


@triton.jit
def _fold(sums, ranks, offsets, boxes, records, width, height, TILE: tl.constexpr, CHUNK: tl.constexpr):
    """A chunk that one Gaussian has to itself becomes one slot: large Gaussians do not hold up `_gather`."""
    begin = tl.program_id(0).to(tl.int64) * CHUNK
    rank = tl.load(ranks + begin).to(tl.int64)
    if tl.load(ranks + begin + CHUNK - 1) == rank:
        slot = begin + tl.arange(0, CHUNK)
        place = (slot - tl.load(offsets + rank)).to(tl.int32)
        shift_x, shift_y = _shift(boxes, records, rank, place, width, height, TILE)
        words = _moments(sums, slot, slot >= 0, shift_x, shift_y)
        for k in tl.static_range(12):
            tl.store(sums + begin * SLOT + k, tl.sum(words[k], 0))


@triton.jit(do_not_specialize=["count"])
def _gather(
    sums, order, offsets, boxes, records, v_means2d, v_conics, v_colors, v_opacities, v_abs,
    count, width, height,
    D: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
    ABS: tl.constexpr,
):  # fmt: skip
    """Adds up the slots of ROWS Gaussians, AT_ONCE of each at a time, and turns the sums into gradients."""
    rank = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    held = rank < count
    rank = tl.where(held, rank, 0)
    begin = tl.load(offsets + rank)
    head, whole, items = items_of(begin, tl.load(offsets + rank + 1), CHUNK)
    items = tl.where(held, items, 0)
    totals = zeros([ROWS, AT_ONCE], 12)
    item = tl.zeros([ROWS, AT_ONCE], tl.int64) + tl.arange(0, AT_ONCE)[None, :]
    most = tl.max(items, 0)
    k = most * 0
    while k < most:
        here = item < items[:, None]
        slot, folded = slot_of(item, begin[:, None], head[:, None], whole[:, None], CHUNK)
        place = tl.where(here, slot - begin[:, None], 0).to(tl.int32)
        shift_x, shift_y = _shift(boxes, records, rank[:, None], place, width, height, TILE)
        words = _moments(sums, slot, here, tl.where(folded, 0.0, shift_x), tl.where(folded, 0.0, shift_y))
        totals = _sum(totals, words)
        item += AT_ONCE
        k += AT_ONCE
    _write(totals, order, records, rank, held, v_means2d, v_conics, v_colors, v_opacities, v_abs, D, ABS)


@triton.jit
def _sum(totals, words):
    more = ()
    for k in tl.static_range(12):
        more = more + (totals[k] + words[k],)
    return more


@triton.jit
def _write(
    totals, order, records, rank, held, v_means2d, v_conics, v_colors, v_opacities, v_abs,
    D: tl.constexpr, ABS: tl.constexpr,
):  # fmt: skip
    """kernels/README.md, "blend": with A = -a/2 log2(e) and so on."""
    row, record = tl.load(order + rank, held, 0).to(tl.int64), records + rank * RECORD
    A, B, C, opacity = tl.load(record + 2), tl.load(record + 3), tl.load(record + 4), tl.load(record + 5)
    x, y = tl.sum(totals[1], 1), tl.sum(totals[2], 1)
    tl.store(v_means2d + 2 * row, (2 * A * x + B * y) * -LN2, held)
    tl.store(v_means2d + 2 * row + 1, (B * x + 2 * C * y) * -LN2, held)
    tl.store(v_conics + 3 * row, -0.5 * tl.sum(totals[3], 1), held)
    tl.store(v_conics + 3 * row + 1, -tl.sum(totals[4], 1), held)
    tl.store(v_conics + 3 * row + 2, -0.5 * tl.sum(totals[5], 1), held)
    seen = opacity > -100.0  # log2; what has no opacity is in no pixel
    inverse = exp2(-tl.where(seen, opacity, 0.0))
    tl.store(v_opacities + row, tl.where(seen, tl.sum(totals[0], 1) * inverse, 0.0), held)
    for c in tl.static_range(D):
        tl.store(v_colors + D * row + c, tl.sum(totals[8 + c], 1), held)
    if ABS:
        tl.store(v_abs + 2 * row, tl.sum(totals[6], 1) * LN2, held)
        tl.store(v_abs + 2 * row + 1, tl.sum(totals[7], 1) * LN2, held)
