"""Importance as a free logit per row."""

from dataclasses import dataclass

import torch

from splatexp.gaussians.splats import Splats
from splatexp.importance.learned import LearnedImportance, adam_update
from splatexp.settings.checks import check_range


@dataclass
class Logit(LearnedImportance):
    """Learn a free logit for every row: s = sigmoid(logit).

    Its gradient equals that of the opacity up to a factor. Only the regularization tells the two apart, and
    it alone moves a row that no view sees. This is the plain baseline for `mlp`.

    Source: the code of Kim and Kwon 2025. Differs: theirs starts at a logit of 10, where the slope of the
    sigmoid is 5e-5.
    """

    init_logit: float = 4.0  # s = 0.98, where the slope of the sigmoid is 0.02
    lr: float = 0.025  # learning rate of the logits

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("importance.init_logit", self.init_logit, -20, 20)
        check_range("importance.lr", self.lr, 0)

    def _create(self, splats: Splats, seed: int) -> None:
        start = torch.full_like(splats.opacity_logits, self.init_logit)
        logits = splats.add_param("importance_logits", start)
        splats.importance = logits.detach().sigmoid().requires_grad_()

    def _update(self, splats: Splats, step: int, steps: int, backend: str, seed: int, last: bool) -> bool:
        s = splats.importance
        assert s is not None
        if s.grad is not None:
            adam_update(splats, "importance_logits", s.grad * s * (1 - s), step + 1, self.lr, backend)
        torch.sigmoid(splats.extra["importance_logits"], out=s.detach())
        return True
