"""Gaussians that are left out of a step at random, so that none is needed by a single view."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.settings.checks import STEPS, check_range
from splatexp.system.devices import sent
from splatexp.system.rng import generator

CPU = torch.device("cpu")


@dataclass
class Dropout:
    """The share left out rises on a straight line from 0 at `start` to `rate` at `stop`, where it stays.

    Source: Park et al. 2025, "DropGaussian"; its rate is 0.2, for few photographs.
    """

    rate: float = 0.0  # 0: off
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: with the last step of the run

    def __post_init__(self) -> None:
        check_range("dropout.rate", self.rate, 0, 0.99)
        check_range("dropout.start", self.start, 0)
        if self.stop < (self.start if self.stop else 0):
            raise ValueError(f"dropout.stop: expected 0 or at least start={self.start}, got {self.stop}")

    def share(self, step: int, steps: int) -> float:
        """The probability to be left out at a step of a run of so many."""
        length = max(1, (self.stop or steps) - self.start)
        return self.rate * min(1.0, max(0.0, (step - self.start) / length))

    def factors(
        self, step: int, steps: int, count: int, seed: int, device: torch.device = CPU
    ) -> Tensor | None:
        """What opacities are multiplied by, [N]: 0 or 1 / (1 - share); None where all stay."""
        share = self.share(step, steps)
        if not share:
            return None
        kept = torch.rand(count, generator=generator("dropout", seed, step)) >= share
        return sent(kept, device) / (1 - share)
