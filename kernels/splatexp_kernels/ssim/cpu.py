"""SSIM in C++, one pass forward and one backward."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatexp_kernels import _cpu  # type: ignore[attr-defined]


def ssim(image, target) -> Tensor:
    return _Ssim.apply(image, target)  # type: ignore[return-value]


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, target):
        image, target = image.contiguous(), target.contiguous()
        ssim_map = torch.empty_like(image)
        partials = image.new_empty(3, *image.shape) if ctx.needs_input_grad[0] else None
        _cpu.ssim_forward(image, target, ssim_map, partials)
        ctx.save_for_backward(image, target, partials)
        return ssim_map

    @staticmethod
    @once_differentiable
    def backward(ctx, v_map):  # type: ignore[override]
        image, target, partials = ctx.saved_tensors
        v_image = torch.empty_like(image)
        _cpu.ssim_backward(image, target, partials, v_map.contiguous(), v_image)
        return v_image, None
