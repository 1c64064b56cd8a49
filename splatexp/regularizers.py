"""What a model pays besides its pictures: each a weight, a window of steps and a mean over the Gaussians."""

from dataclasses import dataclass, field

from torch import Tensor

from splatexp.choices import check_range
from splatexp.raster import Render
from splatexp.schedules import STEPS


@dataclass
class Regularizer:
    """A penalty that is active from `start` until before `stop` (0: to the end)."""

    weight: float = 0.01
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)

    def __post_init__(self) -> None:
        check_range("regularizer.weight", self.weight, 0)
        check_range("regularizer.start", self.start, 0)
        check_range("regularizer.stop", self.stop, 0)

    def active(self, step: int) -> bool:
        """Whether it counts at a step."""
        return self.weight > 0 and self.start <= step and (step < self.stop or not self.stop)

    def __call__(self, render: Render) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * self.penalty(render)

    def penalty(self, render: Render) -> Tensor:
        """The penalty, a scalar."""
        raise NotImplementedError


@dataclass
class Opacity(Regularizer):
    """Mean of the opacities to a power, which empties what is not needed.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10 (power 1).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.opacity.power", self.power, 1e-3)

    def penalty(self, render: Render) -> Tensor:
        """Mean of o^power."""
        values = render.opacities if self.power == 1 else render.opacities.pow(self.power)
        return values.sum() / max(len(values), 1)


@dataclass
class Scale(Regularizer):
    """Mean of the scales, world units, which keeps Gaussians small.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10.
    """

    def penalty(self, render: Render) -> Tensor:
        """Mean of s."""
        return render.scales.sum() / max(render.scales.numel(), 1)
