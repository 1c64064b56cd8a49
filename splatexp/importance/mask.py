"""Importance as a mask that is drawn anew for every step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import Learned, learn
from splatexp.settings.checks import STEPS, check_range
from splatexp.system.devices import sent
from splatexp.system.rng import generator


@dataclass
class Mask(Learned):
    """A mask, 1 with probability sigmoid(logit), else 0; in the end, 1 where that is more likely.

    The moving average is that of the probability. An evaluation between steps sees the next step's draw.

    Source: Liu et al. 2025, "MaskGaussian": hard Gumbel softmax, straight-through gradient, settings of its
    code. Differs: one logit, the difference of its two, at twice the rate. A row that is masked out has no
    part in any pixel, so in that step its gradient is that of the regularisation alone; there, a rasterizer
    of its own tells what the row would have done. Rules prune by the average, not where ten draws are all 0.
    """

    squared: bool = True
    binary: float = 0.0
    start: int = field(default=0, metadata=STEPS)
    ramp: int = field(default=0, metadata=STEPS)
    initial: float = 9.0  # logit
    rate: float = 0.02
    temperature: float = 1.0  # of the softened draw whose slope the gradient takes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("importance.initial", self.initial, -20, 20)
        check_range("importance.rate", self.rate, 0)
        check_range("importance.temperature", self.temperature, 1e-3)

    def _lay(self, splats: Splats, seed: int) -> None:
        splats.add_param("importance_logits", torch.full_like(splats.opacity_logits, self.initial))
        splats.importance = torch.empty_like(splats.opacity_logits, requires_grad=True)
        self._draw(splats, seed, 0)

    def _learn(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        s, soft = splats.importance, splats.carried["importance_soft"]
        assert s is not None
        if s.grad is not None:
            slope = soft * (1 - soft) / self.temperature
            learn(splats, "importance_logits", s.grad * slope, step + 1, self.rate, backend)
        if last:
            s.copy_(splats.extra["importance_logits"] > 0)
        else:
            self._draw(splats, seed, step + 1)
        return True

    @torch.no_grad()
    def _draw(self, splats: Splats, seed: int, step: int) -> None:
        """The mask of a step; the softened draw stays with the rows until its slope is asked for."""
        random = generator("importance", seed, step)
        noise = torch.rand(len(splats), generator=random).clamp(1e-6, 1 - 1e-6).logit()
        logits = splats.extra["importance_logits"].detach()
        soft = (logits + sent(noise, logits.device)) / self.temperature
        splats.carried["importance_soft"] = soft.sigmoid()
        splats.importance.copy_(soft > 0)  # type: ignore[union-attr]

    def _expected(self, splats: Splats) -> Tensor:
        return splats.extra["importance_logits"].detach().sigmoid()
