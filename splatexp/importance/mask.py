"""Importance as a binary mask that is drawn anew for every step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import LearnedImportance, adam_update
from splatexp.settings.checks import STEPS, check_range
from splatexp.system.devices import to_device
from splatexp.system.rng import generator


@dataclass
class Mask(LearnedImportance):
    """Draw s in {0, 1} for every step, 1 with probability sigmoid(logit); in the end take the likelier value.

    The moving average is that of the probability. An evaluation between two steps sees the draw of the next
    step.

    Source: Liu et al. 2025, "MaskGaussian": hard Gumbel softmax, straight-through gradient, and the settings
    of its code. Differs: there is one logit, the difference of its two, with twice the learning rate. A row
    that is masked out contributes to no pixel, so its gradient in that step is that of the regularization
    alone; their rasterizer computes what the row would have contributed. Rules prune by the average, not
    where ten draws are all 0.
    """

    squared_sparsity: bool = True
    binary: float = 0.0
    start: int = field(default=0, metadata=STEPS)
    ramp: int = field(default=0, metadata=STEPS)
    init_logit: float = 9.0  # initial logit of the probability
    lr: float = 0.02  # learning rate of the logits
    temperature: float = 1.0  # of the softened draw, whose slope the gradient uses

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("importance.init_logit", self.init_logit, -20, 20)
        check_range("importance.lr", self.lr, 0)
        check_range("importance.temperature", self.temperature, 1e-3)

    def _create(self, splats: Splats, seed: int) -> None:
        splats.add_param("importance_logits", torch.full_like(splats.opacity_logits, self.init_logit))
        splats.importance = torch.empty_like(splats.opacity_logits, requires_grad=True)
        self._draw(splats, seed, 0)

    def _update(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        s, soft = splats.importance, splats.carried["importance_soft"]
        assert s is not None
        if s.grad is not None:
            slope = soft * (1 - soft) / self.temperature
            adam_update(splats, "importance_logits", s.grad * slope, step + 1, self.lr, backend)
        if last:
            s.copy_(splats.extra["importance_logits"] > 0)
        else:
            self._draw(splats, seed, step + 1)
        return True

    @torch.no_grad()
    def _draw(self, splats: Splats, seed: int, step: int) -> None:
        """Draw the mask of a step; the softened draw stays on the rows until the update reads its slope."""
        random = generator("importance", seed, step)
        noise = torch.rand(len(splats), generator=random).clamp(1e-6, 1 - 1e-6).logit()
        logits = splats.extra["importance_logits"].detach()
        soft = (logits + to_device(noise, logits.device)) / self.temperature
        splats.carried["importance_soft"] = soft.sigmoid()
        splats.importance.copy_(soft > 0)  # type: ignore[union-attr]

    def _expectation(self, splats: Splats) -> Tensor:
        return splats.extra["importance_logits"].detach().sigmoid()
