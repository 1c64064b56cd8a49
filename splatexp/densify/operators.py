"""The operators that divide or remove rows, and the table of all operators.

New rows come last, in the order of their parents. Isotropic rows have no longest or shortest axis: an
operator that needs one draws a direction at random, and scales all three axes by one factor that changes the
volume equally.
"""

import itertools
import math

import torch
from torch import Tensor

from splatexp.densify.merge import merge
from splatexp.densify.opacity_split import child_opacities
from splatexp.densify.operator import Operator, OperatorSettings, operator, replace_rows
from splatexp.densify.relocate import relocate
from splatexp.densify.scores import size
from splatexp.gaussians.geometry import quats_to_rotations, sample_gaussians
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import check_range


@operator(births=-1)
def prune(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Remove the rows."""
    return replace_rows(splats, rows, rows[:0], {}, step)


@operator(births=1, opacity="copy", opacity_factor=0.6)
def clone(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Put a second row in the place of each row; the optimizer moves the two apart.

    With opacity=copy the first row stays as it is, with its moments; otherwise both rows are new.
    """
    parents, repeats = rows.unique(return_counts=True)
    return _multiply(splats, parents, repeats, torch.zeros_like(parents) > 0, settings, step, generator)


@operator(births=1, shrink=1.6, opacity="copy", opacity_factor=0.6)
def split(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Replace each row by two smaller children at places drawn from its Gaussian."""
    parents, repeats = rows.unique(return_counts=True)
    return _multiply(splats, parents, repeats, torch.ones_like(parents) > 0, settings, step, generator)


@operator(births=1, size_threshold=0.01, shrink=1.6, opacity="copy", opacity_factor=0.6)
def clone_or_split(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Clone rows up to a size of `size_threshold` scene extents and split larger ones.

    Source: Kerbl et al. 2023, section 5.2.
    """
    parents, repeats = rows.unique(return_counts=True)
    large = size(splats, step)[parents] > settings.size_threshold
    return _multiply(splats, parents, repeats, large, settings, step, generator)


@operator(births=1, shrink=2.0, offset=0.1, opacity="copy", opacity_factor=0.6)
def jitter(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Replace each row by two rows of half its scales, each moved by a small random offset.

    The offset is drawn from the row's Gaussian with its standard deviations multiplied by `offset`.
    """
    parents, repeats = rows.unique(return_counts=True)
    children, values = _children(splats, parents, repeats + 1, settings)
    scales = settings.offset * splats.scales[children]
    values["means"] = sample_gaussians(splats.means[children], splats.quats[children], scales, generator)
    values["log_scales"] -= math.log(settings.shrink)
    return replace_rows(splats, parents, children, values, step)


@operator(births=1, offset=0.45, opacity="scaled", opacity_factor=0.6)
def long_axis(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Replace each row by two children on its longest axis, 3 `offset` standard deviations to either side.

    The longest scale is multiplied by 1 - offset and the others by sqrt(1 - offset^2).

    Source: Deng et al. 2025, "Improving Densification in 3D Gaussian Splatting for High-Fidelity Rendering"
        (Improved-GS). Of several longest axes the first is taken.
    """
    check_range("rule.offset", settings.offset, 0, 0.999)
    parents = rows.unique()
    children, values = _children(splats, parents, torch.full_like(parents, 2), settings)
    axis, deviations = _axis(splats, parents, "longest", generator)
    values["means"] = _either_side(splats.means[parents], 3 * settings.offset * deviations)
    along, across = math.log1p(-settings.offset), 0.5 * math.log1p(-(settings.offset**2))
    if splats.isotropic:
        values["log_scales"] += (along + 2 * across) / 3
    else:
        longest = torch.nn.functional.one_hot(axis, 3).repeat_interleave(2, 0)
        values["log_scales"] += across + (along - across) * longest
    return replace_rows(splats, parents, children, values, step)


@operator(births=1, size_threshold=0.01, shrink=1.6, offset=0.0, opacity="scaled", opacity_factor=0.5)
def steep(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Replace each row by two children on its shortest axis, at equal distances to either side.

    The shortest axis is the direction of steepest descent at a saddle point: the splitting matrix is a
    negative number times the inverse covariance, whose largest eigenvalue belongs to that axis. Rows up to a
    size of `size_threshold` keep their scales. `offset` is in standard deviations; 0 draws the distance from
    a normal distribution.

    Source: Wang et al. 2025, "Steepest Descent Density Control for Compact 3D Gaussian Splatting" (SteepGS).
    Differs: their code draws a distance for each child, moves both children in the same direction wherever
        the number of rows is even, copies the opacity, which their analysis halves, and moves small rows by
        a learning rate.
    """
    parents = rows.unique()
    children, values = _children(splats, parents, torch.full_like(parents, 2), settings)
    _, deviations = _axis(splats, parents, "shortest", generator)
    if settings.offset:
        lengths = torch.full_like(deviations[:, :1], settings.offset)
    else:
        lengths = torch.randn(len(parents), 1, generator=generator).abs().to(deviations)
    values["means"] = _either_side(splats.means[parents], lengths * deviations)
    values["log_scales"][size(splats, step)[children] > settings.size_threshold] -= math.log(settings.shrink)
    return replace_rows(splats, parents, children, values, step)


@operator(births=7, shrink=1.6, offset=0.5, opacity="revised", opacity_factor=0.6)
def octree(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    """Replace each row by eight smaller children at the corners of a box of +-`offset` standard deviations.

    Source: Zhang et al. 2025, "Consistent Quantity-Quality Control across Scenes for Deployment-Aware
        Gaussian Splatting" (ControlGS).
    """
    parents = rows.unique()
    children, values = _children(splats, parents, torch.full_like(parents, 8), settings)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).to(splats.means)
    offsets = settings.offset * corners.repeat(len(parents), 1) * splats.scales[children]
    rotated = torch.einsum("nij,nj->ni", quats_to_rotations(splats.quats[children]), offsets)
    values["means"] = splats.means[children] + rotated
    values["log_scales"] -= math.log(settings.shrink)
    return replace_rows(splats, parents, children, values, step)


def _multiply(
    splats: Splats,
    parents: Tensor,
    repeats: Tensor,
    large: Tensor,
    settings: OperatorSettings,
    step: int,
    generator: torch.Generator,
) -> Edit:
    """Turn each parent into `repeats` + 1 rows: clones of small ones first, then children of large ones."""
    order = torch.cat([(~large).nonzero().squeeze(1), large.nonzero().squeeze(1)])
    parents, repeats, large = parents[order], repeats[order], large[order]
    removed = large | (settings.opacity != "copy")  # a cloned parent survives where nothing of it changes
    new_rows = repeats + removed
    children, values = _children(splats, parents, repeats + 1, settings, new_rows)
    means, is_split = splats.means.detach()[children], large.repeat_interleave(new_rows)
    rows = children[is_split]
    means[is_split] = sample_gaussians(means[is_split], splats.quats[rows], splats.scales[rows], generator)
    values["log_scales"][is_split] -= math.log(settings.shrink or 1.0)
    return replace_rows(splats, parents[removed], children, values | {"means": means}, step)


def _children(
    splats: Splats,
    parents: Tensor,
    counts: Tensor,
    settings: OperatorSettings,
    new_rows: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the parent of every child, siblings side by side, and the children's opacities and scales.

    Args:
        parents: [M] rows.
        counts: [M] number of children of each parent, which the opacity rule needs.
        new_rows: [M] number of children that are new rows, where not all of them are.
    """
    new_rows = counts if new_rows is None else new_rows
    logits, log_scale_change = child_opacities(
        settings.opacity, settings.opacity_factor, splats.opacity_logits[parents], counts
    )
    children = parents.repeat_interleave(new_rows)
    log_scales = splats.log_scales[children] + log_scale_change.repeat_interleave(new_rows)[:, None]
    return children, {"opacity_logits": logits.repeat_interleave(new_rows), "log_scales": log_scales}


def _axis(splats: Splats, rows: Tensor, which: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the index [M] of the longest or shortest axis, and one standard deviation along it [M,3]."""
    scales = splats.scales[rows]
    axis = scales.argmax(1) if which == "longest" else scales.argmin(1)
    if splats.isotropic:
        noise = torch.randn(len(rows), 3, generator=generator, dtype=scales.dtype).to(scales.device)
        return axis, torch.nn.functional.normalize(noise, dim=1) * scales
    index = torch.arange(len(rows), device=rows.device)
    return axis, quats_to_rotations(splats.quats[rows])[index, :, axis] * scales[index, axis, None]


def _either_side(means: Tensor, offsets: Tensor) -> Tensor:
    """Return the means [2M,3] of pairs of children, one displaced forward and one backward."""
    return torch.stack([means + offsets, means - offsets], 1).flatten(0, 1)


OPERATORS: dict[str, Operator] = {
    "prune": prune,
    "clone": clone,
    "split": split,
    "clone_or_split": clone_or_split,
    "jitter": jitter,
    "long_axis": long_axis,
    "steep": steep,
    "octree": octree,
    "relocate": relocate,
    "merge": merge,
}
