"""What half precision would cost a method, shown on the colours."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def lowered(colors: Tensor, amp: str) -> Tensor:
    """Colours [C,N,3] that have been in a lower precision, and whose gradient will have been: float32 again.

    This shows what half precision costs a method. It saves nothing by itself: the kernels take float32, and
    their sums over pixels are float32 whatever `amp` says. Geometry and opacities never pass through here: a
    position of 11 bits (fp16; 8 for bf16) moves by up to a pixel in a picture wider than 2048 px (256 px).

    Args:
        amp: none (the tensor itself), bf16, fp16.
    """
    return colors if amp == "none" else _Lowered.apply(colors, PRECISIONS[amp])


class _Lowered(torch.autograd.Function):
    """There and back in both directions; on its way back a gradient of any size fits."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        if not grad.numel():
            return grad, None
        # times a power of two, so exactly, that puts the largest into [2^14, 2^15): below fp16's 65504, and
        # far from its smallest. It follows from this gradient alone: no scaler that would skip steps, or
        # whose state a checkpoint would have to hold.
        exponent = torch.frexp(grad.abs().amax().float()).exponent.clamp(-111, 128)
        return (grad * _power(15 - exponent)).to(ctx.dtype).to(grad.dtype) * _power(exponent - 15), None


def _power(exponent: Tensor) -> Tensor:
    """2^exponent as float32, for int32 from -126 to 127: its bits, since a device's `pow` may round."""
    return ((exponent + 127) << 23).view(torch.float32)
