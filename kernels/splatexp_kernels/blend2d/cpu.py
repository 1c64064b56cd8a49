"""Order-free blending in C++; gradients by hand (kernels/README.md, "blend2d")."""

import torch
from torch.autograd.function import once_differentiable

from splatexp_kernels import _cpu  # type: ignore[attr-defined]
from splatexp_kernels.blend.cpu import lists_of
from splatexp_kernels.blend2d import MODES
from splatexp_kernels.constants import NORMALIZER_EPS


def blend2d(means2d, conics, colors, weights, tiles, width, height, *, mode, top_k, background):
    if top_k > _cpu.MAX_TOP:
        raise ValueError(f"top_k: backend 'cpu' offers at most {_cpu.MAX_TOP}, got {top_k}")
    lists, radii = lists_of(tiles, weights.shape, width, height)
    images, totals = [], []
    for i in range(0, colors.shape[2], _cpu.MAX_CHANNELS):
        # more channels than the kernel is compiled for go through it in turns; the total is the first turn's
        some = colors[..., i : i + _cpu.MAX_CHANNELS]
        behind = None if background is None else background[:, i : i + _cpu.MAX_CHANNELS]
        size = (width, height)
        image, total = _Blend2d.apply(means2d, conics, some, weights, behind, lists, radii, size, mode, top_k)
        images.append(image), totals.append(total)
    return images[0] if len(images) == 1 else torch.cat(images, -1), totals[0]


class _Blend2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, colors, weights, background, lists, radii, size, mode, top_k):
        means2d, conics, colors = means2d.contiguous(), conics.contiguous(), colors.contiguous()
        weights = torch.where(weights > 0, weights, 0.0)  # the kernel takes logarithms
        background = None if background is None else background.contiguous()
        (C, _, D), (width, height) = colors.shape, size
        records = colors.new_empty(lists.visible, _cpu.record_floats(D))
        gates = colors.new_empty(C, height, width, 2) if top_k else None
        image, total = colors.new_empty(C, height, width, D), colors.new_empty(C, height, width, 1)
        choice = MODES.index(mode), top_k
        _cpu.blend2d_forward(
            lists, *choice, means2d, conics, colors, weights, radii, background, records, gates, image, total
        )
        ctx.lists, ctx.choice, ctx.mode, ctx.shape = lists, choice, mode, colors.shape
        ctx.save_for_backward(records, gates, image, total)
        ctx.set_materialize_grads(False)
        return image, total

    @staticmethod
    @once_differentiable
    def backward(ctx, v_image, v_total):  # type: ignore[override]
        records, gates, image, total = ctx.saved_tensors
        C, N, D = ctx.shape
        v_image = torch.zeros_like(image) if v_image is None else v_image.contiguous()
        v_total = None if v_total is None else v_total.contiguous()
        pairs = image.new_empty(ctx.lists.pairs, _cpu.PAIR_FLOATS)
        v_means2d, v_conics = image.new_zeros(C, N, 2), image.new_zeros(C, N, 3)
        v_colors, v_weights = image.new_zeros(C, N, D), image.new_zeros(C, N)
        _cpu.blend2d_backward(
            ctx.lists, *ctx.choice, records, gates, image, total, v_image, v_total, pairs,
            v_means2d, v_conics, v_colors, v_weights,
        )  # fmt: skip
        v_background = None
        if ctx.needs_input_grad[4]:
            v_background = (v_image * _behind(ctx.mode, total)).sum((1, 2))
        return v_means2d, v_conics, v_colors, v_weights, v_background, None, None, None, None, None


def _behind(mode, total):
    """The background's share in each pixel."""
    if mode == "sum":
        return torch.ones_like(total)
    return 1 - total if mode == "alpha" else NORMALIZER_EPS / (total + NORMALIZER_EPS)
