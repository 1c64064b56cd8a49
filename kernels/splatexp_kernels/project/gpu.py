"""Projection in Triton; gradients by hand (kernels/README.md, "project").

One thread takes one Gaussian, so that all between reading and writing stays in registers: each byte moves
once, and memory is the limit. Backward a thread walks the cameras and adds up in registers, without atomics.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from splatexp_kernels.launch import (
    ALPHA_MIN,
    COMPENSATION_MIN2,
    FRUSTUM_MARGIN,
    LN2,
    applied,
    axes,
    blocks,
    combined,
    dot,
    load3,
    load_rows,
    plus,
    stack,
    store3,
    store_rows,
    times,
    unit,
    where3,
)
from splatexp_kernels.project.reference import Projection

BLOCK = 128  # Gaussians of a program, one for each thread of four warps
FINITE = tl.constexpr(3e38)


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
    limits = (float(near), float(far), float(cull_radius_px))
    settings = (float(width), float(height), float(eps2d), limits, prefilter)
    return Projection(*_Project.apply(means, quats, scales, opacities, viewmats, Ks, settings))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, viewmats, Ks, settings):
        inputs = [t.contiguous() for t in (means, quats, scales, opacities, viewmats, Ks)]
        *frame, limits, prefilter = settings
        C, N = len(viewmats), len(means)
        outputs = [means.new_empty(C, N, *last) for last in ((2,), (3,), (), (2,), ())]
        _forward[(blocks(N, BLOCK), C)](
            *inputs, *outputs, N, *frame, *limits, PREFILTER=prefilter, BLOCK=BLOCK
        )
        ctx.frame, ctx.prefilter, radii = frame, prefilter, outputs[3]
        ctx.save_for_backward(*inputs[:3], *inputs[4:], radii)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)  # an output that the loss leaves out costs nothing
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, v_means2d, v_conics, v_depths, _, v_compensations):  # type: ignore[override]
        means, quats, scales, viewmats, Ks, radii = ctx.saved_tensors
        C, N = len(viewmats), len(means)
        upstream = (v_means2d, v_conics, v_depths, v_compensations if ctx.prefilter else None)
        upstream = [None if v is None else v.contiguous() for v in upstream]
        v_means, v_quats, v_scales = (torch.empty_like(t) for t in (means, quats, scales))
        partial = means.new_empty(blocks(N, BLOCK), C, 4, 4) if ctx.needs_input_grad[4] else None
        _backward[(blocks(N, BLOCK),)](
            means, quats, scales, viewmats, Ks, radii, *upstream, v_means, v_quats, v_scales, partial,
            N, *ctx.frame, C=C, BLOCK=BLOCK,
        )  # fmt: skip
        v_viewmats = None if partial is None else partial.sum(0)
        return v_means, v_quats, v_scales, None, v_viewmats, None, None


@triton.jit
def _pose(viewmat):
    """Rows of W, then t."""
    first = (tl.load(viewmat), tl.load(viewmat + 1), tl.load(viewmat + 2))
    second = (tl.load(viewmat + 4), tl.load(viewmat + 5), tl.load(viewmat + 6))
    third = (tl.load(viewmat + 8), tl.load(viewmat + 9), tl.load(viewmat + 10))
    return (first, second, third), (tl.load(viewmat + 3), tl.load(viewmat + 7), tl.load(viewmat + 11))


@triton.jit
def _lens(K):
    """fx, fy, cx, cy."""
    return tl.load(K), tl.load(K + 4), tl.load(K + 2), tl.load(K + 5)


@triton.jit
def _clamped(ratio, focal, center, size):
    """x/z or y/z where the Jacobian is taken, and whether that is where it is."""
    margin = size / focal * (0.5 * FRUSTUM_MARGIN)
    low, high = -center / focal - margin, (size - center) / focal + margin
    return tl.minimum(tl.maximum(ratio, low), high), (ratio >= low) & (ratio <= high)


@triton.jit
def _view(p, s, R, W, t, lens, width, height):
    """(x/z, y/z, z); u, v and where they are free; rows of J W, of B = J W R, of A = B diag(s)."""
    fx, fy, cx, cy = lens
    z = dot(W[2], p) + t[2]
    over_z = 1 / z
    x, y = (dot(W[0], p) + t[0]) * over_z, (dot(W[1], p) + t[1]) * over_z
    u, u_free = _clamped(x, fx, cx, width)
    v, v_free = _clamped(y, fy, cy, height)
    jx, jy = fx * over_z, fy * over_z
    U0, U1 = combined(jx, W[0], -jx * u, W[2]), combined(jy, W[1], -jy * v, W[2])
    B0 = dot(U0, R[0]), dot(U0, R[1]), dot(U0, R[2])
    B1 = dot(U1, R[0]), dot(U1, R[1]), dot(U1, R[2])
    return (x, y, z), (u, v, u_free, v_free), (U0, U1), (B0, B1), (times(B0, s), times(B1, s))


@triton.jit
def _covariance(A):
    """xx, xy, yy of A Aᵀ and its determinant, as a sum of squares (Cauchy-Binet): nothing cancels."""
    a, b = A
    m01, m02, m12 = a[0] * b[1] - a[1] * b[0], a[0] * b[2] - a[2] * b[0], a[1] * b[2] - a[2] * b[1]
    return dot(a, a), dot(a, b), dot(b, b), m01 * m01 + m02 * m02 + m12 * m12


@triton.jit(do_not_specialize=["N"])
def _forward(
    means, quats, scales, opacities, viewmats, Ks, means2d, conics, depths, radii, compensations,
    N, width, height, eps2d, near, far, cull_radius_px, PREFILTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of Gaussians before one camera."""
    c, start = tl.program_id(1), tl.program_id(0).to(tl.int64) * BLOCK
    n = tl.arange(0, BLOCK)
    held = n < N - start
    p, s = load3(means + start * 3 + n * 3, held), load3(scales + start * 3 + n * 3, held)
    q, _ = unit(load_rows(quats + start * 4 + n * 4, 4, held))
    W, t = _pose(viewmats + c * 16)
    lens = _lens(Ks + c * 9)
    at, _, _, _, A = _view(p, s, axes(q), W, t, lens, width, height)
    xx, xy, yy, det0 = _covariance(A)
    det = det0 + eps2d * (xx + yy) + eps2d * eps2d
    xx, yy, over = xx + eps2d, yy + eps2d, 1 / det
    compensation = tl.full([BLOCK], 1.0, tl.float32)
    if PREFILTER:
        compensation = tl.sqrt(tl.maximum(det0 * over, COMPENSATION_MIN2))
    faded = tl.load(opacities + start + n, held, 0.0) * compensation
    px, py = lens[0] * at[0] + lens[2], lens[1] * at[1] + lens[3]
    reach = tl.log2(faded / ALPHA_MIN) * (2 * LN2)
    rx, ry = tl.sqrt(reach * xx), tl.sqrt(reach * yy)

    seen = held & (at[2] > near) & (at[2] < far) & (faded > ALPHA_MIN) & (det > 0)
    seen &= (px + rx > 0) & (px - rx < width) & (py + ry > 0) & (py - ry < height)
    seen &= (tl.abs(px) < FINITE) & (tl.abs(py) < FINITE) & (rx < FINITE) & (ry < FINITE)
    seen &= (faded < FINITE) & (det < FINITE) & (over < FINITE) & (tl.abs(xy) < FINITE)
    seen &= (cull_radius_px <= 0) | (tl.maximum(rx, ry) > cull_radius_px)

    row = c.to(tl.int64) * N + start
    store_rows(means2d + row * 2 + n * 2, (tl.where(seen, px, 0.0), tl.where(seen, py, 0.0)), held)
    store_rows(radii + row * 2 + n * 2, (tl.where(seen, rx, 0.0), tl.where(seen, ry, 0.0)), held)
    store3(conics + row * 3 + n * 3, where3(seen, (yy * over, -xy * over, xx * over)), held)
    tl.store(depths + row + n, tl.where(seen, at[2], 0.0), held)
    tl.store(compensations + row + n, tl.where(seen, compensation, 0.0), held)


@triton.jit
def _covariance_backward(A, eps2d, row, n, seen, v_conics, v_compensations):
    """Gradients of Σ's xx, of its two xy together, and of yy."""
    xx, xy, yy, det0 = _covariance(A)
    over = 1 / (det0 + eps2d * (xx + yy) + eps2d * eps2d)
    a, b, c = (yy + eps2d) * over, -xy * over, (xx + eps2d) * over
    v_xx, v_xy, v_yy = tl.zeros_like(xx), tl.zeros_like(xx), tl.zeros_like(xx)
    if v_conics is not None:
        va, vb, vc = load3(v_conics + row * 3 + n * 3, seen)
        vb *= 0.5
        m00, m01, m10, m11 = va * a + vb * b, va * b + vb * c, vb * a + vc * b, vb * b + vc * c
        v_xx, v_xy, v_yy = -(a * m00 + b * m10), -2 * (a * m01 + b * m11), -(b * m01 + c * m11)
    if v_compensations is not None:
        ratio = det0 * over
        v_rho = tl.load(v_compensations + row + n, seen, 0.0)
        v_ratio = v_rho * 0.5 * over / tl.sqrt(tl.maximum(ratio, COMPENSATION_MIN2))
        v_ratio = tl.where(ratio > COMPENSATION_MIN2, v_ratio, 0.0)
        v_xx += v_ratio * (yy - ratio * (yy + eps2d))
        v_yy += v_ratio * (xx - ratio * (xx + eps2d))
        v_xy -= 2 * v_ratio * xy * (1 - ratio)
    return v_xx, v_xy, v_yy


@triton.jit
def _point_backward(at, clamp, U, v_U, W, lens, row, n, seen, v_means2d, v_depths):
    """Gradient of the mean in camera space."""
    fx, fy, _, _ = lens
    over_z = 1 / at[2]
    v_x = tl.where(clamp[2], -fx * over_z * dot(W[2], v_U[0]), 0.0)  # of x/z and y/z
    v_y = tl.where(clamp[3], -fy * over_z * dot(W[2], v_U[1]), 0.0)
    if v_means2d is not None:
        v_px, v_py = load_rows(v_means2d + row * 2 + n * 2, 2, seen)
        v_x, v_y = v_x + fx * v_px, v_y + fy * v_py
    v_z = -over_z * (at[0] * v_x + at[1] * v_y + dot(U[0], v_U[0]) + dot(U[1], v_U[1]))
    if v_depths is not None:
        v_z += tl.load(v_depths + row + n, seen, 0.0)
    return v_x * over_z, v_y * over_z, v_z


@triton.jit
def _camera_backward(p, at, clamp, v_U, v_t, lens, seen):
    """[16]: what the block adds to v_viewmats of one camera, row by row."""
    jx, jy = lens[0] / at[2], lens[1] / at[2]
    first, second = combined(jx, v_U[0], v_t[0], p), combined(jy, v_U[1], v_t[1], p)
    third = applied((v_U[0], v_U[1], p), (-jx * clamp[0], -jy * clamp[1], v_t[2]))
    zero = tl.zeros_like(jx)
    rows = stack((
        first[0], first[1], first[2], v_t[0], second[0], second[1], second[2], v_t[1],
        third[0], third[1], third[2], v_t[2], zero, zero, zero, zero,
    ))  # fmt: skip
    return tl.sum(tl.where(seen[:, None], rows, 0.0), axis=0)


@triton.jit
def _quat_backward(q, V, over_length, ever):
    """Gradient of a quaternion; V holds the columns of v_R."""
    w, x, y, z = q
    a, b, c = V[1][2] - V[2][1], V[2][0] - V[0][2], V[0][1] - V[1][0]
    d, e, f = V[0][1] + V[1][0], V[0][2] + V[2][0], V[1][2] + V[2][1]
    v_w = 2 * (x * a + y * b + z * c)
    v_x = 2 * (w * a + y * d + z * e - 2 * x * (V[1][1] + V[2][2]))
    v_y = 2 * (w * b + x * d + z * f - 2 * y * (V[0][0] + V[2][2]))
    v_z = 2 * (w * c + x * e + y * f - 2 * z * (V[0][0] + V[1][1]))
    along = v_w * w + v_x * x + v_y * y + v_z * z
    v_w, v_x = (v_w - w * along) * over_length, (v_x - x * along) * over_length
    v_y, v_z = (v_y - y * along) * over_length, (v_z - z * along) * over_length
    # What no camera sees may hold anything, a zero quaternion included: its gradient is 0.
    return (
        tl.where(ever, v_w, 0.0),
        tl.where(ever, v_x, 0.0),
        tl.where(ever, v_y, 0.0),
        tl.where(ever, v_z, 0.0),
    )


@triton.jit(do_not_specialize=["N"])
def _backward(
    means, quats, scales, viewmats, Ks, radii, v_means2d, v_conics, v_depths, v_compensations,
    v_means, v_quats, v_scales, partial, N, width, height, eps2d, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of Gaussians before all cameras in turn; `partial` takes v_viewmats of each block."""
    block = tl.program_id(0).to(tl.int64)
    start, row = block * BLOCK, block * BLOCK
    n = tl.arange(0, BLOCK)
    held = n < N - start
    p, s = load3(means + start * 3 + n * 3, held), load3(scales + start * 3 + n * 3, held)
    q, over_length = unit(load_rows(quats + start * 4 + n * 4, 4, held))
    R, ever, zero = axes(q), n < 0, tl.zeros([BLOCK], tl.float32)
    v_p, v_s = (zero, zero, zero), (zero, zero, zero)
    V0, V1, V2 = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
    for c in range(C):
        seen = tl.load(radii + row * 2 + n * 2, held, 0.0) > 0
        ever |= seen
        W, t = _pose(viewmats + c * 16)
        lens = _lens(Ks + c * 9)
        at, clamp, U, B, A = _view(p, s, R, W, t, lens, width, height)
        v_xx, v_xy, v_yy = _covariance_backward(A, eps2d, row, n, seen, v_conics, v_compensations)
        v_A0, v_A1 = combined(2 * v_xx, A[0], v_xy, A[1]), combined(v_xy, A[0], 2 * v_yy, A[1])
        v_s = plus(v_s, where3(seen, plus(times(v_A0, B[0]), times(v_A1, B[1]))))
        a, b = times(v_A0, s), times(v_A1, s)  # v_B
        V0 = plus(V0, where3(seen, combined(a[0], U[0], b[0], U[1])))
        V1 = plus(V1, where3(seen, combined(a[1], U[0], b[1], U[1])))
        V2 = plus(V2, where3(seen, combined(a[2], U[0], b[2], U[1])))
        v_U = applied(R, a), applied(R, b)
        v_t = _point_backward(at, clamp, U, v_U, W, lens, row, n, seen, v_means2d, v_depths)
        v_p = plus(v_p, where3(seen, applied(W, v_t)))
        if partial is not None:
            sums = _camera_backward(p, at, clamp, v_U, v_t, lens, seen)
            tl.store(partial + (block * C + c) * 16 + tl.arange(0, 16), sums)
        row += N
    store3(v_means + start * 3 + n * 3, v_p, held)
    store3(v_scales + start * 3 + n * 3, v_s, held)
    store_rows(v_quats + start * 4 + n * 4, _quat_backward(q, (V0, V1, V2), over_length, ever), held)
