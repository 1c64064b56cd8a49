"""Helpers that the Triton kernels of `blend` and `attribute` share: records, pixels of a tile, alphas, slots.

A program takes a tile, and its Gaussians in blocks of G: tensors are [G, P], P the tile's pixels. Triton
spreads P over lanes and warps and leaves the whole axis G to each thread, so whatever runs along G, the
transmittance above all, is a chain of registers without an exchange between threads, and a Gaussian's
numbers are loads that all threads share. The exponent is no matrix product: [G, 6] @ [6, P] would take
three of them in tf32 to be exact enough, where three or four multiply-adds do, of offsets from the mean,
which cannot cancel.
"""

import math

import triton
import triton.language as tl

from splatexp_kernels import constants
from splatexp_kernels.launch import (
    ALPHA_MAX,
    INTERPRETED,
    LOG2E,
    T_MIN,
    blocks,
    columns,
    store_rows,
)

RECORD = tl.constexpr(12)  # words of a Gaussian: mean x, y, A, B; C, log2 opacity, colours 0, 1; colours 2, 3
MAX_CHANNELS = 4
LOG2_ALPHA_MIN = tl.constexpr(math.log2(constants.ALPHA_MIN))
LOG2_ALPHA_MAX = tl.constexpr(math.log2(constants.ALPHA_MAX))
NEVER = tl.constexpr(-1000.0)  # log2 of the opacity of what fills up a block
CHUNK = 64  # slots that `fold` kernels sum up where one Gaussian has them all
ROWS, AT_ONCE = 16, 8  # Gaussians of a program that adds up slots, and slots of each at a time
_INTERPRETED = tl.constexpr(INTERPRETED)
_PACKED = 256


def records_of(tiles, means2d, conics, colors, opacities):
    """[V + 1, 12] what blending needs of each visible Gaussian, by rank, with exponents in powers of two.

    The last one is nowhere to be seen: it fills up blocks, for less than a mask costs.
    """
    visible = len(tiles.order)
    records = means2d.new_empty(visible + 1, RECORD.value)
    if visible:
        inputs = (tensor.contiguous() for tensor in (means2d, conics, opacities.log2(), colors))
        grid = (blocks(visible + 1, _PACKED),)
        _pack[grid](tiles.order, *inputs, records, visible, D=colors.shape[2], BLOCK=_PACKED)
    return records


def quads_of(records):
    """The three pointers to a record's words: apart, so that each address is one multiply-add."""
    flat = records.view(-1)
    return flat, flat[4:], flat[8:]


def private_of(tiles, shape):
    """Return what `tiles` of this backend left for `blend`: slots, ranks, offsets, boxes, bounds."""
    if len(tiles.backend_data) != 6:
        raise ValueError("tiles: expected lists of backend 'gpu', got those of a different backend")
    *lists, depths = tiles.backend_data
    if depths.shape != shape:
        raise ValueError(f"tiles: expected those of {list(shape)} Gaussians, got {list(depths.shape)}")
    return lists


@triton.jit(do_not_specialize=["count"])
def _pack(
    order, means2d, conics, log2_opacities, colors, records, count, D: tl.constexpr, BLOCK: tl.constexpr
):
    rank = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    held = rank <= count
    row = tl.load(order + rank, rank < count, 0).to(tl.int64)
    opacity = tl.where(rank < count, tl.load(log2_opacities + row), NEVER)
    x, y = tl.load(means2d + 2 * row), tl.load(means2d + 2 * row + 1)
    a, b, c = tl.load(conics + 3 * row), tl.load(conics + 3 * row + 1), tl.load(conics + 3 * row + 2)
    shades = ()
    for k in tl.static_range(6):
        shades = shades + (tl.load(colors + D * row + k) if k < D else tl.zeros([BLOCK], tl.float32),)
    record = records + rank.to(tl.int64) * RECORD
    store_rows(record, (x, y, a * (-0.5 * LOG2E), b * -LOG2E), held)
    store_rows(record + 4, (c * (-0.5 * LOG2E), opacity, shades[0], shades[1]), held)
    store_rows(record + 8, (shades[2], shades[3], shades[4], shades[5]), held)


@triton.jit
def exp2(x):
    """2^x as the hardware has it: what underflows is 0."""
    if _INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def reciprocal(x):
    """1/x as the hardware has it, off by one unit in the last place."""
    if _INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def pick(x, at):
    """Row [P] of x [G, P] where `at` [G, 1] holds; a thread has all of G, so this costs nothing."""
    return tl.sum(tl.where(at, x.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def zeros(shape: tl.constexpr, count: tl.constexpr):
    """A tuple of tensors of zeros."""
    tensors = ()
    for _ in tl.static_range(count):
        tensors = tensors + (tl.zeros(shape, tl.float32),)
    return tensors


@triton.jit
def pixels_of(width, height, across, down, TILE: tl.constexpr):
    """This program's tile: number, first pixel of its image; of its pixels place, whether inside, centres."""
    tile = tl.program_id(0)
    cell = tile % (across * down)
    pixel = tl.arange(0, TILE * TILE)
    column, line = cell % across * TILE + pixel % TILE, cell // across * TILE + pixel // TILE
    inside = (column < width) & (line < height)
    image = (tile // (across * down)).to(tl.int64) * height * width
    return tile, image, line * width + column, inside, column.to(tl.float32) + 0.5, line.to(tl.float32) + 0.5


@triton.jit
def block_of(quads, ids, k, count, visible, D: tl.constexpr, G: tl.constexpr):
    """Gaussians k to k + G of a list: (mean x, y, A, B, C, log2 opacity) and colours, tuples of [G, 1]."""
    place = k + tl.arange(0, G)
    first, second, third = quads
    at = tl.load(ids + place, place < count, visible).to(tl.int64) * RECORD
    x, y, A, B = columns(tl.load(first + at[:, None] + tl.arange(0, 4)[None, :]))
    C, opacity, c0, c1 = columns(tl.load(second + at[:, None] + tl.arange(0, 4)[None, :]))
    shades = (c0[:, None], c1[:, None])
    if D > 2:
        c2, c3, _, _ = columns(tl.load(third + at[:, None] + tl.arange(0, 4)[None, :]))
        shades = shades + (c2[:, None], c3[:, None])
    return (x[:, None], y[:, None], A[:, None], B[:, None], C[:, None], opacity[:, None]), shades


@triton.jit
def alphas_of(splats, x, y):
    """Alphas [G, P] at pixel centres x, y [P], 0 where skipped; log2 before the clamp; offsets from means."""
    mean_x, mean_y, A, B, C, opacity = splats
    dx, dy = x[None, :] - mean_x, y[None, :] - mean_y
    # one column of pixels to a thread: what depends on dx alone is shared by its rows
    exponent = dy * (C * dy + B * dx) + (A * dx * dx + opacity)
    alpha = tl.minimum(exp2(exponent), ALPHA_MAX)
    return tl.where(exponent >= LOG2_ALPHA_MIN, alpha, 0.0), exponent, dx, dy


@triton.jit
def composited(alpha, through, taken, cap, G: tl.constexpr, P: tl.constexpr, CAP: tl.constexpr):
    """Weights [G, P]; then transmittance and contributions of the pixels after this block.

    The transmittance goes on falling where a pixel has stopped: once at T_MIN, nothing brings it back.
    """
    weights = tl.zeros([G, P], tl.float32)
    for k in tl.static_range(G):
        at = (tl.arange(0, G) == k)[:, None]
        a = pick(alpha, at)
        weight, through, taken, live = composite(a, through, taken, cap, CAP)
        weights = tl.where(at, weight[None, :], weights)
    return weights, stopped(through, taken, cap, CAP), taken


@triton.jit
def composite(alpha, through, taken, cap, CAP: tl.constexpr):
    """One Gaussian over pixels [P]: weight, 0 where they have stopped; transmittance after; count; live."""
    weight = through * alpha
    through = through - weight
    live = through > T_MIN
    if CAP:
        live = live & (taken < cap)
        taken += (live & (alpha > 0)).to(tl.int32)
    return tl.where(live, weight, 0.0), through, taken, live


@triton.jit
def stopped(through, taken, cap, CAP: tl.constexpr):
    """Transmittance, 0 where a pixel's contributions are used up."""
    if CAP:
        return tl.where(taken < cap, through, 0.0)
    else:
        return through


@triton.jit
def items_of(begin, end, CHUNK: tl.constexpr):
    """Return how many sums a Gaussian's slots [begin, end) are after folding: head, whole chunks, and all."""
    head = (begin + CHUNK - 1) // CHUNK * CHUNK - begin
    whole = tl.maximum(end // CHUNK * CHUNK - begin - head, 0) // CHUNK
    return tl.where(whole > 0, head, 0), whole, end - begin - whole * (CHUNK - 1)


@triton.jit
def slot_of(item, begin, head, whole, CHUNK: tl.constexpr):
    """The slot of a Gaussian's item, and whether a chunk was folded into it."""
    folded = (item >= head) & (item < head + whole)
    beyond = tl.where(item >= head + whole, whole * (CHUNK - 1), 0)
    return begin + tl.where(folded, head + (item - head) * CHUNK, item + beyond), folded
