"""SSIM in Triton (kernels/README.md, "On the GPU").

A program walks down a strip of the image, a thread per column and channel. For each row it sums the window's
11 columns, whose loads are coalesced and come from the first-level cache; down the rows every sum is carried
along: 10 outputs that lie below have each had their share of it. So every array goes through memory once,
nothing is exchanged between threads, and an output's sum has the same order wherever strips begin.
Products with band matrices, on the matrix units, take 2 to 4 times the instructions: of 32 taps 21 are zeros.

Pixel values are shifted by 1/2: that leaves variances as they are, and E[x^2] - E[x]^2 then loses a quarter
as much where an image is flat.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatexp_kernels.launch import blocks
from splatexp_kernels.ssim import reference

COLUMNS = 128  # columns times channels of a strip: one to a thread, for the carried sums take many registers
WARPS = 4
PROGRAMS = 1024  # a strip is short where an image has too few of them to fill a GPU
STRIP = 8, 64  # rows of a strip at least and at most: 10 more are read for each
_OFFSETS = torch.arange(-reference.RADIUS, reference.RADIUS + 1, dtype=torch.float64)
_TAPS = torch.exp(-0.5 * (_OFFSETS / reference.SIGMA) ** 2)
TAPS = tl.constexpr(tuple((_TAPS / _TAPS.sum()).tolist()))
RADIUS, WINDOW = tl.constexpr(reference.RADIUS), tl.constexpr(2 * reference.RADIUS + 1)
C1, C2 = tl.constexpr(reference.C1), tl.constexpr(reference.C2)
SHIFT = tl.constexpr(0.5)


def ssim(image, target) -> Tensor:
    return _Ssim.apply(image, target)  # type: ignore[return-value]


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image, target):
        image, target = image.contiguous(), target.contiguous()
        ssim_map = torch.empty_like(image)
        keep = ctx.needs_input_grad[0]
        partials = [torch.empty_like(image) if keep else ssim_map for _ in range(3)]
        _launch(_forward, image, target, ssim_map, *partials, KEEP=keep)
        if keep:
            ctx.save_for_backward(image, target, *partials)
        return ssim_map

    @staticmethod
    @once_differentiable
    def backward(ctx, v_map):  # type: ignore[override]
        image, target, *partials = ctx.saved_tensors
        v_image = torch.empty_like(image)
        _launch(_backward, image, target, *partials, v_map.contiguous(), v_image)
        return v_image, None


def _launch(kernel, image, *tensors, **switches) -> None:
    C, H, W, D = image.shape
    across = blocks(W * D, COLUMNS)
    rows = min(max(C * H * across // PROGRAMS, STRIP[0]), STRIP[1])
    grid = (across * blocks(H, rows) * C,)
    kernel[grid](image, *tensors, H, W, rows, D=D, **switches, COLUMNS=COLUMNS, num_warps=WARPS)


@triton.jit
def _place(H, W, rows, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Offset (64 bit) of the program's image, its columns, how many there are, its first row (64 bit)."""
    across, down = tl.cdiv(W * D, COLUMNS), tl.cdiv(H, rows)
    strip = tl.program_id(0)
    image = (strip // (across * down)).to(tl.int64) * H * W * D
    column = strip % across * COLUMNS + tl.arange(0, COLUMNS)
    return image, column, W * D, (strip // across % down).to(tl.int64) * rows


@triton.jit
def _carried(sums, row):
    """The window's sum that ends with this row, and those that go on: `sums[i]` lacks i + 1 rows."""
    ended = sums[0] + TAPS[10] * row
    return ended, (
        sums[1] + TAPS[9] * row,
        sums[2] + TAPS[8] * row,
        sums[3] + TAPS[7] * row,
        sums[4] + TAPS[6] * row,
        sums[5] + TAPS[5] * row,
        sums[6] + TAPS[4] * row,
        sums[7] + TAPS[3] * row,
        sums[8] + TAPS[2] * row,
        sums[9] + TAPS[1] * row,
        TAPS[0] * row,
    )


@triton.jit
def _forward(
    image, target, ssim_map, by_mean, by_square, by_product, H, W, rows,
    D: tl.constexpr, KEEP: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The map and, with KEEP, its derivatives by the means of x, x^2 and x y, x and y shifted."""
    first, column, width, y0 = _place(H, W, rows, D, COLUMNS)
    none = tl.zeros((COLUMNS,), tl.float32)
    nothing = (none, none, none, none, none, none, none, none, none, none)
    carry_x, carry_y, carry_xx, carry_yy, carry_xy = nothing, nothing, nothing, nothing, nothing
    for y in range(y0 - RADIUS, tl.minimum(y0 + rows, H) + RADIUS):
        here = first + y * width + column
        sum_x, sum_y, sum_xx, sum_yy, sum_xy = none, none, none, none, none
        for k in tl.static_range(WINDOW):
            off = (k - RADIUS) * D
            seen = (y >= 0) & (y < H) & (column + off >= 0) & (column + off < width)
            p = tl.load(image + here + off, mask=seen, other=0.0) - SHIFT
            q = tl.load(target + here + off, mask=seen, other=0.0) - SHIFT
            wp, wq = TAPS[k] * p, TAPS[k] * q
            sum_x += wp
            sum_y += wq
            sum_xx += wp * p
            sum_yy += wq * q
            sum_xy += wp * q
        mean_x, carry_x = _carried(carry_x, sum_x)
        mean_y, carry_y = _carried(carry_y, sum_y)
        mean_xx, carry_xx = _carried(carry_xx, sum_xx)
        mean_yy, carry_yy = _carried(carry_yy, sum_yy)
        mean_xy, carry_xy = _carried(carry_xy, sum_xy)
        done = (y >= y0 + RADIUS) & (column < width)
        out = here - RADIUS * width
        mu_x, mu_y = mean_x + SHIFT, mean_y + SHIFT
        variances = mean_xx - mean_x * mean_x + mean_yy - mean_y * mean_y
        p, q = 1 / (mu_x * mu_x + mu_y * mu_y + C1), 1 / (variances + C2)
        luminance, structure = (2 * mu_x * mu_y + C1) * p, (2 * (mean_xy - mean_x * mean_y) + C2) * q
        tl.store(ssim_map + out, luminance * structure, mask=done)
        if KEEP:
            p_square, p_product = -luminance * structure * q, 2 * luminance * q
            p_mean = 2 * structure * p * (mu_y - luminance * mu_x)
            p_mean -= 2 * mean_x * p_square + mean_y * p_product
            tl.store(by_mean + out, p_mean, mask=done)
            tl.store(by_square + out, p_square, mask=done)
            tl.store(by_product + out, p_product, mask=done)


@triton.jit
def _backward(
    image, target, by_mean, by_square, by_product, v_map, v_image, H, W, rows,
    D: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of a pixel, gathered from the windows that it lies in: no two programs write one pixel."""
    first, column, width, y0 = _place(H, W, rows, D, COLUMNS)
    none = tl.zeros((COLUMNS,), tl.float32)
    nothing = (none, none, none, none, none, none, none, none, none, none)
    carry_mean, carry_square, carry_product = nothing, nothing, nothing
    for y in range(y0 - RADIUS, tl.minimum(y0 + rows, H) + RADIUS):
        here = first + y * width + column
        sum_mean, sum_square, sum_product = none, none, none
        for k in tl.static_range(WINDOW):
            off = (k - RADIUS) * D
            seen = (y >= 0) & (y < H) & (column + off >= 0) & (column + off < width)
            v = TAPS[k] * tl.load(v_map + here + off, mask=seen, other=0.0)
            sum_mean += v * tl.load(by_mean + here + off, mask=seen, other=0.0)
            sum_square += v * tl.load(by_square + here + off, mask=seen, other=0.0)
            sum_product += v * tl.load(by_product + here + off, mask=seen, other=0.0)
        v_mean, carry_mean = _carried(carry_mean, sum_mean)
        v_square, carry_square = _carried(carry_square, sum_square)
        v_product, carry_product = _carried(carry_product, sum_product)
        done = (y >= y0 + RADIUS) & (column < width)
        out = here - RADIUS * width
        p = tl.load(image + out, mask=done, other=0.0) - SHIFT
        q = tl.load(target + out, mask=done, other=0.0) - SHIFT
        tl.store(v_image + out, v_mean + 2 * p * v_square + q * v_product, mask=done)
