"""What an operator is: a pure function from rows to the `Edit` that changes them, and the knobs it reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from splatexp.densify.opacity_split import OPACITIES
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import check_choice, check_range


@dataclass(frozen=True)
class Shape:
    """How an operator divides, moves or joins; 0 or "" stands for the operator's own value."""

    dense: float = 0.0  # up to this size, in extents, clone_or_split clones and steep keeps the scales
    shrink: float = 0.0  # the children's scales are smaller by this
    opacity: str = ""  # of the children: one of OPACITIES
    dim: float = 0.0  # opacity=scaled: the factor
    offset: float = 0.0  # how far the children stand from their parent; each operator says in what
    distance: float = 0.0  # merge: rows of a pair are at most so far apart, in extents
    similarity: float = 0.0  # merge: and their widths differ by at most a factor of e^similarity
    most: int = 0  # merge: pairs at most, nearest first; 0: no limit

    def __post_init__(self) -> None:
        check_choice("rule.opacity", self.opacity, ("", *OPACITIES))
        check_range("rule.dim", self.dim, 0, 1)
        for name in ("dense", "shrink", "offset", "distance", "similarity", "most"):
            check_range(f"rule.{name}", getattr(self, name), 0)


Plan = Callable[[Splats, Tensor, Shape, int, torch.Generator], Edit | None]


@dataclass(frozen=True)
class Operator:
    """A way to change rows. Called as `plan` is.

    births: rows that each selected row adds to the count (merge: each pair).
    own: its own value of every knob that it reads.
    """

    act: Plan
    births: int
    own: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def knobs(self) -> tuple[str, ...]:
        """Names of the fields of `Shape` that it reads."""
        return tuple(self.own)

    def check(self, shape: Shape) -> None:
        """Hold a shape against the knobs.

        Raises: ValueError for one that is set and would change nothing.
        """
        name = self.act.__name__
        for knob in (f.name for f in fields(shape)):
            if getattr(shape, knob) and knob not in self.own:
                reads = ", ".join(self.own) or "none"
                raise ValueError(
                    f"rule.{knob}: expected none with operate={name}, which reads {reads}; "
                    f"got {getattr(shape, knob)}"
                )
        rule = shape.opacity or self.own.get("opacity")
        if shape.dim and rule != "scaled":
            raise ValueError(f"rule.dim: expected none with opacity={rule} of {name}, got {shape.dim}")

    def plan(
        self, splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator
    ) -> Edit | None:
        """The edit of rows [M] at a step, or None where nothing can be done.

        Args:
            rows: int64, in any order; where an operator multiplies, a row that comes k times becomes k + 1.
            generator: all that is random is drawn from it.
        """
        if not len(rows):
            return None
        own = {name: getattr(shape, name) or value for name, value in self.own.items()}
        with torch.no_grad():
            return self.act(splats, rows, replace(shape, **own), step, generator)

    __call__ = plan


def operator(births: int, **own: float | str) -> Callable[[Plan], Operator]:
    """Make a function an operator with its own values of the knobs that it reads."""
    return lambda act: Operator(act, births, own)


def others(splats: Splats, rows: Tensor) -> Tensor:
    """All rows but these, in order."""
    keep = torch.ones(len(splats), dtype=torch.bool, device=splats.uid.device)
    return keep.index_fill_(0, rows, False).nonzero().squeeze(1)


def replacing(splats: Splats, gone: Tensor, children: Tensor, values: dict[str, Tensor], step: int) -> Edit:
    """The edit that puts fresh rows after those that stay.

    Args:
        gone: rows that do not survive.
        children: [B] the row that each fresh one copies.
        values: parameter -> [B, ...].
    """
    kept = others(splats, gone)
    fresh = torch.arange(len(kept) + len(children), device=kept.device) >= len(kept)
    like = splats.params
    values = {name: value.to(like[name].dtype) for name, value in values.items()}
    return Edit(torch.cat([kept, children]), fresh, values, step=step)
