"""Geometry of Gaussians: pure functions.

Notation: Sigma = R S S^T R^T, with R from the quaternion (w,x,y,z) and S the diagonal of the scales.
"""

import numpy as np
import torch
from torch import Tensor

from splatexp.settings.checks import check_choice, check_range
from splatexp.system.devices import sent

FAINTEST = -30.0  # logit of an opacity that is as good as 0
FRUSTUM_MARGIN = 0.3  # a Jacobian is taken at most this share of the half frame outside it, as by `project`


def rotations(quats: Tensor) -> Tensor:
    """[N,3,3] rotation matrices of quaternions [N,4] of any length but 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions [N,4] (w,x,y,z) of rotation matrices [N,3,3], the largest component positive.

    Source: Shepperd 1978: from the one of four squares that is largest, so that nothing small divides.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotations.unbind(-2))
    products = [
        1 + a + e + i, h - f, c - g, d - b,
        h - f, 1 + a - e - i, b + d, c + g,
        c - g, b + d, 1 - a + e - i, f + h,
        d - b, c + g, f + h, 1 - a - e + i,
    ]  # fmt: skip
    table = torch.stack(products, -1).unflatten(-1, (4, 4))  # row k is the quaternion times 4 of its k-th
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    rows = table.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    return torch.nn.functional.normalize(rows, dim=-1)


def samples(means: Tensor, quats: Tensor, scales: Tensor, generator: torch.Generator) -> Tensor:
    """One draw [N,3] from each Gaussian N(mean, Sigma)."""
    noise = sent(torch.randn(means.shape, generator=generator, dtype=means.dtype), means.device)
    return means + torch.einsum("nij,nj->ni", rotations(quats), noise * scales)


def spacing(points: Tensor, neighbours: int = 3) -> Tensor:
    """Root mean square distance [P] of each point [P,3] to its nearest others; above 0, also for twins.

    Distances below a thousandth of their median count as that much; a lone point is 0.01 from nothing.

    Source: Kerbl et al. 2023, section 5.1. Differs: 3DGS clamps squared distances at 1e-7 world units.
    """
    from scipy.spatial import KDTree

    count = min(neighbours, len(points) - 1)
    if count < 1:
        return torch.full((len(points),), 0.01, dtype=points.dtype)
    coordinates = points.double().numpy()
    distances = KDTree(coordinates).query(coordinates, k=count + 1, workers=-1)[0][:, 1:]
    root = np.sqrt((distances**2).mean(1))
    typical = float(np.median(root[root > 0])) if (root > 0).any() else 10.0
    return torch.from_numpy(np.maximum(root, 1e-3 * typical)).to(points.dtype)


def footprint(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    method: str = "exact",
    r_min: float = 0.0,
    r_max: float = float("inf"),
    sigmas: float = 3.0,
    eps2d: float = 0.3,
    near: float = 0.01,
) -> Tensor:
    """Radii [C,N] px of Gaussians on screen, differentiable; 0 where the mean is not in front of `near`.

    exact: `sigmas` standard deviations along the longer axis of J W Sigma W^T J^T + eps2d I, with the
    Jacobian that the projection takes: at most 30 % of the half frame outside it.
    fast: `sigmas` times the largest scale times the mean focal length over the depth; without blur. With
    fx = fy, and (u, v) the direction x/z, y/z of the Jacobian, it bounds the other from above:
    exact^2 <= sigmas^2 eps2d + fast^2 (1 + u^2 + v^2), with equality for round ones.

    Args:
        means, quats, scales: [N,3], [N,4], [N,3] activated.
        viewmats, Ks: [C,4,4], [C,3,3].
        r_min, r_max: px; what is in front is clamped to these.
        eps2d: px^2.

    Source: Zwicker et al. 2001, "EWA volume splatting"; Kerbl et al. 2023, eq. 5.
    """
    check_choice("footprint.method", method, ("exact", "fast"))
    check_range("footprint.r_max", r_max, r_min)
    W, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]
    x, y, z = ((W @ means[:, :, None]).squeeze(-1) + t).unbind(-1)  # [C,N]
    front = z > near
    z = torch.where(front, z, torch.ones_like(z))  # so that no gradient passes through a division by 0
    fx, fy, cx, cy = (Ks[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if method == "fast":
        radii = sigmas * scales.amax(-1) * 0.5 * (fx + fy) / z
        return torch.where(front, radii.clamp(r_min, r_max), torch.zeros_like(radii))
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    u = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    v = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    axes = W @ (rotations(quats) * scales[:, None, :])  # [C,N,3,3]
    across = (fx / z)[..., None] * (axes[..., 0, :] - u[..., None] * axes[..., 2, :])
    down = (fy / z)[..., None] * (axes[..., 1, :] - v[..., None] * axes[..., 2, :])
    xx, yy, xy = across.square().sum(-1), down.square().sum(-1), (across * down).sum(-1)
    # the floor keeps the slope of the root finite where both eigenvalues are the same
    gap = ((0.5 * (xx - yy)).square() + xy.square()).clamp_min(1e-12).sqrt()
    radii = sigmas * (0.5 * (xx + yy) + gap + eps2d).sqrt()
    return torch.where(front, radii.clamp(r_min, r_max), torch.zeros_like(radii))


def dimmed(opacity_logits: Tensor, share: Tensor) -> Tensor:
    """Logits of opacities times a share in [0,1]: finite, exact near 1, the same bits where share is 1."""
    faint = opacity_logits.sigmoid() * (1 - share)
    logits = torch.nn.functional.logsigmoid(opacity_logits) + share.log()
    logits = logits - ((-opacity_logits).sigmoid() + faint).log()
    return torch.where(share == 1, opacity_logits, logits.clamp_min(FAINTEST))
