"""EWA projection of 3D Gaussians, in plain torch.

Notation: camera c, Gaussian n, a pair of both is one row m; camera axes x right, y down, z forward.
Source: Zwicker et al. 2001, "EWA volume splatting", eq. 24-31; Kerbl et al. 2023, eq. 5-6;
    Yu et al. 2024, "Mip-Splatting", eq. 9 (compensation).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from splatexp_kernels.constants import ALPHA_MIN, COMPENSATION_MIN2, FRUSTUM_MARGIN


class Projection(NamedTuple):
    """Gaussians as seen by each camera; every output of a culled one is 0."""

    means2d: Tensor  # [C,N,2] px
    conics: Tensor  # [C,N,3] px^-2: a, b, c of the inverse 2D covariance [[a, b], [b, c]]
    depths: Tensor  # [C,N] world units along the camera's z
    radii: Tensor  # [C,N,2] px, half extents of the box where alpha >= ALPHA_MIN; 0 = culled; no gradient
    compensations: Tensor  # [C,N] opacity factor that undoes eps2d's blur; 1 unless prefilter


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
    C, N = len(viewmats), len(means)

    def views(camera, row):
        return _view(
            means[row], quats[row], scales[row], viewmats[camera], Ks[camera].detach(), width, height
        )

    with torch.no_grad():  # which pairs are seen, and how far they reach
        camera = torch.arange(C, device=means.device).repeat_interleave(N)
        row = torch.arange(N, device=means.device).repeat(C)
        xy, cov, depths = views(camera, row)
        conics, compensations = _conic(cov, eps2d, prefilter)
        faded = opacities[row] * compensations
        variances = cov.diagonal(dim1=-2, dim2=-1) + eps2d
        radii = torch.sqrt(2 * torch.log(faded / ALPHA_MIN)[:, None] * variances)
        size = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
        seen = (depths > near) & (depths < far) & (faded >= ALPHA_MIN)
        seen &= ((xy + radii > 0) & (xy - radii < size)).all(-1)
        seen &= torch.cat([xy, conics, radii], -1).isfinite().all(-1) & (_det(cov, eps2d) > 0)
        if cull_radius_px > 0:
            seen &= radii.amax(-1) > cull_radius_px

    # Only seen pairs enter the graph: culled ones get gradients of exactly 0, also where they hold NaN.
    camera, row, radii = camera[seen], row[seen], radii[seen]
    xy, cov, depths = views(camera, row)
    conics, compensations = _conic(cov, eps2d, prefilter)

    def scatter(values):
        return values.new_zeros(C, N, *values.shape[1:]).index_put((camera, row), values)

    return Projection(*map(scatter, (xy, conics, depths, radii, compensations)))


def rotations(quats: Tensor) -> Tensor:
    """Return the rotation matrices [M,3,3] of quaternions [M,4] (w,x,y,z) of any length; NaN for length 0."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def _view(means, quats, scales, viewmats, Ks, width, height):
    """Return means [M,2] px, covariances [M,2,2] px^2 and depths [M] of M pairs of a Gaussian and its
    camera.
    """
    R, t = viewmats[:, :3, :3], viewmats[:, :3, 3]
    x, y, z = ((R @ means[:, :, None])[:, :, 0] + t).unbind(-1)
    fx, fy, cx, cy = Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    # The linearisation diverges far outside the frame, so the Jacobian is taken at a clamped direction.
    u = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    v = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    J = torch.stack([fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z], -1).unflatten(-1, (2, 3))
    half = J @ R @ (rotations(quats) * scales[:, None, :])
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    return means2d, half @ half.mT, z


def _det(cov, eps2d):
    return (cov[:, 0, 0] + eps2d) * (cov[:, 1, 1] + eps2d) - cov[:, 0, 1] * cov[:, 1, 0]


def _conic(cov, eps2d, prefilter):
    """Return conics [M,3] of covariances blurred by eps2d, and compensations [M]."""
    det = _det(cov, eps2d)
    conics = torch.stack([cov[:, 1, 1] + eps2d, -cov[:, 0, 1], cov[:, 0, 0] + eps2d], -1) / det[:, None]
    if not prefilter:
        return conics, torch.ones_like(det)
    return conics, torch.sqrt((_det(cov, 0.0) / det).clamp_min(COMPENSATION_MIN2))
