"""Spherical harmonics in C++; gradients by hand (kernels/README.md, "sh")."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatexp_kernels import _cpu  # type: ignore[attr-defined]


def sh(degree, means, centers, sh0, shN, visible) -> Tensor:
    visible = None if visible is None else visible.contiguous().view(torch.uint8)
    return _Sh.apply(means, centers, sh0, shN, degree, visible)  # type: ignore[return-value]


class _Sh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, centers, sh0, shN, degree, visible):
        means, centers, sh0, shN = (t.contiguous() for t in (means, centers, sh0, shN))
        colors = means.new_empty(len(centers), len(means), 3)
        _cpu.sh_forward(degree, means, centers, sh0, shN, visible, colors)
        ctx.degree, ctx.visible = degree, visible
        ctx.save_for_backward(means, centers, shN, colors)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx, v_colors):  # type: ignore[override]
        means, centers, shN, colors = ctx.saved_tensors
        v_means, v_sh0 = torch.empty_like(means), means.new_empty(len(means), 1, 3)
        v_shN = torch.empty_like(shN) if ctx.needs_input_grad[3] else None
        partial = None
        if ctx.needs_input_grad[1]:
            partial = means.new_empty(-(-len(means) // _cpu.SH_BLOCK), len(centers), 3)
        _cpu.sh_backward(
            ctx.degree,
            means,
            centers,
            shN,
            ctx.visible,
            colors,
            v_colors.contiguous(),
            v_means,
            v_sh0,
            v_shN,
            partial,
        )
        return v_means, None if partial is None else partial.sum(0), v_sh0, v_shN, None, None
