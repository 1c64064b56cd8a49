"""Learned importance: a factor s in [0,1] of every Gaussian's opacity, o_eff = o s.

s is a leaf tensor on the rows (`splats.importance`) that every edit moves with them. The backward pass leaves
d loss / d s there, and `update` passes it on to the parameters from which s is computed. So these parameters
are never part of the graph of an image, no gradient reaches the inputs of the MLP, and an s that is expensive
to compute need not be computed anew in every step. Every child, of a clone or of a split, inherits the s of
its parent.

Source: Kim and Kwon 2025, "Error-Driven Importance Modeling for Efficient 3D Gaussian Splatting", and its
code. Differs: in their code the children of a split start anew, and models are saved without s, so that
suppressed Gaussians come back; `Splats.baked` folds s into the opacities.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.splats import Overwrite, Splats, scale_opacity
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.adam import adam

AVERAGE = "importance_average"  # name of the moving average of s on the rows


class Importance:
    """The interface of importance to the training loop; by itself s is 1 everywhere and nothing is stored."""

    is_learned: ClassVar[bool] = False

    def initialize(self, splats: Splats, seed: int = 0) -> None:
        """Create the state before the first step. A resumed run has it in the state of its splats."""

    def loss_terms(self, splats: Splats, render: Render, step: int, steps: int) -> dict[str, Tensor]:
        """Return the weighted scalars, by name, that are added to the loss."""
        return {}

    def update(self, splats: Splats, step: int, steps: int, backend: str, seed: int = 0) -> None:
        """Learn from the gradient that the backward pass of a step left, and compute s for the next step."""

    def metrics(self, step: int) -> dict[str, float]:
        """Return the weights of its loss terms at a step, by name, for the log."""
        return {}


@dataclass
class NoImportance(Importance):
    """Learn no importance: opacities are rendered as they are."""


@dataclass
class LearnedImportance(Importance):
    """Regularize s, which would otherwise end at 1 everywhere and carry no information.

    From `start` on, over `ramp` steps, these terms join the loss: sparsity mean(s) (or its square),
    binary mean(s (1 - s)), and budget_weight (mean(s) - budget)^2.

    Source: the sparsity term is that of Kim and Kwon 2025 (1e-4, from step 10,000 or 15,000 over 2,000 steps)
    and, squared, that of Liu et al. 2025, "MaskGaussian" (5e-4, from the start). Differs: binary and budget
    are additions.
    """

    is_learned: ClassVar[bool] = True

    sparsity: float = 5e-4  # weight of the mean of s
    squared_sparsity: bool = False  # penalize the square of that mean instead
    binary: float = 1e-3  # weight of the mean of s (1 - s), which pushes s towards 0 or 1
    budget: float = 0.0  # target for the mean of s; 0: none
    budget_weight: float = 0.1  # weight of (mean(s) - budget)^2
    start: int = field(default=3000, metadata=STEPS)  # step at which these terms set in
    ramp: int = field(default=2000, metadata=STEPS)  # steps over which they reach their full weights
    ema_decay: float = 0.9  # of the moving average that scores read, per update of s
    bake_at: int = field(
        default=0, metadata=STEPS
    )  # steps after which s is folded into the opacities; 0: at the end

    def __post_init__(self) -> None:
        for name in ("sparsity", "binary", "budget_weight", "start", "ramp", "bake_at"):
            check_range(f"importance.{name}", getattr(self, name), 0)
        check_range("importance.budget", self.budget, 0, 1)
        check_range("importance.ema_decay", self.ema_decay, 0, 1)

    def initialize(self, splats: Splats, seed: int = 0) -> None:
        """Give every row the same s, after folding an s that was learned before into the opacities."""
        bake(splats)
        self._create(splats, seed)
        splats.carried[AVERAGE] = self._expectation(splats).detach().clone()

    def loss_terms(self, splats: Splats, render: Render, step: int, steps: int) -> dict[str, Tensor]:
        """Return the regularization terms that are active; their gradients reach s alone."""
        s = splats.importance
        if s is None or step < self.start:
            return {}
        ramp, mean, terms = self._ramp_factor(step), s.sum() / max(len(s), 1), {}
        if self.sparsity:
            penalty = mean * mean if self.squared_sparsity else mean
            terms["importance_sparsity"] = ramp * self.sparsity * penalty
        if self.binary:
            terms["importance_binary"] = ramp * self.binary * (s * (1 - s)).sum() / max(len(s), 1)
        if self.budget and self.budget_weight:
            terms["importance_budget"] = ramp * self.budget_weight * (mean - self.budget) ** 2
        return terms

    def metrics(self, step: int) -> dict[str, float]:
        """Return the weights of its loss terms at a step, by name, for the log."""
        ramp = self._ramp_factor(step)
        weights = {"sparsity": self.sparsity, "binary": self.binary}
        weights |= {"budget": self.budget_weight} if self.budget else {}
        return {f"lambda_importance_{name}": ramp * weight for name, weight in weights.items()}

    def _ramp_factor(self, step: int) -> float:
        """Return the factor in [0,1] by which the weights are multiplied at a step."""
        if step < self.start:
            return 0.0
        return min(1.0, (step + 1 - self.start) / self.ramp) if self.ramp else 1.0

    @torch.no_grad()
    def update(self, splats: Splats, step: int, steps: int, backend: str, seed: int = 0) -> None:
        """Update the parameters of s where an update is due, then s itself and its moving average."""
        if splats.importance is None:
            return
        last = step + 1 in (steps, self.bake_at)
        if self._update(splats, step, steps, backend, seed, last):
            splats.importance.grad = None
            splats.carried[AVERAGE].lerp_(self._expectation(splats), 1 - self.ema_decay)
        if step + 1 == self.bake_at:
            bake(splats)

    def _create(self, splats: Splats, seed: int) -> None:
        """Create `splats.importance` and the parameters from which it is computed."""
        raise NotImplementedError

    def _update(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        """Pass the gradient of s on to its parameters and compute s anew.

        Args:
            last: this is the s that the model keeps.

        Returns: whether an update was due.
        """
        raise NotImplementedError

    def _expectation(self, splats: Splats) -> Tensor:
        """Return the expected value [N] of s over everything that is random in it."""
        assert splats.importance is not None
        return splats.importance.detach()


def average_importance(splats: Splats) -> Tensor:
    """Return the moving average [N] of s, for scores; it is 1 where s has been folded into the opacities.

    Raises: ValueError where no importance is learned.
    """
    if AVERAGE not in splats.carried:
        raise ValueError("importance: expected logit, mlp or mask, since a rule reads the score, got none")
    return splats.carried[AVERAGE]


@torch.no_grad()
def bake(splats: Splats) -> None:
    """Fold s into the opacities for good: images stay the same, and the rows need no importance any more."""
    if splats.importance is None:
        return
    logits = scale_opacity(splats.opacity_logits.detach(), splats.importance)
    splats.apply(Overwrite("opacity_logits", logits, reset_moments=False))
    splats.importance = None
    for name in {*splats.extra, *splats.shared, *splats.carried} - {AVERAGE}:
        if name.startswith("importance"):
            splats.remove(name)
    splats.carried[AVERAGE].fill_(1.0)


def adam_update(splats: Splats, name: str, grad: Tensor, number: int, lr: float, backend: str) -> None:
    """Update an extra or shared parameter of the splats by Adam, in place.

    Args:
        number: which update it is, counted from 1.
    """
    leaf = splats.extra[name] if name in splats.extra else splats.shared[name]
    adam(leaf, grad, splats.exp_avg[name], splats.exp_avg_sq[name], step=number, lr=lr, backend=backend)
