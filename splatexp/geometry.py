"""Geometry of Gaussians: pure functions.

Notation: Sigma = R S S^T R^T, with R from the quaternion (w,x,y,z) and S the diagonal of the scales.
"""

import numpy as np
import torch
from torch import Tensor


def rotations(quats: Tensor) -> Tensor:
    """[N,3,3] rotation matrices of quaternions [N,4] of any length but 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def samples(means: Tensor, quats: Tensor, scales: Tensor, generator: torch.Generator) -> Tensor:
    """One draw [N,3] from each Gaussian N(mean, Sigma)."""
    noise = torch.randn(means.shape, generator=generator, dtype=means.dtype).to(means.device)
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
