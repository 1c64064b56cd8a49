"""The optimizer of an image's Gaussians: Adam in units of the image, and the schedules of its learning
rates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats2d import OPACITY, PARAMS, Splats2D
from splatexp.image.fit.refine import SMALLEST, Refinement
from splatexp.schedules.curve import Curve
from splatexp.schedules.schedule import LearningRateSchedule
from splatexp.train.optimizer import Optimizer

if TYPE_CHECKING:
    from splatexp.raster.rasterizer import Rasterizer
    from splatexp.train.step_log import StepOutput

POWERS = {  # parametrizations whose numbers have a unit -> the power of px in each number; an angle has none
    "cholesky": (1, 1, 1),
    "rotation_scale": (1, 1, 0),
    "inverse_scale": (-1, -1, 0),
    "direct": (2, 2, 2),
    "inverse": (-2, -2, -2),
}


@dataclass
class ImageAdam(Optimizer):
    """Learning rates per parameter of the Gaussians of an image.

    Adam moves a number by about its learning rate in a step, whatever the unit of the loss; so the rates are
    in px of the image and in colours. `shapes` is in the unit of the parametrization: logarithms and shears
    for log_cholesky. The second moment decays within about a hundred steps, since a fit has few.
    """

    domain: ClassVar[str] = "image"

    PARAM_NAMES = (*PARAMS, OPACITY)
    SEEN_STATS = {"seen": (*PARAMS, OPACITY)}

    means: float = 0.5  # learning rate of the means, px, or fractions of a Gaussian's size
    shapes: float = 0.1  # learning rate of the covariance's parameters
    colors: float = 0.02  # learning rate of the colours
    opacity_logits: float = 0.1  # learning rate of the opacities, which only raster.mode=alpha has
    beta2: float = 0.99  # decay of the second moment
    # learning rates of the means, and of shapes in px, 1/px or px^2, are multiplied by the Gaussian's size
    # (the geometric mean of its axes) to that power
    relative_to_size: bool = True
    refine: Refinement = field(default_factory=Refinement)

    def end_step(
        self, splats: Rows, output: StepOutput, raster: Rasterizer, step: int, steps: int, best: list[float]
    ) -> bool:
        """Run the stages of `refine` that are due after a step; return whether the fit ends."""
        return self.refine(splats, output, raster, step, steps, best)  # type: ignore[arg-type]

    def _update(
        self, splats: Rows, name: str, count: int, rate: float, rows: Tensor | None, backend: str
    ) -> None:
        assert isinstance(splats, Splats2D)
        powers: tuple[int, ...] | None = None
        if name == "means":
            powers = (1, 1)
        elif name == "shapes":
            powers = POWERS.get(splats.parametrization)
        if not self.relative_to_size or powers is None:
            super()._update(splats, name, count, rate, rows, backend)
            return
        param = splats.params[name].detach()
        before, exponents = param.clone(), torch.tensor(powers, device=param.device)
        factors = splats.sigmas().clamp_min(SMALLEST)[:, None] ** exponents
        super()._update(splats, name, count, rate, rows, backend)
        param.sub_(before).mul_(factors).add_(before)


@dataclass
class ImageSchedule(LearningRateSchedule):
    """Learning rates that fall on a cosine from the first step on."""

    domain: ClassVar[str] = "image"

    PARAM_NAMES = ("shapes", "colors", OPACITY)
    SLOWED_BY_COUNT = ("means",)

    means: Curve = field(default_factory=lambda: Curve("cosine", end=0.02))  # factor of the means' rate
    others: Curve = field(default_factory=lambda: Curve("cosine", end=0.02))  # factor of all other rates
    shapes: Curve = field(default_factory=Curve)  # further factor of the shapes' rate
    colors: Curve = field(default_factory=Curve)  # further factor of the colours' rate
    opacity_logits: Curve = field(default_factory=Curve)  # further factor of the opacities' rate
