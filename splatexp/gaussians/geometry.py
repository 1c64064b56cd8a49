"""The geometry of Gaussians, as pure functions.

Notation: Sigma = R S S^T R^T, with R from the quaternion (w,x,y,z) and S the diagonal of the scales.
"""

import numpy as np
import torch
from torch import Tensor

from splatexp.settings.checks import check_choice, check_range
from splatexp.system.devices import to_device

MIN_OPACITY_LOGIT = -30.0  # smallest logit that is stored; its opacity is 1e-13
FRUSTUM_MARGIN = 0.3  # of half a frame: the Jacobian is taken at most so far outside it, as in `project`


def quats_to_rotations(quats: Tensor) -> Tensor:
    """Return the rotation matrices [N,3,3] of quaternions [N,4] (w,x,y,z) of any length but 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotations_to_quats(rotations: Tensor) -> Tensor:
    """Return the unit quaternions [N,4] (w,x,y,z) of rotation matrices [N,3,3].

    Their largest component is positive.

    Source: Shepperd 1978. The largest of the four components is computed first, so that no division is by a
    small number.
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotations.unbind(-2))
    products = [
        1 + a + e + i, h - f, c - g, d - b,
        h - f, 1 + a - e - i, b + d, c + g,
        c - g, b + d, 1 - a + e - i, f + h,
        d - b, c + g, f + h, 1 - a - e + i,
    ]  # fmt: skip
    table = torch.stack(products, -1).unflatten(
        -1, (4, 4)
    )  # row k is the quaternion times 4 times its k-th component
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    rows = table.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    return torch.nn.functional.normalize(rows, dim=-1)


def sample_gaussians(means: Tensor, quats: Tensor, scales: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one point [N,3] from each Gaussian N(mean, Sigma)."""
    noise = to_device(torch.randn(means.shape, generator=generator, dtype=means.dtype), means.device)
    return means + torch.einsum("nij,nj->ni", quats_to_rotations(quats), noise * scales)


def neighbor_distance(points: Tensor, neighbours: int = 3) -> Tensor:
    """Return the root mean square distance [P] of each point [P,3] to its nearest neighbours.

    Distances are at least a thousandth of their median, so that they are above 0 for equal points too. The
    distance of a single point is 0.01.

    Source: Kerbl et al. 2023, section 5.1.
    Differs: 3DGS clamps squared distances at 1e-7 world units.
    """
    from scipy.spatial import KDTree

    count = min(neighbours, len(points) - 1)
    if count < 1:
        return torch.full((len(points),), 0.01, dtype=points.dtype)
    coordinates = points.double().numpy()
    distances = KDTree(coordinates).query(coordinates, k=count + 1, workers=-1)[0][:, 1:]
    rms = np.sqrt((distances**2).mean(1))
    median = float(np.median(rms[rms > 0])) if (rms > 0).any() else 10.0
    return torch.from_numpy(np.maximum(rms, 1e-3 * median)).to(points.dtype)


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
    """Return the radii [C,N], px, of Gaussians on screen, differentiable; 0 where the mean is behind `near`.

    The method exact takes `sigmas` standard deviations along the longer axis of J W Sigma W^T J^T + eps2d I,
    with the Jacobian J of the projection, which is taken at most 30 % of half the frame outside it.

    The method fast takes `sigmas` times the largest scale times the mean focal length over the depth, without
    blur. With fx = fy, and (u, v) the direction x/z, y/z of the Jacobian, it bounds the other from above:
    exact^2 <= sigmas^2 eps2d + fast^2 (1 + u^2 + v^2), with equality for round Gaussians.

    Args:
        means, quats, scales: [N,3], [N,4], [N,3], the scales activated.
        viewmats, Ks: [C,4,4], [C,3,3].
        width, height: px.
        method: exact or fast.
        r_min, r_max: px, to which the radii of Gaussians in front are clamped.
        sigmas: standard deviations.
        eps2d: px^2, the blur.
        near: world units.

    Source: Zwicker et al. 2001, "EWA volume splatting"; Kerbl et al. 2023, eq. 5.
    """
    check_choice("footprint.method", method, ("exact", "fast"))
    check_range("footprint.r_max", r_max, r_min)
    W, t = viewmats[:, None, :3, :3], viewmats[:, None, :3, 3]
    x, y, z = ((W @ means[:, :, None]).squeeze(-1) + t).unbind(-1)  # [C,N]
    front = z > near
    z = torch.where(front, z, torch.ones_like(z))  # so that the gradient has no division by 0
    fx, fy, cx, cy = (Ks[:, row, column, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if method == "fast":
        radii = sigmas * scales.amax(-1) * 0.5 * (fx + fy) / z
        return torch.where(front, radii.clamp(r_min, r_max), torch.zeros_like(radii))
    margin_x, margin_y = FRUSTUM_MARGIN * 0.5 * width / fx, FRUSTUM_MARGIN * 0.5 * height / fy
    u = (x / z).clamp(-cx / fx - margin_x, (width - cx) / fx + margin_x)
    v = (y / z).clamp(-cy / fy - margin_y, (height - cy) / fy + margin_y)
    axes = W @ (quats_to_rotations(quats) * scales[:, None, :])  # [C,N,3,3]
    du = (fx / z)[..., None] * (axes[..., 0, :] - u[..., None] * axes[..., 2, :])
    dv = (fy / z)[..., None] * (axes[..., 1, :] - v[..., None] * axes[..., 2, :])
    xx, yy, xy = du.square().sum(-1), dv.square().sum(-1), (du * dv).sum(-1)
    # the floor keeps the derivative of the root finite where both eigenvalues are equal
    gap = ((0.5 * (xx - yy)).square() + xy.square()).clamp_min(1e-12).sqrt()
    radii = sigmas * (0.5 * (xx + yy) + gap + eps2d).sqrt()
    return torch.where(front, radii.clamp(r_min, r_max), torch.zeros_like(radii))


def scale_opacity(opacity_logits: Tensor, factor: Tensor) -> Tensor:
    """Return the logits of opacities that are multiplied by a factor in [0,1].

    The logits are finite, accurate near an opacity of 1, and unchanged to the bit where the factor is 1.
    """
    removed = opacity_logits.sigmoid() * (1 - factor)
    logits = torch.nn.functional.logsigmoid(opacity_logits) + factor.log()
    logits = logits - ((-opacity_logits).sigmoid() + removed).log()
    return torch.where(factor == 1, opacity_logits, logits.clamp_min(MIN_OPACITY_LOGIT))
