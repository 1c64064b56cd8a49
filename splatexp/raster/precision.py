"""Emulation of half precision on the colours, which shows what it would cost a method."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def round_trip(colors: Tensor, amp: str) -> Tensor:
    """Return colours [C,N,3] that were rounded to a lower precision and back; gradients are rounded likewise.

    This shows what half precision costs a method, and saves nothing by itself: the kernels take float32, and
    their sums over pixels are float32 for any `amp`. Geometry and opacities are never rounded: a position of
    11 bits (fp16; 8 for bf16) would move by up to a pixel in an image wider than 2048 px (256 px).

    Args:
        amp: none (no rounding), bf16 or fp16.
    """
    return colors if amp == "none" else _RoundTrip.apply(colors, PRECISIONS[amp])


class _RoundTrip(torch.autograd.Function):
    """Rounding in both passes; gradients are scaled, so that they fit the range of the lower precision."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        if not grad.numel():
            return grad, None
        # Scale exactly, by a power of two that puts the largest value into [2^14, 2^15): below fp16's 65504,
        # and far from its smallest. The scale follows from this gradient alone, so there is no scaler that
        # would skip steps, or whose state a checkpoint would have to hold.
        exponent = torch.frexp(grad.abs().amax().float()).exponent.clamp(-111, 128)
        return (grad * _power(15 - exponent)).to(ctx.dtype).to(grad.dtype) * _power(exponent - 15), None


def _power(exponent: Tensor) -> Tensor:
    """Return 2^exponent as float32, for int32 from -126 to 127.

    It is made of its bits, since `pow` of a device may round.
    """
    return ((exponent + 127) << 23).view(torch.float32)
