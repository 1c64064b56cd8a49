"""Curves over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from splatexp.settings.checks import STEPS, check_choice, check_range

SMOOTH = ("linear", "cosine", "exponential", "poly")  # curves from 1 to `end`


def check_turns(names: tuple[str, str], values: Sequence[int], until: Sequence[int]) -> None:
    """Hold two settings against each other: `values` are taken in turn, each but the last until a step.

    Raises: ValueError.
    """
    if len(values) != len(until) + 1 or min(values) < 1:
        got = f"{list(values)}, {list(until)}"
        last = names[1].rpartition(".")[2]
        raise ValueError(f"{names[0]}: expected whole numbers from 1, one more than {last}, got {got}")
    if sorted(until) != list(until):
        raise ValueError(f"{names[1]}: expected ascending steps, got {list(until)}")


@dataclass
class Curve:
    """A factor over the run, 1 at its start.

    kind: constant; linear, cosine, exponential (a straight line in the logarithm), poly (its distance to the
    end falls as (1 - t)^power), all from 1 to `end`; step (times `drop` at each milestone); piecewise (a
    straight line from 1 to a value at each milestone, the last one stays).
    """

    kind: str = "constant"
    end: float = 1.0
    start: int = field(default=0, metadata=STEPS)  # where it leaves 1
    stop: int = field(default=0, metadata=STEPS)  # where `end` is reached; 0: with the last step of the run
    power: float = 2.0  # of poly; 1: linear, above: fast first
    milestones: list[int] = field(default_factory=list, metadata=STEPS)  # of step and piecewise
    drop: float = 0.1  # of step
    values: list[float] = field(default_factory=list)  # of piecewise, one for each milestone
    warmup: int = field(default=0, metadata=STEPS)  # rises over so many steps, as a quarter of a sine
    warmup_from: float = 0.01  # share of the curve that the warm-up starts with

    def __post_init__(self) -> None:
        check_choice("curve.kind", self.kind, ("constant", *SMOOTH, "step", "piecewise"))
        check_range("curve.end", self.end, 1e-12 if self.kind == "exponential" else 0)
        for name in ("start", "stop", "warmup", "drop", "warmup_from"):
            check_range(f"curve.{name}", getattr(self, name), 0)
        check_range("curve.power", self.power, 1e-3)
        if self.kind not in SMOOTH and (self.end != 1 or self.stop or self.start):
            got = f"{self.end}, {self.start}, {self.stop}"
            raise ValueError(f"curve.end, start, stop: expected none with kind={self.kind}, got {got}")
        if 0 < self.stop < self.start:
            raise ValueError(f"curve.stop: expected 0 or at least start={self.start}, got {self.stop}")
        if (self.kind in ("step", "piecewise")) != bool(self.milestones):
            raise ValueError(
                f"curve.milestones: expected with kind=step or piecewise alone, "
                f"got {self.milestones} with {self.kind}"
            )
        if sorted(self.milestones) != list(self.milestones) or min(self.milestones, default=0) < 0:
            raise ValueError(f"curve.milestones: expected ascending steps, got {self.milestones}")
        if len(self.values) != (len(self.milestones) if self.kind == "piecewise" else 0):
            raise ValueError(
                f"curve.values: expected one for each milestone with kind=piecewise alone, got {self.values}"
            )
        for value in self.values:
            check_range("curve.values", value, 0)

    def __call__(self, step: int, steps: int) -> float:
        """The factor at a step of a run of so many."""
        ramp = math.sin(0.5 * math.pi * min(1.0, step / self.warmup)) if self.warmup else 1.0
        return self._plain(step, steps) * (self.warmup_from + (1 - self.warmup_from) * ramp)

    def _plain(self, step: int, steps: int) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return self.drop ** sum(step >= milestone for milestone in self.milestones)
        if self.kind == "piecewise":
            return self._between(step)
        t = min(1.0, max(0, step - self.start) / max(1, (self.stop or steps) - self.start))
        if self.kind == "exponential":
            return self.end**t
        shape = {"linear": 1 - t, "cosine": 0.5 + 0.5 * math.cos(math.pi * t), "poly": (1 - t) ** self.power}
        return self.end + (1.0 - self.end) * shape[self.kind]

    def _between(self, step: int) -> float:
        """On the straight line between the two milestones around a step."""
        points = [(0, 1.0), *zip(self.milestones, self.values, strict=True)]
        for (left, low), (right, high) in pairwise(points):
            if left <= step < right:
                return low + (high - low) * (step - left) / (right - left)
        return points[-1][1]
