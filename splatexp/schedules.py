"""What changes over a run: SH degree, resolution, learning rates.

Fields in steps carry `STEPS` as metadata, so that a preset made for 30,000 steps can be run for 3,000.
"""

import math
from dataclasses import dataclass, field

from splatexp.choices import check_choice, check_range

STEPS = {"unit": "steps"}


@dataclass
class Curve:
    """A factor over the run, 1 at its start.

    kind: constant; linear, cosine, exponential (a straight line in the logarithm), all from 1 to `end`;
    step (times `drop` at each milestone).
    """

    kind: str = "constant"
    end: float = 1.0
    stop: int = field(default=0, metadata=STEPS)  # where `end` is reached; 0: with the last step of the run
    milestones: list[int] = field(default_factory=list, metadata=STEPS)
    drop: float = 0.1
    warmup: int = field(default=0, metadata=STEPS)  # rises over so many steps, as a quarter of a sine
    warmup_from: float = 0.01  # share of the curve that the warm-up starts with

    def __post_init__(self) -> None:
        check_choice("curve.kind", self.kind, ("constant", "linear", "cosine", "exponential", "step"))
        check_range("curve.end", self.end, 1e-12 if self.kind == "exponential" else 0)
        for name in ("stop", "warmup", "drop", "warmup_from"):
            check_range(f"curve.{name}", getattr(self, name), 0)
        if self.kind in ("constant", "step") and (self.end != 1 or self.stop):
            raise ValueError(
                f"curve.end, curve.stop: expected none with kind={self.kind}, got {self.end}, {self.stop}"
            )
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError(
                f"curve.milestones: expected with kind=step alone, got {self.milestones} with {self.kind}"
            )

    def __call__(self, step: int, steps: int) -> float:
        """The factor at a step of a run of so many."""
        ramp = math.sin(0.5 * math.pi * min(1.0, step / self.warmup)) if self.warmup else 1.0
        return self._plain(step, steps) * (self.warmup_from + (1 - self.warmup_from) * ramp)

    def _plain(self, step: int, steps: int) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            return self.drop ** sum(step >= milestone for milestone in self.milestones)
        t = min(1.0, step / max(1, self.stop or steps))
        if self.kind == "exponential":
            return self.end**t
        return 1.0 + (self.end - 1.0) * (t if self.kind == "linear" else 0.5 - 0.5 * math.cos(math.pi * t))


@dataclass
class Schedule:
    """The defaults are those of 3DGS (Kerbl et al. 2023, section 7.1), at full resolution throughout."""

    sh_start: int = field(default=0, metadata=STEPS)  # steps with degree 0 before the ramp
    sh_every: int = field(default=1000, metadata=STEPS)  # then steps per degree; 0: all at once
    factors: list[int] = field(default_factory=lambda: [1])  # pictures are reduced by these, in turn
    until: list[int] = field(default_factory=list, metadata=STEPS)  # where each but the last factor ends
    means: Curve = field(
        default_factory=lambda: Curve("exponential", end=0.01)
    )  # of the means' learning rate
    others: Curve = field(default_factory=Curve)  # of all other learning rates

    def __post_init__(self) -> None:
        check_range("schedule.sh_start", self.sh_start, 0)
        check_range("schedule.sh_every", self.sh_every, 0)
        if len(self.factors) != len(self.until) + 1 or min(self.factors) < 1:
            raise ValueError(
                f"schedule.factors: expected one factor more than until, got {self.factors}, {self.until}"
            )
        if sorted(self.until) != list(self.until):
            raise ValueError(f"schedule.until: expected ascending steps, got {self.until}")

    def sh_degree(self, step: int, most: int) -> int:
        """The SH degree at a step, at most that of the model."""
        if step < self.sh_start:
            return 0
        return min(most, (step - self.sh_start) // self.sh_every) if self.sh_every else most

    def factor(self, step: int) -> int:
        """By how much the pictures are reduced at a step."""
        return self.factors[sum(step >= end for end in self.until)]
