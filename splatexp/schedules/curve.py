"""Curves over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from splatexp.settings.checks import STEPS, check_choice, check_range

DECAYS = ("linear", "cosine", "exponential", "poly")  # curves from 1 to `end`


def check_phases(names: tuple[str, str], values: Sequence[int], until: Sequence[int]) -> None:
    """Check two settings that belong together: a value per phase of a run, and the ends of the phases.

    Args:
        names: the keys of the two settings.
        values: one for each phase.
        until: the step at which each phase but the last ends.

    Raises: ValueError.
    """
    if len(values) != len(until) + 1 or min(values) < 1:
        raise ValueError(
            f"{names[0]}: expected whole numbers from 1, one more than {names[1]}={list(until)} has, "
            f"got {list(values)}"
        )
    if sorted(until) != list(until):
        raise ValueError(f"{names[1]}: expected ascending steps, got {list(until)}")


@dataclass
class Curve:
    """A factor over the steps of a run, 1 at the start.

    kind:
        constant: stays 1.
        linear, cosine, exponential, poly: falls (or rises) from 1 to `end` between `start` and `stop`.
            Exponential is linear in the logarithm; poly approaches `end` as (1 - t)^power.
        step: is multiplied by `gamma` at each milestone.
        piecewise: is linear between 1 at step 0 and the values at the milestones, and keeps the last one.
    """

    kind: str = "constant"
    end: float = 1.0
    start: int = field(default=0, metadata=STEPS)  # step at which the factor leaves 1
    stop: int = field(
        default=0, metadata=STEPS
    )  # step at which it reaches `end`; 0: the last step of the run
    power: float = 2.0  # of kind=poly; 1: linear, above 1: fast at first
    milestones: list[int] = field(default_factory=list, metadata=STEPS)  # of kind=step and kind=piecewise
    gamma: float = 0.1  # of kind=step
    values: list[float] = field(default_factory=list)  # of kind=piecewise, one for each milestone
    warmup_steps: int = field(default=0, metadata=STEPS)  # steps of the warm-up, a quarter of a sine; 0: none
    warmup_from: float = 0.01  # fraction of the curve that the warm-up starts with

    def __post_init__(self) -> None:
        check_choice("curve.kind", self.kind, ("constant", *DECAYS, "step", "piecewise"))
        check_range("curve.end", self.end, 1e-12 if self.kind == "exponential" else 0)
        for name in ("start", "stop", "warmup_steps", "gamma", "warmup_from"):
            check_range(f"curve.{name}", getattr(self, name), 0)
        check_range("curve.power", self.power, 1e-3)
        if self.kind not in DECAYS and (self.end != 1 or self.stop or self.start):
            raise ValueError(
                f"curve.end, curve.start, curve.stop: expected 1, 0, 0 with kind={self.kind}, "
                f"got {self.end}, {self.start}, {self.stop}"
            )
        if 0 < self.stop < self.start:
            raise ValueError(f"curve.stop: expected 0 or at least curve.start={self.start}, got {self.stop}")
        if (self.kind in ("step", "piecewise")) != bool(self.milestones):
            raise ValueError(
                f"curve.milestones: expected some with kind=step and kind=piecewise, and none otherwise, "
                f"got {self.milestones} with kind={self.kind}"
            )
        if sorted(self.milestones) != list(self.milestones) or min(self.milestones, default=0) < 0:
            raise ValueError(f"curve.milestones: expected ascending steps, got {self.milestones}")
        if len(self.values) != (len(self.milestones) if self.kind == "piecewise" else 0):
            raise ValueError(
                f"curve.values: expected one for each milestone with kind=piecewise, and none otherwise, "
                f"got {self.values} with kind={self.kind}"
            )
        for value in self.values:
            check_range("curve.values", value, 0)

    def __call__(self, step: int, steps: int) -> float:
        """Return the factor at a step of a run of `steps` steps."""
        ramp = math.sin(0.5 * math.pi * min(1.0, step / self.warmup_steps)) if self.warmup_steps else 1.0
        return self._without_warmup(step, steps) * (self.warmup_from + (1 - self.warmup_from) * ramp)

    def _without_warmup(self, step: int, steps: int) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return self.gamma ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "piecewise":
            return self._interpolate(step)
        t = min(1.0, max(0, step - self.start) / max(1, (self.stop or steps) - self.start))
        if self.kind == "exponential":
            return self.end**t
        shape = {"linear": 1 - t, "cosine": 0.5 + 0.5 * math.cos(math.pi * t), "poly": (1 - t) ** self.power}
        return self.end + (1.0 - self.end) * shape[self.kind]

    def _interpolate(self, step: int) -> float:
        """Return the value on the straight line between the two milestones around a step."""
        points = [(0, 1.0), *zip(self.milestones, self.values, strict=True)]
        for (left, low), (right, high) in pairwise(points):
            if left <= step < right:
                return low + (high - low) * (step - left) / (right - left)
        return points[-1][1]
