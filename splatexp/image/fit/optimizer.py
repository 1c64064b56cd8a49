"""How the rows of a picture learn: Adam in units of the picture, and the curves of its rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.plane import OPACITY, PARAMS, Plane
from splatexp.gaussians.rows import Rows
from splatexp.image.fit.refine import SMALLEST, Refine
from splatexp.schedules.curve import Curve
from splatexp.schedules.schedule import Pace
from splatexp.train.optimizer import Updates

if TYPE_CHECKING:
    from splatexp.raster.rasterizer import Drawing
    from splatexp.train.step_log import Sight

POWERS = {  # forms whose numbers have a unit -> of px in each number; an angle has none
    "cholesky": (1, 1, 1),
    "rotation_scale": (1, 1, 0),
    "inverse_scale": (-1, -1, 0),
    "direct": (2, 2, 2),
    "inverse": (-2, -2, -2),
}


@dataclass
class PlaneAdam(Updates):
    """Learning rates per parameter of Gaussians of the plane; see `Updates`.

    Adam moves a number by about its rate in a step, whatever the loss is measured in: so rates are in px of
    the picture and in colours. `shapes` is in the unit of the model's form: in logarithms and shears for
    log_cholesky. The second moment forgets in about a hundred steps, of which a fit has few.
    """

    domain: ClassVar[str] = "image"

    NAMES = (*PARAMS, OPACITY)
    SEEN = {"seen": (*PARAMS, OPACITY)}

    means: float = 0.5  # px, or shares of a row's size
    shapes: float = 0.1
    colors: float = 0.02
    opacity_logits: float = 0.1
    beta2: float = 0.99
    # rates of the means, and of shapes in px, 1/px or px^2, are in shares of the row's size, the geometric
    # mean of its axes, or of its powers
    by_size: bool = True
    refine: Refine = field(default_factory=Refine)

    def finish(
        self, splats: Rows, sight: Sight, raster: Drawing, step: int, steps: int, best: list[float]
    ) -> bool:
        """As `Updates` says: what `refine` has to do."""
        return self.refine(splats, sight, raster, step, steps, best)  # type: ignore[arg-type]

    def _update(
        self, splats: Rows, name: str, count: int, rate: float, rows: Tensor | None, backend: str
    ) -> None:
        assert isinstance(splats, Plane)
        powers = (1, 1) if name == "means" else POWERS.get(splats.form) if name == "shapes" else None
        if not self.by_size or powers is None:
            super()._update(splats, name, count, rate, rows, backend)
            return
        param = splats.params[name].detach()
        before, exponents = param.clone(), torch.tensor(powers, device=param.device)
        factors = splats.sizes().clamp_min(SMALLEST)[:, None] ** exponents
        super()._update(splats, name, count, rate, rows, backend)
        param.sub_(before).mul_(factors).add_(before)


@dataclass
class PlanePace(Pace):
    """Rates that fall on a cosine from the first step on: late steps are small ones."""

    domain: ClassVar[str] = "image"

    NAMES = ("shapes", "colors", OPACITY)
    CROWDED = ("means",)

    means: Curve = field(default_factory=lambda: Curve("cosine", end=0.02))
    others: Curve = field(default_factory=lambda: Curve("cosine", end=0.02))
    shapes: Curve = field(default_factory=Curve)
    colors: Curve = field(default_factory=Curve)
    opacity_logits: Curve = field(default_factory=Curve)
