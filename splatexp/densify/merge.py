"""Merging: one row for two that are near and alike, with their mass and their first two moments.

Notation: mass m = (2 pi)^{3/2} o s1 s2 s3, the integral of opacity over space; w1, w2 the shares of a pair.
"""

import torch
from torch import Tensor

from splatexp.densify.opacity_split import finite_logits
from splatexp.densify.operator import Shape, operator, replacing
from splatexp.gaussians.geometry import quaternions, rotations
from splatexp.gaussians.splats import Edit, Splats

NEIGHBOURS = 8  # of each row, among which it finds its pair
OPACITY_MAX = 0.99  # of a merged row; what blending clamps alpha to


@operator(births=-1, distance=0.005, similarity=1.0, most=0)
def merge(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit | None:
    """Join pairs among rows: the nearest first, no row twice. None where there is no pair.

    Two rows may join where one is among the eight nearest of the other, at most `distance` extents away, and
    both are alike: along every axis of either one their widths differ by at most a factor of e^similarity.
    This compares anisotropy, orientation and size at once.

    Source: the moments as in any reduction of Gaussian mixtures, such as Runnalls 2007, eq. 2-4.
    """
    pairs = pairs_of(splats, rows.unique(), shape.distance * splats.extent, shape.similarity, shape.most)
    if not len(pairs):
        return None
    heavier = _log_mass(splats, pairs).argmax(1)  # of equals the first, which has the lower uid
    parents = pairs.gather(1, heavier[:, None]).squeeze(1)
    return replacing(splats, pairs.flatten(), parents, merged(splats, pairs), step)


def merged(splats: Splats, pairs: Tensor) -> dict[str, Tensor]:
    """Parameters, float64, of one row for each pair [P,2].

    Mass, mean and covariance are those of the pair, and the SH coefficients its mean by mass. An opacity
    above 0.99 is cut to that and nothing is widened for it: such a pair, close and opaque, loses mass.
    Isotropic rows keep the mean variance in place of the covariance.
    """
    log_mass = _log_mass(splats, pairs)
    share = log_mass.softmax(1)  # [P,2]
    means = splats.means[pairs].double()
    apart = means[:, 1] - means[:, 0]
    root = share.sqrt()[..., None, None] * _factors(splats, pairs)  # [P,2,3,3]
    spread = share.prod(1, keepdim=True).sqrt() * apart
    # Sigma = A A^T: the singular values of A are the scales, and small ones keep the digits that the
    # eigenvalues of Sigma, their squares, would lose
    A = torch.cat([root[:, 0], root[:, 1], spread[:, :, None]], 2)
    floor = splats.log_scales[pairs].double().amin((1, 2)).exp()  # no Gaussian of a mixture is thinner
    if splats.isotropic:
        scales = (A.square().sum((1, 2)) / 3).sqrt()[:, None]
        log_volume, turned = 3 * scales[:, 0].log(), {}
    else:
        axes, scales, _ = torch.linalg.svd(A, full_matrices=False)
        scales = scales.maximum(floor[:, None])
        axes = axes * torch.linalg.det(axes).sign()[:, None, None]  # -R is a rotation where R is a mirror
        log_volume, turned = scales.log().sum(1), {"quats": quaternions(axes)}
    opacities = (log_mass.logsumexp(1) - log_volume).exp().clamp_max(OPACITY_MAX)
    blend = share[:, :, None, None]
    return turned | {
        "means": means[:, 0] + share[:, 1:] * apart,
        "log_scales": scales.log(),
        "opacity_logits": finite_logits(opacities),
        "sh0": (blend * splats.sh0[pairs].double()).sum(1),
        "shN": (blend * splats.shN[pairs].double()).sum(1),
    }


def pairs_of(splats: Splats, rows: Tensor, distance: float, similarity: float, most: int = 0) -> Tensor:
    """Disjoint pairs [P,2] among rows, lower uid first: greedy by distance, then by uid.

    Args:
        rows: [M] distinct.
        distance: world units.
        similarity: largest |log| of a ratio of widths.
        most: pairs at most; 0: no limit.
    """
    from scipy.spatial import KDTree

    rows = rows[splats.uid[rows].argsort()]  # so that the order of rows does not matter
    nearest = min(NEIGHBOURS, len(rows) - 1)
    if nearest < 1:
        return rows.new_zeros(0, 2)
    points = splats.means.detach()[rows].double().cpu()
    reach = distance * (1 + 1e-9)  # the bound of the query is an open one
    found = KDTree(points.numpy()).query(points.numpy(), nearest + 1, distance_upper_bound=reach, workers=-1)
    lengths, ends = (torch.from_numpy(part) for part in found)
    starts = torch.arange(len(rows))[:, None].expand_as(ends)
    near = (ends < len(rows)) & (ends != starts) & (lengths <= distance)
    ends, starts, lengths = ends[near], starts[near], lengths[near]
    ranks = torch.minimum(starts, ends) * len(rows) + torch.maximum(starts, ends)  # ascending as both uids
    ranks, first = _distinct(ranks)
    lengths = lengths[first]
    pairs = torch.stack([ranks // len(rows), ranks % len(rows)], 1)
    alike = (difference(splats, rows[pairs.to(rows.device)]) <= similarity).cpu()
    pairs, lengths = pairs[alike], lengths[alike]
    order = lengths.argsort(stable=True)
    return rows[_greedy(pairs[order], len(rows), most).to(rows.device)]


def difference(splats: Splats, pairs: Tensor) -> Tensor:
    """Largest |log| [P] of the ratio of the two rows' widths along any axis of either."""
    turns, log_scales = rotations(splats.quats[pairs].double()), splats.log_scales[pairs].double()
    log_scales = log_scales.expand(-1, -1, 3)
    worst = []
    for one, other in ((0, 1), (1, 0)):
        seen = turns[:, other].mT @ turns[:, one]  # column k: axis k of one, in the frame of the other
        widths = torch.logsumexp(2 * (log_scales[:, other, :, None] + seen.abs().log()), 1) / 2
        worst.append((widths - log_scales[:, one]).abs().amax(1))
    return torch.maximum(*worst)


def _distinct(ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values, ascending, and where each comes first."""
    ordered, order = ranks.sort(stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new], order[new]


def _greedy(pairs: Tensor, count: int, most: int) -> Tensor:
    """Those pairs [P,2] in turn whose ends are both still free."""
    free, taken = bytearray(b"\1" * count), []
    for one, other in pairs.tolist():
        if free[one] and free[other]:
            free[one] = free[other] = 0
            taken.append((one, other))
            if len(taken) == most:
                break
    return torch.tensor(taken, dtype=torch.int64).reshape(-1, 2)


def _factors(splats: Splats, pairs: Tensor) -> Tensor:
    """R S [P,2,3,3], float64: Sigma = R S (R S)^T."""
    scales = splats.log_scales.detach()[pairs].double().exp().expand(-1, -1, 3)
    return rotations(splats.quats.detach()[pairs].double()) * scales[:, :, None, :]


def _log_mass(splats: Splats, pairs: Tensor) -> Tensor:
    """log(o s1 s2 s3) [P,2], float64; (2 pi)^{3/2} cancels wherever masses are compared."""
    volume = splats.log_scales.detach()[pairs].double().expand(-1, -1, 3).sum(-1)
    return volume + torch.nn.functional.logsigmoid(splats.opacity_logits.detach()[pairs].double())
