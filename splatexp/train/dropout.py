"""Dropout of Gaussians: a random part of them is left out of each step, against overfitting to few views."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.settings.checks import STEPS, check_range
from splatexp.system.devices import to_device
from splatexp.system.rng import generator

CPU = torch.device("cpu")


@dataclass
class Dropout:
    """The probability of being left out; it grows linearly from 0 at `start` to `p` at `stop`, and stays `p`.

    The opacities of the Gaussians that are kept are multiplied by 1 / (1 - probability).

    Source: Park et al. 2025, "DropGaussian"; its p is 0.2, for few photographs.
    """

    p: float = 0.0  # largest probability; 0: no dropout
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: the last step of the run

    def __post_init__(self) -> None:
        check_range("dropout.p", self.p, 0, 0.99)
        check_range("dropout.start", self.start, 0)
        if self.stop < (self.start if self.stop else 0):
            raise ValueError(
                f"dropout.stop: expected 0 or at least dropout.start={self.start}, got {self.stop}"
            )

    def probability(self, step: int, steps: int) -> float:
        """Return the probability of being left out at a step of a run of `steps` steps."""
        length = max(1, (self.stop or steps) - self.start)
        return self.p * min(1.0, max(0.0, (step - self.start) / length))

    def opacity_factors(
        self, step: int, steps: int, count: int, seed: int, device: torch.device = CPU
    ) -> Tensor | None:
        """Return the factors [N] of the opacities at a step: 0 or 1 / (1 - probability).

        Returns None where all are kept.

        Args:
            count: N, the number of Gaussians.
            seed: of the run; the factors depend on (seed, step) alone.
        """
        probability = self.probability(step, steps)
        if not probability:
            return None
        kept = torch.rand(count, generator=generator("dropout", seed, step)) >= probability
        return to_device(kept, device) / (1 - probability)
