"""The gradients of `blend` in Triton: the walk over tiles (kernels/README.md, "On the GPU").

Per pair of pixel and Gaussian the backward pass has g and w (kernels/README.md, "blend"); the sums over a
tile's pixels are two matrix products for the tensor cores, per warp and its 64 pixels:

    g [G, 64] @ (1, x, y, x^2, x y, y^2) [64, 8]  and  w [G, 64] @ v_image [64, 4]

with x, y from the tile's middle: multiples of 1/2 whose products are exact in tf32's 11 bits. g and w are
split into a part of 11 bits and the rest, v_image likewise (its two parts are columns 0-3 and 4-7), so two
tf32 products are as good as float32. All sums of a pair cost nine instructions this way; with shuffles
each would cost six.

Every pair of tile and Gaussian has a slot of 12 words, written once; `gpu_gather` adds them up.
"""

import triton
import triton.language as tl

from splatexp_kernels.blend.gpu_gather import SLOT, gathered, middle
from splatexp_kernels.blend.gpu_tile import (
    LOG2_ALPHA_MAX,
    alphas_of,
    block_of,
    composite,
    pick,
    pixels_of,
    quads_of,
    reciprocal,
    stopped,
)
from splatexp_kernels.launch import T_MIN

WARPS = {8: 1, 16: 4, 32: 16}  # by tile size: two pixels a thread, 64 a warp
REGISTERS = {8: 200, 16: 168, 32: 128}  # of a thread at most: 10, 3 and 1 programs to a multiprocessor


def gradients(records, image, alpha, v_image, v_alpha, v_abs, tiles, lists, cap, shape):
    """Gradients of means2d, conics, colors and opacities; fills `v_abs` where it is given."""
    (_, _, D), (slots, ranks, _, _, bounds) = shape, lists
    sums = image.new_empty(len(ranks), SLOT.value)
    width, height, tile = image.shape[2], image.shape[1], tiles.tile_width
    absgrad = v_abs is not None
    _backward[(len(tiles.starts),)](
        *quads_of(records), tiles.ids, slots, tiles.starts, tiles.ends, bounds,
        image, alpha, v_image, alpha if v_alpha is None else v_alpha, sums,
        width, height, tiles.tiles_x, tiles.tiles_y, len(tiles.order), cap,
        D=D, TILE=tile, G=_block(tile, D, absgrad, cap), WARPS=WARPS[tile],
        CAP=cap > 0, ALPHA=v_alpha is not None, ABS=absgrad, num_warps=WARPS[tile], maxnreg=REGISTERS[tile],
    )  # fmt: skip
    return gathered(sums, records, tiles, lists, shape, (width, height), v_abs)


def _block(tile, D, absgrad, cap):
    """Gaussians of a block: 16 fill the rows of a tensor-core product, where the registers suffice."""
    plain = not (absgrad or cap)
    if tile == 32:
        return 8 if plain else 4
    return 16 if plain and D > 1 else 8


@triton.jit(do_not_specialize=["visible", "cap"])
def _backward(
    first, second, third, ids, slots, starts, ends, bounds, image, alpha_image, v_image, v_alpha, sums,
    width, height, across, down, visible, cap,
    D: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, WARPS: tl.constexpr,
    CAP: tl.constexpr, ALPHA: tl.constexpr, ABS: tl.constexpr,
):  # fmt: skip
    """Walks a tile's list once more front to back; a block's sums over the tile's pixels go to its slots."""
    tile, start_pixel, place, inside, x, y = pixels_of(width, height, across, down, TILE)
    image, v_image = image + start_pixel * D, v_image + start_pixel * D
    through = tl.where(inside, 1.0, 0.0)
    taken = tl.zeros([TILE * TILE], tl.int32)
    rest = tl.zeros([TILE * TILE], tl.float32)
    if ALPHA:
        covered = tl.load(alpha_image + start_pixel + place, inside, 0.0)
        rest += tl.load(v_alpha + start_pixel + place, inside, 0.0) * (covered - 1)
    v = ()
    for c in tl.static_range(D):
        v = v + (tl.load(v_image + place * D + c, inside, 0.0),)
        rest += v[c] * tl.load(image + place * D + c, inside, 0.0)
    basis, v_columns = basis_of(v_image, width, height, across, down, tile, D, TILE, WARPS)
    start = tl.load(starts + tile)
    count = (tl.load(ends + tile) - start).to(tl.int32)
    k = 0
    going = k < count
    while going:
        splats, shades = block_of((first, second, third), ids + start, k, count, visible, D, G)
        alpha, exponent, dx, dy = alphas_of(splats, x, y)
        g, weights, through, taken, rest = _pairs(
            alpha, exponent, v, shades, through, taken, rest, cap, D, G, CAP
        )
        moments = product(by_warp(g, G, WARPS), basis, tl.zeros([WARPS, G, 8], tl.float32))
        if ABS:
            moments = product(_slopes(g, splats, dx, dy, G, WARPS), _evens_and_odds(WARPS), moments)
        v_colors = product(by_warp(weights, G, WARPS), v_columns, tl.zeros([WARPS, G, 8], tl.float32))
        row = k + tl.arange(0, G)
        slot = sums + tl.load(slots + start + row, row < count, 0).to(tl.int64)[:, None] * SLOT
        tl.store(slot + tl.arange(0, 8)[None, :], tl.sum(moments, 0), (row < count)[:, None])
        v_colors = tl.sum(tl.sum(v_colors.reshape(WARPS, G, 2, 4), 2), 0)
        tl.store(slot + 8 + tl.arange(0, 4)[None, :], v_colors, (row < count)[:, None])
        k += G
        going = (k < count) & (tl.max(through, 0) > T_MIN)
    listed = (tl.load(bounds + tile + 1) - start).to(tl.int32)  # `ends` may stop short of it
    clear(sums, slots + start, tl.minimum(k, count), listed)


@triton.jit
def _pairs(
    alpha, exponent, v, shades, through, taken, rest, cap, D: tl.constexpr, G: tl.constexpr, CAP: tl.constexpr
):
    """g and w [G, P], and the pixels' state after the block."""
    share = v[0][None, :] * shades[0]
    for c in tl.static_range(1, D):
        share += v[c][None, :] * shades[c]
    # g = alpha (T share - rest / (1 - alpha)) = alpha / (1 - alpha) (T' share - rest), T' = T (1 - alpha)
    odds = tl.where(exponent <= LOG2_ALPHA_MAX, alpha * reciprocal(1 - alpha), 0.0)
    g, weights = tl.zeros(alpha.shape, tl.float32), tl.zeros(alpha.shape, tl.float32)
    for k in tl.static_range(G):
        at = (tl.arange(0, G) == k)[:, None]
        weight, through, taken, live = composite(pick(alpha, at), through, taken, cap, CAP)
        own = pick(share, at)
        rest -= weight * own
        slope = tl.where(live, pick(odds, at) * (through * own - rest), 0.0)
        weights = tl.where(at, weight[None, :], weights)
        g = tl.where(at, slope[None, :], g)
    return g, weights, stopped(through, taken, cap, CAP), taken, rest


@triton.jit
def basis_of(
    v_image, width, height, across, down, tile, D: tl.constexpr, TILE: tl.constexpr, WARPS: tl.constexpr
):
    """[WARPS, P / WARPS, 8] each: the moments' powers, v_image in two parts; pixels as `by_warp`."""
    P: tl.constexpr = TILE * TILE
    lane = tl.arange(0, P // WARPS)[None, :, None]
    pixel = lane // 32 * (32 * WARPS) + tl.arange(0, WARPS)[:, None, None] * 32 + lane % 32
    which = tl.arange(0, 8)[None, None, :]
    cell = tile % (across * down)
    left, top = cell % across * TILE, cell // across * TILE
    x = (pixel % TILE).to(tl.float32) - (middle(left, width, TILE) - 0.5)
    y = (pixel // TILE).to(tl.float32) - (middle(top, height, TILE) - 0.5)
    others = tl.where(which == 0, 1.0, tl.where(which == 2, y, tl.where(which == 5, y * y, 0.0)))
    powers = tl.where(which == 1, x, tl.where(which == 3, x * x, tl.where(which == 4, x * y, others)))
    column, line = left + pixel % TILE, top + pixel // TILE
    held = (column < width) & (line < height) & (which % 4 < D)
    value = tl.load(v_image + (line * width + column) * D + which % 4, held, 0.0)
    return powers, tl.where(which < 4, _upper(value), value - _upper(value))


@triton.jit
def by_warp(x, G: tl.constexpr, WARPS: tl.constexpr):
    """[G, P] as [WARPS, G, P / WARPS]: a warp's own pixels, as Triton deals them out: none change hands."""
    x = x.reshape(G, x.shape[1] // (32 * WARPS), WARPS, 32).permute(2, 0, 1, 3)
    return x.reshape(WARPS, G, x.shape[2] * 32)


@triton.jit
def _slopes(g, splats, dx, dy, G: tl.constexpr, WARPS: tl.constexpr):
    """[WARPS, G, 64] what absgrad sums: each thread's |d loss / d mean| over ln 2, x and y in turns."""
    _, _, A, B, C, _ = splats
    x, y = tl.abs(g * (2 * A * dx + B * dy)), tl.abs(g * (2 * C * dy + B * dx))
    x = tl.sum(x.reshape(G, x.shape[1] // (32 * WARPS), WARPS, 32), 1)
    y = tl.sum(y.reshape(G, y.shape[1] // (32 * WARPS), WARPS, 32), 1)
    return tl.join(x, y).permute(1, 0, 2, 3).reshape(WARPS, G, 64)


@triton.jit
def _evens_and_odds(WARPS: tl.constexpr):
    """[WARPS, 64, 8] that adds the even rows into column 6 and the odd ones into column 7."""
    row, which = tl.arange(0, 64)[None, :, None], tl.arange(0, 8)[None, None, :]
    return tl.where((which - 6 == row % 2) & (tl.arange(0, WARPS)[:, None, None] >= 0), 1.0, 0.0)


@triton.jit
def _upper(x):
    """The upper 11 bits of x, exact in tf32."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def product(x, y, total):
    """total + x @ y with float32's accuracy in two tf32 products, for y of 11 bits."""
    upper = _upper(x)
    total = tl.dot(upper, y, total, input_precision="tf32")
    return tl.dot(x - upper, y, total, input_precision="tf32")


@triton.jit
def clear(sums, slots, k, count):
    """Zeros for the pairs that were never looked at: the tile was opaque, or `per_tile_max` reached."""
    while k < count:
        row = k + tl.arange(0, 32)
        slot = sums + tl.load(slots + row, row < count, 0).to(tl.int64)[:, None] * SLOT
        which = tl.arange(0, 16)[None, :]
        tl.store(slot + which, tl.zeros([32, 16], tl.float32), (row < count)[:, None] & (which < SLOT))
        k += 32
