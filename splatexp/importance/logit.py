"""Importance as a free logit per row."""

from dataclasses import dataclass

import torch

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import Learned, learn
from splatexp.settings.checks import check_range


@dataclass
class Logit(Learned):
    """A free logit per row.

    It has the opacity's own gradient, but for a factor: the regularisation alone tells the two apart, and it
    alone moves a row that no view sees. The plain rival of `mlp`.

    Source: the code of Kim and Kwon 2025. Differs: it starts at 10, where the sigmoid's slope is 5e-5.
    """

    initial: float = 4.0  # logit; s = 0.98, with a slope of 0.02
    rate: float = 0.025

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("importance.initial", self.initial, -20, 20)
        check_range("importance.rate", self.rate, 0)

    def _lay(self, splats: Splats, seed: int) -> None:
        logits = splats.add_param("importance_logits", torch.full_like(splats.opacity_logits, self.initial))
        splats.importance = logits.detach().sigmoid().requires_grad_()

    def _learn(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        s = splats.importance
        assert s is not None
        if s.grad is not None:
            learn(splats, "importance_logits", s.grad * s * (1 - s), step + 1, self.rate, backend)
        torch.sigmoid(splats.extra["importance_logits"], out=s.detach())
        return True
