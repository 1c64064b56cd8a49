"""Learned importance: what every Gaussian's opacity is multiplied by, alpha_eff = alpha s with s in [0,1].

s is a leaf on the rows (`splats.importance`), which every edit moves: the backward pass leaves d loss / d s
there, and `update` hands it on to what s is made of. So that is never in the graph of a picture, no gradient
reaches what s is judged by, and a costly s need not be made anew in every step. Every child, of a clone or of
a split, has its parent's s.

Source: Kim and Kwon 2025, "Error-Driven Importance Modeling for Efficient 3D Gaussian Splatting", its code.
Differs: split children start anew there; its models are written without s, so that what was suppressed comes
back, while `Splats.baked` folds it in.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.splats import Overwrite, Splats, dimmed
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.adam import adam

AVERAGE = "importance_average"


class Importance:
    """What the loop asks of importance; by itself it is 1 for everyone, and nothing is stored."""

    learns: ClassVar[bool] = False

    def begin(self, splats: Splats, seed: int = 0) -> None:
        """Lay out the state before the first step. A resumed run has it from the state of the splats."""

    def terms(self, splats: Splats, render: Render, step: int, steps: int) -> dict[str, Tensor]:
        """Weighted scalars that join the loss, by name."""
        return {}

    def update(self, splats: Splats, step: int, steps: int, backend: str, seed: int = 0) -> None:
        """Learn from what the step's backward pass left, and make the s of the next step."""

    def status(self, step: int) -> dict[str, float]:
        """Weights of its terms at a step, by name, for the record."""
        return {}


@dataclass
class NONE(Importance):
    """No importance."""


@dataclass
class Learned(Importance):
    """The regularisation that keeps s from ending at 1 everywhere, where it would say nothing.

    From `start` it rises over `ramp` steps to: sparsity mean(s) (or its square), binary mean(s (1 - s)), and
    budget_weight (mean(s) - budget)^2.

    Source: sparsity Kim and Kwon 2025 (1e-4, from step 10,000 or 15,000 over 2,000) and, squared, Liu et al.
    2025, "MaskGaussian" (5e-4, from the start). Differs: binary and budget are ours.
    """

    learns: ClassVar[bool] = True

    sparsity: float = 5e-4  # weight of the mean of s
    squared: bool = False  # of the square of that mean instead
    binary: float = 1e-3  # weight of the mean of s (1 - s)
    budget: float = 0.0  # mean of s to aim at; 0: none
    budget_weight: float = 0.1  # of (mean(s) - budget)^2
    start: int = field(default=3000, metadata=STEPS)
    ramp: int = field(default=2000, metadata=STEPS)
    decay: float = 0.9  # of the moving average that scores read, per update of s
    bake_at: int = field(default=0, metadata=STEPS)  # fold s into the opacities after so many; 0: at the end

    def __post_init__(self) -> None:
        for name in ("sparsity", "binary", "budget_weight", "start", "ramp", "bake_at"):
            check_range(f"importance.{name}", getattr(self, name), 0)
        check_range("importance.budget", self.budget, 0, 1)
        check_range("importance.decay", self.decay, 0, 1)

    def begin(self, splats: Splats, seed: int = 0) -> None:
        """Everyone starts alike; what was learned before is folded in first."""
        bake(splats)
        self._lay(splats, seed)
        splats.carried[AVERAGE] = self._expected(splats).detach().clone()

    def terms(self, splats: Splats, render: Render, step: int, steps: int) -> dict[str, Tensor]:
        """The regularisation, while it is active; its gradient reaches s alone."""
        s = splats.importance
        if s is None or step < self.start:
            return {}
        rise, mean, terms = self._rise(step), s.sum() / max(len(s), 1), {}
        if self.sparsity:
            terms["importance_sparsity"] = rise * self.sparsity * (mean * mean if self.squared else mean)
        if self.binary:
            terms["importance_binary"] = rise * self.binary * (s * (1 - s)).sum() / max(len(s), 1)
        if self.budget and self.budget_weight:
            terms["importance_budget"] = rise * self.budget_weight * (mean - self.budget) ** 2
        return terms

    def status(self, step: int) -> dict[str, float]:
        """Weights of its terms at a step, by name, for the record."""
        rise = self._rise(step)
        weights = {"sparsity": self.sparsity, "binary": self.binary}
        weights |= {"budget": self.budget_weight} if self.budget else {}
        return {f"lambda_importance_{name}": rise * weight for name, weight in weights.items()}

    def _rise(self, step: int) -> float:
        """The share of the weights that is in force."""
        if step < self.start:
            return 0.0
        return min(1.0, (step + 1 - self.start) / self.ramp) if self.ramp else 1.0

    @torch.no_grad()
    def update(self, splats: Splats, step: int, steps: int, backend: str, seed: int = 0) -> None:
        """One update of what s is made of, where one is due; then s, and its moving average."""
        if splats.importance is None:
            return
        last = step + 1 in (steps, self.bake_at)
        if self._learn(splats, step, steps, backend, seed, last):
            splats.importance.grad = None
            splats.carried[AVERAGE].lerp_(self._expected(splats), 1 - self.decay)
        if step + 1 == self.bake_at:
            bake(splats)

    def _lay(self, splats: Splats, seed: int) -> None:
        """Make `splats.importance` and what it is made of."""
        raise NotImplementedError

    def _learn(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        """Hand the gradient of s on, and write s. Returns: whether it was the time.

        last: s is now what the model keeps.
        """
        raise NotImplementedError

    def _expected(self, splats: Splats) -> Tensor:
        """The mean [N] of s over whatever is random in it."""
        assert splats.importance is not None
        return splats.importance.detach()


def average(splats: Splats) -> Tensor:
    """The moving average of s [N], for scores; 1 where s has been folded into the opacities.

    Raises: ValueError where none is learned.
    """
    if AVERAGE not in splats.carried:
        raise ValueError("importance: expected logit, mlp or mask where a rule reads it, got none")
    return splats.carried[AVERAGE]


@torch.no_grad()
def bake(splats: Splats) -> None:
    """Fold s into the opacities for good: the picture stays, the rows are plain."""
    if splats.importance is None:
        return
    logits = dimmed(splats.opacity_logits.detach(), splats.importance)
    splats.apply(Overwrite("opacity_logits", logits, restart=False))
    splats.importance = None
    for name in {*splats.extra, *splats.shared, *splats.carried} - {AVERAGE}:
        if name.startswith("importance"):
            splats.remove(name)
    splats.carried[AVERAGE].fill_(1.0)


def learn(splats: Splats, name: str, grad: Tensor, number: int, rate: float, backend: str) -> None:
    """Adam's update of that number, from 1, of an extra or shared leaf of the splats."""
    leaf = splats.extra[name] if name in splats.extra else splats.shared[name]
    adam(leaf, grad, splats.exp_avg[name], splats.exp_avg_sq[name], step=number, lr=rate, backend=backend)
