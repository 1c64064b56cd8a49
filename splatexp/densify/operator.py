"""Operators: pure functions from rows to the `Edit` that changes them, and the settings that they read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from splatexp.densify.opacity_split import OPACITY_RULES
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import check_choice, check_range


@dataclass(frozen=True)
class OperatorSettings:
    """Settings of an operator; 0 or "" stands for the operator's own default."""

    size_threshold: float = 0.0  # scene extents: clone_or_split clones up to it, steep keeps the scales
    shrink: float = 0.0  # the children's scales are divided by this
    opacity: str = ""  # opacity of the children, one of OPACITY_RULES
    opacity_factor: float = 0.0  # with opacity=scaled: multiplies the parent's opacity
    offset: float = 0.0  # distance of the children from their parent; each operator defines the unit
    max_distance: float = 0.0  # merge: largest distance between the rows of a pair, scene extents
    max_log_ratio: float = 0.0  # merge: largest |log| of the ratio between the widths of the two
    max_pairs: int = 0  # merge: at most this many pairs, the nearest first; 0: no limit

    def __post_init__(self) -> None:
        check_choice("rule.opacity", self.opacity, ("", *OPACITY_RULES))
        check_range("rule.opacity_factor", self.opacity_factor, 0, 1)
        for name in ("size_threshold", "shrink", "offset", "max_distance", "max_log_ratio", "max_pairs"):
            check_range(f"rule.{name}", getattr(self, name), 0)


Plan = Callable[[Splats, Tensor, OperatorSettings, int, torch.Generator], Edit | None]


@dataclass(frozen=True)
class Operator:
    """A way to change rows: clone, split, prune and so on. Calling it is the same as calling `plan`.

    function: makes the edit.
    births: how many rows each selected row adds to the count (for merge, each pair).
    defaults: the operator's own value of every setting that it reads.
    """

    function: Plan
    births: int
    defaults: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def setting_names(self) -> tuple[str, ...]:
        """Return the names of the fields of `OperatorSettings` that it reads."""
        return tuple(self.defaults)

    def check(self, settings: OperatorSettings) -> None:
        """Check that the operator reads every setting that is set.

        Raises: ValueError for a setting that would change nothing.
        """
        name = self.function.__name__
        for setting in (f.name for f in fields(settings)):
            if getattr(settings, setting) and setting not in self.defaults:
                reads = ", ".join(self.defaults) or "no setting"
                raise ValueError(
                    f"rule.{setting}: expected it unset with operate={name}, which reads {reads}; "
                    f"got {getattr(settings, setting)}"
                )
        opacity = settings.opacity or self.defaults.get("opacity")
        if settings.opacity_factor and opacity != "scaled":
            raise ValueError(
                f"rule.opacity_factor: expected it unset with opacity={opacity} (of operate={name}), "
                f"got {settings.opacity_factor}; opacity=scaled reads it"
            )

    def plan(
        self, splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
    ) -> Edit | None:
        """Return the edit that changes rows [M], or None where nothing can be done.

        Args:
            rows: int64, in any order; with an operator that multiplies, a row that is listed k times
                becomes k + 1 rows.
            step: when the new rows are born.
            generator: source of all random numbers.
        """
        if not len(rows):
            return None
        filled = {name: getattr(settings, name) or value for name, value in self.defaults.items()}
        with torch.no_grad():
            return self.function(splats, rows, replace(settings, **filled), step, generator)

    __call__ = plan


def operator(births: int, **defaults: float | str) -> Callable[[Plan], Operator]:
    """Turn a function into an `Operator` with its own defaults of the settings that it reads."""
    return lambda function: Operator(function, births, defaults)


def remaining_rows(splats: Splats, rows: Tensor) -> Tensor:
    """Return all rows except these, in ascending order."""
    keep = torch.ones(len(splats), dtype=torch.bool, device=splats.uid.device)
    return keep.index_fill_(0, rows, False).nonzero().squeeze(1)


def replace_rows(
    splats: Splats, removed: Tensor, parents: Tensor, values: dict[str, Tensor], step: int
) -> Edit:
    """Return the edit that removes some rows and puts children behind those that remain.

    Args:
        removed: rows that do not survive.
        parents: [B] the row that each child copies.
        values: parameter -> [B, ...], what the children have instead of their parent's.
        step: when the children are born.
    """
    kept = remaining_rows(splats, removed)
    fresh = torch.arange(len(kept) + len(parents), device=kept.device) >= len(kept)
    params = splats.params
    values = {name: value.to(params[name].dtype) for name, value in values.items()}
    return Edit(torch.cat([kept, parents]), fresh, values, step=step)
