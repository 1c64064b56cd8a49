"""Projection in C++; gradients by hand (kernels/README.md, "project")."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatexp_kernels import _cpu  # type: ignore[attr-defined]
from splatexp_kernels.project.reference import Projection


def project(
    means,
    quats,
    scales,
    opacities,
    viewmats,
    Ks,
    width,
    height,
    *,
    eps2d,
    near,
    far,
    cull_radius_px,
    prefilter,
) -> Projection:
    settings = (width, height, eps2d, near, far, cull_radius_px, prefilter)
    return Projection(*_Project.apply(means, quats, scales, opacities, viewmats, Ks, settings))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, settings):
        inputs = [t.contiguous() for t in (means, quats, scales, opacities, viewmats, Ks)]
        shape = (len(viewmats), len(means))
        means2d, conics, radii = (
            means.new_empty(*shape, 2),
            means.new_empty(*shape, 3),
            means.new_empty(*shape, 2),
        )
        depths, compensations = means.new_empty(shape), means.new_empty(shape)
        _cpu.project_forward(*inputs, *settings, means2d, conics, depths, radii, compensations)
        ctx.settings = settings
        ctx.save_for_backward(*inputs[:3], *inputs[4:], radii)
        ctx.mark_non_differentiable(radii)
        return means2d, conics, depths, radii, compensations

    @staticmethod
    @once_differentiable
    def backward(ctx, v_means2d, v_conics, v_depths, _, v_compensations):  # type: ignore[override]
        means, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
        width, height, eps2d, _, _, _, prefilter = ctx.settings
        v_means, v_quats, v_scales = (torch.empty_like(t) for t in (means, quats, scales))
        partial = None
        if ctx.needs_input_grad[4]:
            partial = means.new_empty(-(-len(means) // _cpu.PROJECT_BLOCK), len(viewmats), 3, 4)
        upstream = [t.contiguous() for t in (v_means2d, v_conics, v_depths, v_compensations)]
        _cpu.project_backward(
            means, quats, scales, viewmats, Ks, width, height, eps2d, prefilter, radii,
            *upstream, v_means, v_quats, v_scales, partial,
        )  # fmt: skip
        v_viewmats = None if partial is None else _rows_of(partial)
        return v_means, v_quats, v_scales, None, v_viewmats, None, None


def _rows_of(partial: Tensor) -> Tensor:
    v_viewmats = partial.new_zeros(partial.shape[1], 4, 4)
    v_viewmats[:, :3] = partial.sum(0)
    return v_viewmats
