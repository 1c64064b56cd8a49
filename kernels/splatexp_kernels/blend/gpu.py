"""Alpha blending in Triton, forward; backward in `gpu_backward` (kernels/README.md, "On the GPU")."""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from splatexp_kernels.blend.gpu_attribute import attribute
from splatexp_kernels.blend.gpu_backward import gradients
from splatexp_kernels.blend.gpu_tile import (
    MAX_CHANNELS,
    alphas_of,
    block_of,
    composited,
    pixels_of,
    private_of,
    quads_of,
    records_of,
    zeros,
)
from splatexp_kernels.launch import T_MIN

__all__ = ["attribute", "blend"]

GAUSSIANS = 8  # of a block
WARPS = {8: 1, 16: 2, 32: 8}  # by tile size: four pixels a thread share each load of a Gaussian (8x8: two)
REGISTERS = {8: None, 16: None, 32: 128}  # of a thread at most; the compiler's own choice spills for 32x32


def blend(
    means2d, conics, colors, opacities, tiles, width, height, *, background, max_splats_per_pixel, absgrad
):
    lists = private_of(tiles, opacities.shape)
    D = colors.shape[2]
    if absgrad is not None and D > MAX_CHANNELS:
        raise ValueError(f"absgrad: backend 'gpu' offers it for at most {MAX_CHANNELS} channels, got {D}")
    images = []
    for i in range(0, D, MAX_CHANNELS):
        # more channels than a record holds go through the kernels in turns; alpha is the first turn's
        some = colors[..., i : i + MAX_CHANNELS]
        behind = None if background is None else background[:, i : i + MAX_CHANNELS]
        size, cap = (width, height), max_splats_per_pixel
        images.append(
            _Blend.apply(means2d, conics, some, opacities, behind, tiles, lists, size, cap, absgrad)
        )
    image = images[0][0] if len(images) == 1 else torch.cat([image for image, _ in images], -1)
    return image, images[0][1]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colors, opacities, background, tiles, lists, size, cap, absgrad):
        (C, _, D), (width, height) = colors.shape, size
        records = records_of(tiles, means2d, conics, colors, opacities)
        image, alpha = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width, 1)
        behind = image if background is None else background.contiguous()
        tile = tiles.tile_width
        _forward[(len(tiles.starts),)](
            *quads_of(records), tiles.ids, tiles.starts, tiles.ends, behind, image, alpha,
            width, height, tiles.tiles_x, tiles.tiles_y, len(tiles.order), cap,
            D=D, TILE=tile, G=GAUSSIANS, CAP=cap > 0, BACKGROUND=background is not None,
            num_warps=WARPS[tile], maxnreg=REGISTERS[tile],
        )  # fmt: skip
        ctx.tiles, ctx.lists, ctx.cap, ctx.absgrad, ctx.shape = tiles, lists, cap, absgrad, colors.shape
        ctx.save_for_backward(records, image, alpha)
        ctx.set_materialize_grads(False)
        return image, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_alpha):  # type: ignore[override]
        records, image, alpha = ctx.saved_tensors
        v_image = torch.zeros_like(image) if v_image is None else v_image.contiguous()
        v_alpha = None if v_alpha is None else v_alpha.contiguous()
        v_abs = None if ctx.absgrad is None else image.new_zeros(*ctx.shape[:2], 2)
        saved = (records, image, alpha, v_image, v_alpha, v_abs)
        found = gradients(*saved, ctx.tiles, ctx.lists, ctx.cap, ctx.shape)
        if v_abs is not None:
            ctx.absgrad.copy_(v_abs)
        v_background = (v_image * (1 - alpha)).sum((1, 2)) if ctx.needs_input_grad[4] else None
        return *found, v_background, None, None, None, None, None


@triton.jit(do_not_specialize=["visible", "cap"])
def _forward(
    first, second, third, ids, starts, ends, background, image, alpha_image,
    width, height, across, down, visible, cap,
    D: tl.constexpr, TILE: tl.constexpr, G: tl.constexpr, CAP: tl.constexpr, BACKGROUND: tl.constexpr,
):  # fmt: skip
    """Walks a tile's list front to back until none of its pixels lets light through."""
    P: tl.constexpr = TILE * TILE
    tile, start_pixel, place, inside, x, y = pixels_of(width, height, across, down, TILE)
    through = tl.where(inside, 1.0, 0.0)
    covered = tl.zeros([P], tl.float32)
    sums = zeros([P], D)
    taken = tl.zeros([P], tl.int32)
    start = tl.load(starts + tile)
    count = (tl.load(ends + tile) - start).to(tl.int32)
    k = 0
    going = k < count
    while going:
        splats, shades = block_of((first, second, third), ids + start, k, count, visible, D, G)
        alpha, exponent, dx, dy = alphas_of(splats, x, y)
        weights, through, taken = composited(alpha, through, taken, cap, G, P, CAP)
        covered += tl.sum(weights, 0)
        sums = plus_colors(sums, weights, shades, D)
        k += G
        going = (k < count) & (tl.max(through, 0) > T_MIN)
    for c in tl.static_range(D):
        value = sums[c]
        if BACKGROUND:
            value += (1 - covered) * tl.load(background + tile // (across * down) * D + c)
        tl.store(image + start_pixel * D + place * D + c, value, inside)
    tl.store(alpha_image + start_pixel + place, covered, inside)


@triton.jit
def plus_colors(sums, weights, shades, D: tl.constexpr):
    more = ()
    for c in tl.static_range(D):
        more = more + (sums[c] + tl.sum(weights * shades[c], 0),)
    return more
