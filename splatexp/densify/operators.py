"""Operators: pure functions from rows to the `Edit` that changes them. Here those that divide or remove.

Fresh rows come last, in the order of their parents. Isotropic rows have no longest or shortest axis: where an
operator needs one it is drawn, and one factor with the same effect on the volume serves all three scales.
"""

import itertools
import math

import torch
from torch import Tensor

from splatexp.densify.merge import merge
from splatexp.densify.opacity_split import shared
from splatexp.densify.operator import Operator, Shape, operator, replacing
from splatexp.densify.relocate import relocate
from splatexp.densify.scores import size
from splatexp.gaussians.geometry import rotations, samples
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import check_range


@operator(births=-1)
def prune(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Remove rows."""
    return replacing(splats, rows, rows[:0], {}, step)


@operator(births=1, opacity="copy", dim=0.6)
def clone(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """A second row in each one's place; the optimizer parts them.

    With opacity=copy the first stays as it is, moments and all; otherwise both are fresh.
    """
    sources, repeats = rows.unique(return_counts=True)
    return _multiply(splats, sources, repeats, torch.zeros_like(sources) > 0, shape, step, generator)


@operator(births=1, shrink=1.6, opacity="copy", dim=0.6)
def split(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Two smaller children instead of each row, at places drawn from it."""
    sources, repeats = rows.unique(return_counts=True)
    return _multiply(splats, sources, repeats, torch.ones_like(sources) > 0, shape, step, generator)


@operator(births=1, dense=0.01, shrink=1.6, opacity="copy", dim=0.6)
def clone_or_split(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Clone what is small, split what is large.

    Source: Kerbl et al. 2023, section 5.2.
    """
    sources, repeats = rows.unique(return_counts=True)
    large = size(splats, step)[sources] > shape.dense
    return _multiply(splats, sources, repeats, large, shape, step, generator)


@operator(births=1, shrink=2.0, offset=0.1, opacity="copy", dim=0.6)
def jitter(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Two rows of half the scales where there was one, each moved by a small draw from it.

    `offset` is that draw's share of the standard deviations.
    """
    sources, repeats = rows.unique(return_counts=True)
    children, values = _children(splats, sources, repeats + 1, shape)
    scales = shape.offset * splats.scales[children]
    values["means"] = samples(splats.means[children], splats.quats[children], scales, generator)
    values["log_scales"] -= math.log(shape.shrink)
    return replacing(splats, sources, children, values, step)


@operator(births=1, offset=0.45, opacity="scaled", dim=0.6)
def long_axis(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Two children side by side on the longest axis, 3 `offset` standard deviations either way.

    Scales: the longest times 1 - offset, the others times sqrt(1 - offset^2).

    Source: Deng et al. 2025, "Improving Densification in 3D Gaussian Splatting for High-Fidelity Rendering"
        (Improved-GS). Of several longest axes it is the first.
    """
    check_range("rule.offset", shape.offset, 0, 0.999)
    sources = rows.unique()
    children, values = _children(splats, sources, torch.full_like(sources, 2), shape)
    axis, steps = _axis(splats, sources, "longest", generator)
    values["means"] = _pairs(splats.means[sources], 3 * shape.offset * steps)
    along, across = math.log1p(-shape.offset), 0.5 * math.log1p(-(shape.offset**2))
    if splats.isotropic:
        values["log_scales"] += (along + 2 * across) / 3
    else:
        longest = torch.nn.functional.one_hot(axis, 3).repeat_interleave(2, 0)
        values["log_scales"] += across + (along - across) * longest
    return replacing(splats, sources, children, values, step)


@operator(births=1, dense=0.01, shrink=1.6, offset=0.0, opacity="scaled", dim=0.5)
def steep(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Two children on the shortest axis, as far one way as the other; those of small rows keep their scales.

    That axis is the steepest descent at a saddle: the splitting matrix is a negative number times the
    inverse covariance, whose largest eigenvalue is there. `offset` is in standard deviations; 0: the size of
    a normal draw.

    Source: Wang et al. 2025, "Steepest Descent Density Control for Compact 3D Gaussian Splatting" (SteepGS).
    Differs: their code draws a length for each child, gives both the same sign wherever rows are even in
        number, copies the opacity, which their analysis halves, and moves the small by a learning rate.
    """
    sources = rows.unique()
    children, values = _children(splats, sources, torch.full_like(sources, 2), shape)
    _, steps = _axis(splats, sources, "shortest", generator)
    if shape.offset:
        lengths = torch.full_like(steps[:, :1], shape.offset)
    else:
        lengths = torch.randn(len(sources), 1, generator=generator).abs().to(steps)
    values["means"] = _pairs(splats.means[sources], lengths * steps)
    values["log_scales"][size(splats, step)[children] > shape.dense] -= math.log(shape.shrink)
    return replacing(splats, sources, children, values, step)


@operator(births=7, shrink=1.6, offset=0.5, opacity="revised", dim=0.6)
def octree(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Eight smaller children at the corners of a box of +-`offset` standard deviations.

    Source: Zhang et al. 2025, "Consistent Quantity-Quality Control across Scenes for Deployment-Aware
        Gaussian Splatting" (ControlGS).
    """
    sources = rows.unique()
    children, values = _children(splats, sources, torch.full_like(sources, 8), shape)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))).to(splats.means)
    places = shape.offset * corners.repeat(len(sources), 1) * splats.scales[children]
    turned = torch.einsum("nij,nj->ni", rotations(splats.quats[children]), places)
    values["means"] = splats.means[children] + turned
    values["log_scales"] -= math.log(shape.shrink)
    return replacing(splats, sources, children, values, step)


def _multiply(
    splats: Splats,
    sources: Tensor,
    repeats: Tensor,
    large: Tensor,
    shape: Shape,
    step: int,
    generator: torch.Generator,
) -> Edit:
    """Put `repeats` + 1 rows where there was one: first clones of the small, then children of the `large`."""
    order = (~large).nonzero().squeeze(1), large.nonzero().squeeze(1)
    sources, repeats, large = (rows[torch.cat(order)] for rows in (sources, repeats, large))
    gone = large | (shape.opacity != "copy")  # a clone's parent survives where nothing of it changes
    children, values = _children(splats, sources, repeats + 1, shape, repeats + gone)
    means, divided = splats.means.detach()[children], large.repeat_interleave(repeats + gone)
    rows = children[divided]
    means[divided] = samples(means[divided], splats.quats[rows], splats.scales[rows], generator)
    values["log_scales"][divided] -= math.log(shape.shrink or 1.0)
    return replacing(splats, sources[gone], children, values | {"means": means}, step)


def _children(
    splats: Splats, sources: Tensor, counts: Tensor, shape: Shape, born: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Parents of the children, side by side, and what the opacity rule makes of these.

    Args:
        sources: [M] rows.
        counts: [M] children of each, for the rule.
        born: [M] those that are fresh, where not all are.
    """
    logits, stretch = shared(shape.opacity, shape.dim, splats.opacity_logits[sources], counts)
    born = counts if born is None else born
    children = sources.repeat_interleave(born)
    log_scales = splats.log_scales[children] + stretch.repeat_interleave(born)[:, None]
    return children, {"opacity_logits": logits.repeat_interleave(born), "log_scales": log_scales}


def _axis(splats: Splats, rows: Tensor, which: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The longest or shortest axis: its index [M], and one standard deviation along it [M,3]."""
    scales = splats.scales[rows]
    axis = scales.argmax(1) if which == "longest" else scales.argmin(1)
    if splats.isotropic:
        noise = torch.randn(len(rows), 3, generator=generator, dtype=scales.dtype).to(scales.device)
        return axis, torch.nn.functional.normalize(noise, dim=1) * scales
    index = torch.arange(len(rows), device=rows.device)
    return axis, rotations(splats.quats[rows])[index, :, axis] * scales[index, axis, None]


def _pairs(means: Tensor, steps: Tensor) -> Tensor:
    """Means [2M,3] of pairs, one forward and one back."""
    return torch.stack([means + steps, means - steps], 1).flatten(0, 1)


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
