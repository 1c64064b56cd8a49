"""Merging: replace two rows that are close and similar by one with the same mass, mean and covariance.

Notation: the mass m = (2 pi)^{3/2} o s1 s2 s3 is the integral of the opacity over space; w1 and w2 are the
fractions of the mass that the two rows of a pair have.
"""

import torch
from torch import Tensor

from splatexp.densify.opacity_split import finite_logits
from splatexp.densify.operator import OperatorSettings, operator, replace_rows
from splatexp.gaussians.geometry import quats_to_rotations, rotations_to_quats
from splatexp.gaussians.splats import Edit, Splats

NEIGHBOURS = 8  # nearest rows of each row among which it looks for a partner
OPACITY_MAX = 0.99  # highest opacity of a merged row; blending clamps alpha to it


@operator(births=-1, max_distance=0.005, max_log_ratio=1.0, max_pairs=0)
def merge(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit | None:
    """Merge pairs among the rows, the nearest first and no row twice; return None where there is no pair.

    Two rows can merge where one is among the eight nearest of the other, they are at most `max_distance`
    scene extents apart, and their shapes agree: along every axis of either one, the |log| of the ratio of
    their widths is at most `max_log_ratio`. This compares anisotropy, orientation and size at once.

    Source: moment matching as in any reduction of Gaussian mixtures, such as Runnalls 2007, eq. 2-4.
    """
    pairs = find_pairs(
        splats,
        rows.unique(),
        settings.max_distance * splats.extent,
        settings.max_log_ratio,
        settings.max_pairs,
    )
    if not len(pairs):
        return None
    heavier = _log_mass(splats, pairs).argmax(1)  # of two equal ones the first, which has the lower uid
    parents = pairs.gather(1, heavier[:, None]).squeeze(1)
    return replace_rows(splats, pairs.flatten(), parents, merged_parameters(splats, pairs), step)


def merged_parameters(splats: Splats, pairs: Tensor) -> dict[str, Tensor]:
    """Return the parameters (float64) of the row that replaces each pair [P,2].

    Mass, mean and covariance are those of the pair, and the SH coefficients are its average by mass. An
    opacity above 0.99 is cut to 0.99 and nothing is widened for it: a pair that is close and opaque loses
    mass. Isotropic rows keep the mean variance in place of the covariance.
    """
    log_mass = _log_mass(splats, pairs)
    fraction = log_mass.softmax(1)  # [P,2]
    means = splats.means[pairs].double()
    difference = means[:, 1] - means[:, 0]
    roots = fraction.sqrt()[..., None, None] * _covariance_roots(splats, pairs)  # [P,2,3,3]
    spread = fraction.prod(1, keepdim=True).sqrt() * difference
    # Sigma = A A^T: the singular values of A are the scales, and small ones keep the digits that the
    # eigenvalues of Sigma, their squares, would lose.
    A = torch.cat([roots[:, 0], roots[:, 1], spread[:, :, None]], 2)
    floor = splats.log_scales[pairs].double().amin((1, 2)).exp()  # no Gaussian of a mixture is thinner
    if splats.isotropic:
        scales = (A.square().sum((1, 2)) / 3).sqrt()[:, None]
        log_volume, rotation = 3 * scales[:, 0].log(), {}
    else:
        axes, scales, _ = torch.linalg.svd(A, full_matrices=False)
        scales = scales.maximum(floor[:, None])
        axes = axes * torch.linalg.det(axes).sign()[:, None, None]  # -R is a rotation where R is a reflection
        log_volume, rotation = scales.log().sum(1), {"quats": rotations_to_quats(axes)}
    opacities = (log_mass.logsumexp(1) - log_volume).exp().clamp_max(OPACITY_MAX)
    blend = fraction[:, :, None, None]
    return rotation | {
        "means": means[:, 0] + fraction[:, 1:] * difference,
        "log_scales": scales.log(),
        "opacity_logits": finite_logits(opacities),
        "sh0": (blend * splats.sh0[pairs].double()).sum(1),
        "shN": (blend * splats.shN[pairs].double()).sum(1),
    }


def find_pairs(
    splats: Splats, rows: Tensor, max_distance: float, max_log_ratio: float, max_pairs: int = 0
) -> Tensor:
    """Return disjoint pairs [P,2] among the rows, the lower uid first: greedily by distance, then by uid.

    Args:
        rows: [M] distinct rows.
        max_distance: largest distance of a pair, world units.
        max_log_ratio: largest |log| of a ratio of widths.
        max_pairs: at most this many pairs; 0: no limit.
    """
    from scipy.spatial import KDTree

    rows = rows[splats.uid[rows].argsort()]  # so that the order of the rows does not matter
    nearest = min(NEIGHBOURS, len(rows) - 1)
    if nearest < 1:
        return rows.new_zeros(0, 2)
    points = splats.means.detach()[rows].double().cpu().numpy()
    bound = max_distance * (1 + 1e-9)  # KDTree excludes the bound itself
    found = KDTree(points).query(points, nearest + 1, distance_upper_bound=bound, workers=-1)
    lengths, ends = (torch.from_numpy(part) for part in found)
    starts = torch.arange(len(rows))[:, None].expand_as(ends)
    near = (ends < len(rows)) & (ends != starts) & (lengths <= max_distance)
    ends, starts, lengths = ends[near], starts[near], lengths[near]
    # One number per pair, which ascends with both uids
    keys = torch.minimum(starts, ends) * len(rows) + torch.maximum(starts, ends)
    keys, first = _distinct(keys)
    lengths = lengths[first]
    pairs = torch.stack([keys // len(rows), keys % len(rows)], 1)
    similar = (shape_difference(splats, rows[pairs.to(rows.device)]) <= max_log_ratio).cpu()
    pairs, lengths = pairs[similar], lengths[similar]
    order = lengths.argsort(stable=True)
    return rows[_greedy_matching(pairs[order], len(rows), max_pairs).to(rows.device)]


def shape_difference(splats: Splats, pairs: Tensor) -> Tensor:
    """Return the largest |log| [P] of the ratio of the two rows' widths along any axis of either one."""
    axes, log_scales = quats_to_rotations(splats.quats[pairs].double()), splats.log_scales[pairs].double()
    log_scales = log_scales.expand(-1, -1, 3)
    largest = []
    for one, other in ((0, 1), (1, 0)):
        directions = axes[:, other].mT @ axes[:, one]  # column k: axis k of one, in the frame of the other
        widths = torch.logsumexp(2 * (log_scales[:, other, :, None] + directions.abs().log()), 1) / 2
        largest.append((widths - log_scales[:, one]).abs().amax(1))
    return torch.maximum(*largest)


def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values in ascending order, and where each occurs first."""
    ordered, order = keys.sort(stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return ordered[new], order[new]


def _greedy_matching(pairs: Tensor, count: int, max_pairs: int) -> Tensor:
    """Return the pairs [P,2], in order, both of whose rows are in no earlier pair."""
    free, taken = bytearray(b"\1" * count), []
    for one, other in pairs.tolist():
        if free[one] and free[other]:
            free[one] = free[other] = 0
            taken.append((one, other))
            if len(taken) == max_pairs:
                break
    return torch.tensor(taken, dtype=torch.int64).reshape(-1, 2)


def _covariance_roots(splats: Splats, pairs: Tensor) -> Tensor:
    """Return R S [P,2,3,3] in float64, with Sigma = R S (R S)^T."""
    scales = splats.log_scales.detach()[pairs].double().exp().expand(-1, -1, 3)
    return quats_to_rotations(splats.quats.detach()[pairs].double()) * scales[:, :, None, :]


def _log_mass(splats: Splats, pairs: Tensor) -> Tensor:
    """Return log(o s1 s2 s3) [P,2] in float64; (2 pi)^{3/2} cancels wherever masses are compared."""
    volume = splats.log_scales.detach()[pairs].double().expand(-1, -1, 3).sum(-1)
    return volume + torch.nn.functional.logsigmoid(splats.opacity_logits.detach()[pairs].double())
