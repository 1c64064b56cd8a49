"""Operators: pure functions from rows to the `Edit` that changes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.densify.score import size
from splatexp.geometry import samples
from splatexp.splats import Edit, Splats


@dataclass(frozen=True)
class Shape:
    """How an operator divides."""

    dense: float  # up to this size, in extents, `clone_or_split` clones
    shrink: float  # a split's children are smaller by this


@dataclass(frozen=True)
class Operator:
    """`plan(splats, rows, shape, step, generator)` gives the edit; each row adds `births` to the count."""

    plan: Callable[[Splats, Tensor, Shape, int, torch.Generator], Edit]
    births: int


def prune(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Remove rows."""
    parents = _others(splats, rows)
    return Edit(parents, torch.zeros_like(parents, dtype=torch.bool), step=step)


def clone(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """A second row in each one's place; the optimizer parts them, for only the first has moments."""
    parents = torch.cat([torch.arange(len(splats), device=rows.device), rows])
    return Edit(parents, torch.arange(len(parents), device=rows.device) >= len(splats), step=step)


def split(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Two smaller children instead of each row, at places drawn from it."""
    return clone_or_split(splats, rows, Shape(-1.0, shape.shrink), step, generator)


def clone_or_split(splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    """Clone what is small, split what is large.

    Source: Kerbl et al. 2023, section 5.2.
    """
    large = size(splats, step)[rows] > shape.dense
    clones, splits = rows[~large], rows[large].repeat(2)
    kept, fresh = _others(splats, rows[large]), torch.cat([clones, splits])
    means, log_scales = splats.means.detach()[fresh], splats.log_scales.detach()[fresh]
    quats, scales = splats.quats.detach()[splits], splats.scales.detach()[splits]
    means[len(clones) :] = samples(means[len(clones) :], quats, scales, generator)
    log_scales[len(clones) :] -= math.log(shape.shrink)
    is_fresh = torch.arange(len(kept) + len(fresh), device=rows.device) >= len(kept)
    return Edit(torch.cat([kept, fresh]), is_fresh, {"means": means, "log_scales": log_scales}, step)


def _others(splats: Splats, rows: Tensor) -> Tensor:
    """All rows but these, in order."""
    keep = torch.ones(len(splats), dtype=torch.bool, device=rows.device)
    return keep.index_fill_(0, rows, False).nonzero().squeeze(1)


OPERATORS: dict[str, Operator] = {
    "prune": Operator(prune, -1),
    "clone": Operator(clone, 1),
    "split": Operator(split, 1),
    "clone_or_split": Operator(clone_or_split, 1),
}
