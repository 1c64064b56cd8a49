"""Spherical harmonics in Triton; gradients by hand (kernels/README.md, "sh").

All is reading and writing coefficients, 180 bytes a Gaussian at degree 3: threads that walk a row each would
touch 32 bytes for every 4. So a block of rows is loaded as a tile [rows, coefficients, 4 channels], with
neighbouring threads on neighbouring words, and turned around in shared memory, once: then each holds its row.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from splatexp_kernels.launch import blocks, combined, dot, load3, stack, store3, where3

BLOCK = 64  # Gaussians of a program: their tile has 16 kB at degree 3, so that six and more fit an SM
WARPS = 2  # one Gaussian a thread


def sh(degree, means, centers, sh0, shN, visible):
    visible = None if visible is None else visible.contiguous().view(torch.uint8)
    return _Sh.apply(means, centers, sh0, shN, degree, visible)


class _Sh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, centers, sh0, shN, degree, visible):
        means, centers, sh0, shN = (t.contiguous() for t in (means, centers, sh0, shN))
        C, N = len(centers), len(means)
        colors = means.new_empty(C, N, 3)
        _forward[(blocks(N, BLOCK), C)](
            means, centers, sh0, shN, visible, colors, N, 3 * shN.shape[1],
            DEGREE=degree, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        ctx.degree = degree
        ctx.save_for_backward(means, centers, shN, colors)
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx, v_colors):  # type: ignore[override]
        means, centers, shN, colors = ctx.saved_tensors
        N, programs, needs = len(means), blocks(len(means), BLOCK), ctx.needs_input_grad
        v_colors, whole = v_colors.contiguous(), shN.shape[1] == (ctx.degree + 1) ** 2 - 1
        partial = means.new_empty(len(centers), programs, 4) if needs[1] else None
        total = None
        for c, center in enumerate(centers):
            v_shN = (torch.empty_like if whole else torch.zeros_like)(shN) if needs[3] else None
            gradients = [torch.empty_like(means), means.new_empty(N, 1, 3), v_shN]
            _backward[(programs,)](
                means, center, shN, colors[c], v_colors[c], *gradients,
                None if partial is None else partial[c], N, 3 * shN.shape[1],
                DEGREE=ctx.degree, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
            if total is None:
                total = gradients
            else:  # one camera after the other: sums in registers would take more of them than there are
                total = [v if v is None else v.add_(more) for v, more in zip(total, gradients, strict=True)]
        v_centers = None if partial is None else partial.sum(1)[:, :3]
        v_means, v_sh0, v_shN = total or (None, None, None)
        return v_means, v_centers, v_sh0, v_shN, None, None


@triton.jit
def _direction(p, center):
    """Unit vector from the centre, and 1/distance."""
    x, y, z = p[0] - tl.load(center), p[1] - tl.load(center + 1), p[2] - tl.load(center + 2)
    # a Gaussian at the centre has no direction; no camera sees it, and any finite value will do
    inverse = 1 / tl.sqrt(tl.maximum(x * x + y * y + z * z, 1e-30))
    return (x * inverse, y * inverse, z * inverse), inverse


@triton.jit
def _basis(d, DEGREE: tl.constexpr):
    """Values of degree 1 and more at unit directions, and their derivatives to x, y and z, as tuples of [B].

    A value is a polynomial p, q or r of z, by degree, times c or s, the real or imaginary part of (x + iy)^m,
    whose derivative is m times that of order m - 1; t, u and v are those of p, q and r. Zeros fill a tuple up
    to a power of two.
    """
    x, y, z = d
    zero = x - x if DEGREE == 1 else tl.zeros_like(x)  # not a constant, which would be laid out otherwise
    zz = z * z
    c2, s2 = x * x - y * y, 2 * x * y
    c3, s3 = x * c2 - y * s2, x * s2 + y * c2
    c4, s4 = x * c3 - y * s3, x * s3 + y * c3
    p0, t0 = 0.9461746957575601 * zz - 0.3153915652525201, 1.8923493915151202 * z
    p1, t1, p2 = -1.092548430592079 * z, -1.092548430592079, 0.5462742152960395
    q0, u0 = z * (1.865881662950577 * zz - 1.119528997770346), 5.597644988851731 * zz - 1.119528997770346
    q1, u1 = 0.4570457994644658 - 2.285228997322329 * zz, -4.570457994644658 * z
    q2, u2, q3 = 1.445305721320277 * z, 1.445305721320277, -0.5900435899266435
    r0 = 1.984313483298443 * z * q0 - 1.006230589874905 * p0
    v0 = 1.984313483298443 * (q0 + z * u0) - 1.006230589874905 * t0
    r1, v1 = z * (2.007139630671868 - 4.683325804901025 * zz), 2.007139630671868 - 14.049977414703075 * zz
    r2, v2 = 3.31161143515146 * zz - 0.47308734787878, 6.62322287030292 * z
    r3, v3, r4 = -1.770130769779931 * z, -1.770130769779931, 0.6258357354491763

    k = 0.48860251190292
    values, v_z = (-k * y, k * z, -k * x), (zero, zero + k, zero)
    v_x, v_y = (zero, zero, zero - k), (zero - k, zero, zero)
    if DEGREE >= 2:
        values += (p2 * s2, p1 * y, p0, p1 * x, p2 * c2)
        v_x += (2 * p2 * y, zero, zero, p1, 2 * p2 * x)
        v_y += (2 * p2 * x, p1, zero, zero, -2 * p2 * y)
        v_z += (zero, t1 * y, t0, t1 * x, zero)
    if DEGREE >= 3:
        values += (q3 * s3, q2 * s2, q1 * y, q0, q1 * x, q2 * c2, q3 * c3)
        v_x += (3 * q3 * s2, 2 * q2 * y, zero, zero, q1, 2 * q2 * x, 3 * q3 * c2)
        v_y += (3 * q3 * c2, 2 * q2 * x, q1, zero, zero, -2 * q2 * y, -3 * q3 * s2)
        v_z += (zero, u2 * s2, u1 * y, u0, u1 * x, u2 * c2, zero)
    if DEGREE >= 4:
        values += (r4 * s4, r3 * s3, r2 * s2, r1 * y, r0, r1 * x, r2 * c2, r3 * c3, r4 * c4)
        v_x += (4 * r4 * s3, 3 * r3 * s2, 2 * r2 * y, zero, zero, r1, 2 * r2 * x, 3 * r3 * c2, 4 * r4 * c3)
        v_y += (4 * r4 * c3, 3 * r3 * c2, 2 * r2 * x, r1, zero, zero, -2 * r2 * y, -3 * r3 * s2, -4 * r4 * s3)
        v_z += (zero, v3 * s3, v2 * s2, v1 * y, v0, v1 * x, v2 * c2, v3 * c3, zero)
    return _filled(values, zero), (_filled(v_x, zero), _filled(v_y, zero), _filled(v_z, zero))


@triton.jit
def _filled(values, zero):
    if len(values) == 24:
        values += (zero, zero, zero, zero, zero, zero, zero)
    if len(values) != 8:
        values += (zero,)
    return values


@triton.jit
def _tile(shN, n, held, stride, DEGREE: tl.constexpr):
    """Pointers to [B, K, 4]: rows, coefficients of degree 1 and more, channels; and which are there."""
    SIZE: tl.constexpr = 2 ** (DEGREE + 1) if DEGREE > 1 else 4
    k, channel = tl.arange(0, SIZE)[None, :, None], tl.arange(0, 4)[None, None, :]
    there = held[:, None, None] & (k < (DEGREE + 1) * (DEGREE + 1) - 1) & (channel < 3)
    return shN + (n * stride)[:, None, None] + k * 3 + channel, there


@triton.jit
def _channels(tile):
    """Three [B, K] out of [B, K, 4]."""
    red_blue, green_none = tl.split(tile.reshape(tile.shape[0], tile.shape[1], 2, 2))
    red, blue = tl.split(red_blue)
    green, _ = tl.split(green_none)
    return red, green, blue


@triton.jit(do_not_specialize=["N"])
def _forward(means, centers, sh0, shN, visible, colors, N, stride, DEGREE: tl.constexpr, BLOCK: tl.constexpr):
    """A block of Gaussians and one camera; rows that it does not see are not read."""
    c, start = tl.program_id(1), tl.program_id(0).to(tl.int64) * BLOCK
    n = tl.arange(0, BLOCK)
    held = n < N - start
    row = c.to(tl.int64) * N + start
    seen = held
    if visible is not None:
        seen &= tl.load(visible + row + n, held, 0) != 0
    r, g, b = load3(sh0 + start * 3 + n * 3, seen)
    r, g, b = 0.5 + 0.28209479177387814 * r, 0.5 + 0.28209479177387814 * g, 0.5 + 0.28209479177387814 * b
    if DEGREE > 0:
        direction, _ = _direction(load3(means + start * 3 + n * 3, seen), centers + c * 3)
        pointers, there = _tile(shN + start * stride, n, seen, stride, DEGREE)
        red, green, blue = _channels(tl.load(pointers, there, 0.0))
        values, _ = _basis(direction, DEGREE)
        values = stack(values)
        r, g, b = r + tl.sum(values * red, 1), g + tl.sum(values * green, 1), b + tl.sum(values * blue, 1)
    color = tl.maximum(r, 0.0), tl.maximum(g, 0.0), tl.maximum(b, 0.0)
    store3(colors + row * 3 + n * 3, where3(seen, color), held)


@triton.jit(do_not_specialize=["N"])
def _backward(
    means, center, shN, colors, v_colors, v_means, v_sh0, v_shN, partial, N, stride,
    DEGREE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of Gaussians and one camera; `partial` takes the block's share of v_center.

    No gradient passes a channel whose colour is 0, be it clamped or the row invisible.
    """
    block = tl.program_id(0).to(tl.int64)
    start, n = block * BLOCK, tl.arange(0, BLOCK)
    held = n < N - start
    at = start * 3 + n * 3
    r, g, b = load3(colors + at, held)
    seen = (r > 0) | (g > 0) | (b > 0)
    v_r, v_g, v_b = load3(v_colors + at, seen)
    v_r, v_g, v_b = tl.where(r > 0, v_r, 0.0), tl.where(g > 0, v_g, 0.0), tl.where(b > 0, v_b, 0.0)
    v_dc = 0.28209479177387814 * v_r, 0.28209479177387814 * v_g, 0.28209479177387814 * v_b
    zero = tl.zeros([BLOCK], tl.float32)
    v_p = (zero, zero, zero)
    if DEGREE > 0:
        direction, inverse = _direction(load3(means + at, seen), center)
        pointers, there = _tile(shN + start * stride, n, seen, stride, DEGREE)
        red, green, blue = _channels(tl.load(pointers, there, 0.0))
        w = red * v_r[:, None] + green * v_g[:, None] + blue * v_b[:, None]
        values, slopes = _basis(direction, DEGREE)
        x, y, z = stack(slopes[0]), stack(slopes[1]), stack(slopes[2])
        v_d = tl.sum(w * x, 1), tl.sum(w * y, 1), tl.sum(w * z, 1)
        v_p = where3(seen, combined(inverse, v_d, -inverse * dot(v_d, direction), direction))
        if v_shN is not None:
            values = stack(values)
            red, green, blue = values * v_r[:, None], values * v_g[:, None], values * v_b[:, None]
            tile = tl.join(tl.join(red, blue), tl.join(green, tl.zeros_like(red)))
            pointers, there = _tile(v_shN + start * stride, n, held, stride, DEGREE)
            tl.store(pointers, tile.reshape(BLOCK, values.shape[1], 4), there)
    if partial is not None:
        sums = tl.sum(stack((-v_p[0], -v_p[1], -v_p[2], zero)), 0)
        tl.store(partial + block * 4 + tl.arange(0, 4), sums)
    store3(v_means + at, v_p, held)
    store3(v_sh0 + at, v_dc, held)
