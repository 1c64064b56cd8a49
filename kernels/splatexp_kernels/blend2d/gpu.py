"""Order-free blending in Triton (kernels/README.md, "On the GPU").

A program takes a tile and its Gaussians in blocks, [Gaussians, pixels], as `blend` does, whose records,
sums over pixels and gather it shares; without a transmittance nothing runs along a block but, with `top_k`,
the count of ties. The kernels know one mode, the sum: what a mean is divided by, and the gradient of that,
are a few passes over pixels and left to torch. Alpha is `blend` itself.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from splatexp_kernels.blend import gpu as alpha
from splatexp_kernels.blend.gpu import plus_colors
from splatexp_kernels.blend.gpu_backward import REGISTERS, basis_of, by_warp, clear, product
from splatexp_kernels.blend.gpu_backward import WARPS as WARPS_BACK
from splatexp_kernels.blend.gpu_gather import SLOT, gathered
from splatexp_kernels.blend.gpu_tile import (
    LOG2_ALPHA_MIN,
    MAX_CHANNELS,
    NEVER,
    block_of,
    exp2,
    pick,
    pixels_of,
    private_of,
    quads_of,
    records_of,
    zeros,
)
from splatexp_kernels.constants import NORMALIZER_EPS

WARPS = alpha.WARPS  # four pixels a thread; two where the largest exponents of each are kept, too
BLOCK_BACK = {8: 16, 16: 8, 32: 8}  # Gaussians of a block by tile size, as the registers suffice
MAX_TOP = 32  # each is a register of every pixel
EVERY = tl.constexpr(1 << 30)  # ties that pass where a pixel has fewer Gaussians than it may take


def blend2d(means2d, conics, colors, weights, tiles, width, height, *, mode, top_k, background):
    if mode == "alpha":
        knobs = {"background": background, "max_splats_per_pixel": 0, "absgrad": None}
        return alpha.blend(means2d, conics, colors, weights, tiles, width, height, **knobs)
    if top_k > MAX_TOP:
        raise ValueError(f"top_k: backend 'gpu' offers at most {MAX_TOP}, got {top_k}")
    lists, size, sums, totals = private_of(tiles, weights.shape), (width, height), [], []
    for i in range(0, colors.shape[2], MAX_CHANNELS):
        # more channels than a record holds go through the kernels in turns; the total is the first turn's
        some = colors[..., i : i + MAX_CHANNELS]
        found = _Sum.apply(means2d, conics, some, weights, tiles, lists, size, top_k)
        sums.append(found[0]), totals.append(found[1])
    image, total = sums[0] if len(sums) == 1 else torch.cat(sums, -1), totals[0]
    behind = None if background is None else background[:, None, None, :]
    if mode == "sum":
        return image if behind is None else image + behind, total
    image = image if behind is None else image + NORMALIZER_EPS * behind
    return image / (total + NORMALIZER_EPS), total


class _Sum(torch.autograd.Function):
    """Sums of w color and of w."""

    @staticmethod
    def forward(ctx, means2d, conics, colors, weights, tiles, lists, size, top_k):
        (C, _, D), (width, height) = colors.shape, size
        records = records_of(tiles, means2d, conics, colors, weights)
        image, total = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width, 1)
        gates = colors.new_empty(C, height, width) if top_k else total
        ties = torch.empty(C, height, width, dtype=torch.int32, device=colors.device) if top_k else total
        tile = tiles.tile_width
        _forward[(len(tiles.starts),)](
            *quads_of(records), tiles.ids, tiles.starts, tiles.ends, image, total, gates, ties,
            width, height, tiles.tiles_x, tiles.tiles_y, len(tiles.order),
            D=D, TILE=tile, G=alpha.GAUSSIANS, TOP=top_k, num_warps=WARPS[tile] * (2 if top_k else 1),
        )  # fmt: skip
        ctx.tiles, ctx.lists, ctx.size, ctx.shape, ctx.top = tiles, lists, size, colors.shape, top_k > 0
        ctx.save_for_backward(records, gates, ties)
        ctx.set_materialize_grads(False)
        return image, total

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_total):  # type: ignore[override]
        records, gates, ties = ctx.saved_tensors
        (C, _, D), (width, height), tiles = ctx.shape, ctx.size, ctx.tiles
        v_image = records.new_zeros(C, height, width, D) if v_image is None else v_image.contiguous()
        v_total = v_image if v_total is None else v_total.contiguous()
        tile, (slots, ranks, _, _, bounds) = tiles.tile_width, ctx.lists
        sums = records.new_empty(len(ranks), SLOT.value)
        _backward[(len(tiles.starts),)](
            *quads_of(records), tiles.ids, slots, tiles.starts, tiles.ends, bounds,
            v_image, v_total, gates, ties, sums,
            width, height, tiles.tiles_x, tiles.tiles_y, len(tiles.order),
            D=D, TILE=tile, G=BLOCK_BACK[tile], WARPS=WARPS_BACK[tile],
            TOP=ctx.top, TOTAL=v_total is not v_image, num_warps=WARPS_BACK[tile], maxnreg=REGISTERS[tile],
        )  # fmt: skip
        found = gathered(sums, records, tiles, ctx.lists, ctx.shape, ctx.size, None)
        return *found, None, None, None, None


@triton.jit(do_not_specialize=["visible"])
def _forward(
    first, second, third, ids, starts, ends, image, total_image, gates, ties,
    width, height, across, down, visible,
    D: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Walks a tile's list; with TOP a walk before it finds what each pixel takes."""
    P: tl.constexpr = TILE * TILE
    tile, start_pixel, place, inside, x, y = pixels_of(width, height, across, down, TILE)
    pixel = start_pixel + place
    start = tl.load(starts + tile)
    count = (tl.load(ends + tile) - start).to(tl.int32)
    quads = (first, second, third)
    gate, left = tl.zeros([P], tl.float32) + LOG2_ALPHA_MIN, tl.zeros([P], tl.int32)
    if TOP > 0:
        gate, left = _chosen(quads, ids + start, count, visible, x, y, D, G, P, TOP)
        tl.store(gates + pixel, gate, inside)
        tl.store(ties + pixel, left, inside)
    total = tl.zeros([P], tl.float32)
    sums = zeros([P], D)
    k = 0
    while k < count:
        splats, shades = block_of(quads, ids + start, k, count, visible, D, G)
        weights, left = _taken(_exponents(splats, x, y), gate, left, TOP > 0)
        total += tl.sum(weights, 0)
        sums = plus_colors(sums, weights, shades, D)
        k += G
    for c in tl.static_range(D):
        tl.store(image + pixel * D + c, sums[c], inside)
    tl.store(total_image + pixel, total, inside)


@triton.jit(do_not_specialize=["visible"])
def _backward(
    first, second, third, ids, slots, starts, ends, bounds, v_image, v_total, gates, ties, sums,
    width, height, across, down, visible,
    D: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, WARPS: tl.constexpr,
    TOP: tl.constexpr, TOTAL: tl.constexpr,
):  # fmt: skip
    """Walks a tile's list once more; a block's sums over the tile's pixels go to its slots, as in `blend`."""
    P: tl.constexpr = TILE * TILE
    tile, start_pixel, place, inside, x, y = pixels_of(width, height, across, down, TILE)
    v_image, pixel = v_image + start_pixel * D, start_pixel + place
    gate, left = tl.zeros([P], tl.float32) + LOG2_ALPHA_MIN, tl.zeros([P], tl.int32)
    if TOP:
        gate, left = tl.load(gates + pixel, inside, 0.0), tl.load(ties + pixel, inside, 0)
    plain = tl.zeros([P], tl.float32)
    if TOTAL:
        plain += tl.load(v_total + pixel, inside, 0.0)
    v = ()
    for c in tl.static_range(D):
        v = v + (tl.load(v_image + place * D + c, inside, 0.0),)
    basis, v_columns = basis_of(v_image, width, height, across, down, tile, D, TILE, WARPS)
    start = tl.load(starts + tile)
    count = (tl.load(ends + tile) - start).to(tl.int32)
    k = 0
    while k < count:
        splats, shades = block_of((first, second, third), ids + start, k, count, visible, D, G)
        weights, left = _taken(_exponents(splats, x, y), gate, left, TOP)
        slope = plain[None, :] + v[0][None, :] * shades[0]
        for c in tl.static_range(1, D):
            slope += v[c][None, :] * shades[c]
        nothing = tl.zeros([WARPS, G, 8], tl.float32)
        moments = product(by_warp(weights * slope, G, WARPS), basis, nothing)
        v_colors = product(by_warp(weights, G, WARPS), v_columns, nothing)
        row = k + tl.arange(0, G)
        slot = sums + tl.load(slots + start + row, row < count, 0).to(tl.int64)[:, None] * SLOT
        tl.store(slot + tl.arange(0, 8)[None, :], tl.sum(moments, 0), (row < count)[:, None])
        v_colors = tl.sum(tl.sum(v_colors.reshape(WARPS, G, 2, 4), 2), 0)
        tl.store(slot + 8 + tl.arange(0, 4)[None, :], v_colors, (row < count)[:, None])
        k += G
    listed = (tl.load(bounds + tile + 1) - start).to(tl.int32)  # `ends` may stop short of it
    clear(sums, slots + start, tl.minimum(k, count), listed)


@triton.jit
def _exponents(splats, x, y):
    """log2 of the weights [G, P] at pixel centres x, y [P], NEVER below ALPHA_MIN.

    In explicit multiply-adds: gates are held against it in another kernel, to the bit.
    """
    mean_x, mean_y, A, B, C, most = splats
    dx, dy = x[None, :] - mean_x, y[None, :] - mean_y
    exponent = tl.fma(dy, tl.fma(C, dy, B * dx), tl.fma(A * dx, dx, most))
    # rounding may lift a needle's above its mean's; NaN, where infinities cancel, is below everything
    return tl.where(exponent >= LOG2_ALPHA_MIN, tl.minimum(exponent, most), NEVER)


@triton.jit
def _taken(exponent, gate, left, TOP: tl.constexpr):
    """Weights [G, P], 0 where a pixel does not take it; how many ties at its gate may still pass."""
    taken = exponent >= gate[None, :]
    if TOP:
        tie = (exponent == gate[None, :]).to(tl.int32)
        taken = (exponent > gate[None, :]) | ((tie > 0) & (tl.cumsum(tie, 0) <= left[None, :]))
        left -= tl.sum(tie, 0)
    return tl.where(taken, exp2(exponent), 0.0), left


@triton.jit
def _chosen(
    quads, ids, count, visible, x, y,
    D: tl.constexpr, G: tl.constexpr, P: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    """Of each pixel the TOP-th largest exponent, or that of ALPHA_MIN; how many of exactly it may pass."""
    best = ()
    for _ in tl.static_range(TOP):
        best = best + (tl.zeros([P], tl.float32) + NEVER,)
    k = 0
    while k < count:
        splats, unused = block_of(quads, ids, k, count, visible, D, G)
        exponent = _exponents(splats, x, y)
        for j in tl.static_range(G):
            best = _inserted(best, pick(exponent, (tl.arange(0, G) == j)[:, None]), TOP)
        k += G
    low = best[TOP - 1]
    equal = tl.zeros([P], tl.int32)
    for j in tl.static_range(TOP):
        equal += (best[j] == low).to(tl.int32)
    full = low > NEVER
    return tl.where(full, low, LOG2_ALPHA_MIN), tl.where(full, equal, EVERY)


@triton.jit
def _inserted(best, x, TOP: tl.constexpr):
    """Sorted values [P], descending, with x among them; the least is dropped."""
    more = ()
    for j in tl.static_range(TOP):
        more = more + (tl.maximum(best[j], x),)
        x = tl.minimum(best[j], x)
    return more
