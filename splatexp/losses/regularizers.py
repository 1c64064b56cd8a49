"""What a model pays besides its pictures: each a weight, a window of steps and a mean over the Gaussians.

Notation: N Gaussians, [C,H,W,1] pixels; scales and opacities are those that are drawn.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.splats import Splats
from splatexp.raster.rasterizer import Render
from splatexp.schedules.curve import Curve
from splatexp.settings.checks import STEPS, check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene


@dataclass
class Regularizer:
    """A penalty that is active from `start` until before `stop` (0: to the end)."""

    weight: float = 0.01
    anneal: Curve = field(default_factory=Curve)  # factor of the weight over the run
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)

    domain: ClassVar[str] = "scene"  # or "image"

    def __post_init__(self) -> None:
        check_range("regularizer.weight", self.weight, 0)
        check_range("regularizer.start", self.start, 0)
        check_range("regularizer.stop", self.stop, 0)

    def check(self, scene: "Scene") -> None:
        """Hold it against the scene.  Raises: ValueError where it makes no sense there."""

    def active(self, step: int) -> bool:
        """Whether it counts at a step."""
        return self.weight > 0 and self.start <= step and (step < self.stop or not self.stop)

    def strength(self, step: int, steps: int) -> float:
        """Its weight at a step of a run of so many; 0 where it is not active."""
        return self.weight * self.anneal(step, steps) if self.active(step) else 0.0

    def __call__(self, render: Render, splats: Splats, step: int, steps: int) -> Tensor:
        """The weighted penalty at a step of a run of so many, a scalar."""
        return self.weight * self.anneal(step, steps) * self.penalty(render, splats)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """The penalty, a scalar."""
        raise NotImplementedError


@dataclass
class Opacity(Regularizer):
    """Mean distance of the opacities from a target, to a power; from 0 it empties what is not needed.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10 (power 1, target 0); CluelessStudent,
    "Neural-Head-Reconstruction-Thesis" (power 2, target 0.8, weight 0.01: nothing stays half seen).
    """

    power: float = 1.0  # 1: L1, 2: L2
    target: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.opacity.power", self.power, 1e-3)
        check_range("regularizer.opacity.target", self.target, 0, 1)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of |o - target|^power."""
        away = (render.opacities - self.target).abs() if self.target else render.opacities
        values = away if self.power == 1 else away.pow(self.power)
        return values.sum() / max(len(values), 1)


@dataclass
class Scale(Regularizer):
    """Mean of the scales, world units, which keeps Gaussians small.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10.
    """

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of s."""
        return render.scales.sum() / max(render.scales.numel(), 1)


@dataclass
class ScaleBounds(Regularizer):
    """Mean square of how far the scales are outside [low, high], in shares of these bounds.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", where the bounds are 1 and 10 in a cube of
    140 seen from 500 away. Differs: bounds in shares of the extent, and excesses in shares of the bound.
    """

    low: float = 0.0005  # shares of the scene's extent
    high: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.scalebounds.low", self.low, 1e-9)
        check_range("regularizer.scalebounds.high", self.high, self.low)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of max(0, 1 - s / low)^2 + max(0, s / high - 1)^2."""
        shares = render.scales / splats.extent
        outside = (1 - shares / self.low).relu().square() + (shares / self.high - 1).relu().square()
        return outside.sum() / max(outside.numel(), 1)


@dataclass
class Spatial(Regularizer):
    """Mean square of how far the means are outside a box, in shares of half its side: nothing strays.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", a cube of 200 seen from 500 away. Differs:
    in shares of the extent and of the half side.
    """

    weight: float = 0.001
    radius: float = 0.25  # half the side, shares of the scene's extent
    center: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # world units

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.spatial.radius", self.radius, 1e-9)
        if len(self.center) != 3:
            raise ValueError(f"regularizer.spatial.center: expected three numbers, got {list(self.center)}")

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean over means and axes of max(0, |x - center| / radius - 1)^2."""
        axes = [splats.means[:, axis] - value for axis, value in enumerate(self.center)]
        away = torch.stack(axes, 1).abs() / (self.radius * splats.extent)
        return (away - 1).relu().square().sum() / max(away.numel(), 1)


@dataclass
class ScreenScale(Regularizer):
    """Mean square of the footprint's radius over the Gaussians in view, which keeps them small on the screen.

    The radius r is 3 standard deviations along the longer axis, px of the picture that is trained on.
    Where one is drawn more than a thousand times as long as wide, it counts as a thousand times as long.
    """

    weight: float = 1e-5  # of square pixels; of shares above r_max 0.01 is a fair start
    r_max: float = 0.0  # px; only what exceeds it pays, (r / r_max - 1)^2; 0: all pay r^2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.screenscale.r_max", self.r_max, 0)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of r^2, px^2, or of the square of its excess over r_max."""
        conics, seen = render.conics, render.visible
        if conics.is_cpu:
            conics, seen = conics[seen], None
        else:  # a device would have to tell how many are seen: all are reckoned, and those left out below
            conics = torch.where(seen[..., None], conics, 1.0)
        a, b, c = conics.unbind(-1)
        most = 0.5 * (a + c) + torch.hypot(0.5 * (a - c), b)  # eigenvalues of the inverse covariance
        least = torch.maximum((a * c - b * b) / most, 1e-6 * most)  # float32 resolves no smaller ratio
        square = 9 / least
        if self.r_max:
            square = (square.sqrt() / self.r_max - 1).relu().square()
        if seen is None:
            return square.sum() / max(len(square), 1)
        return torch.where(seen, square, 0.0).sum() / seen.sum().clamp_min(1)


@dataclass
class SH(Regularizer):
    """Mean square of the SH coefficients above degree 0, which keeps colours from changing with the view."""

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of ||shN||^2, summed over bands and channels."""
        return splats.shN.square().sum() / max(len(splats), 1)


@dataclass
class Erank(Regularizer):
    """Mean of -ln(erank - 1) where that is positive, which turns needles into discs.

    The effective rank is exp of the entropy of s^2 / sum(s^2): 1 for a needle, 2 for a disc, 3 for a ball.

    Source: Hyung et al. 2024, "Effective Rank Analysis and Regularization".
    """

    start: int = field(default=7_000, metadata=STEPS)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of max(0, -ln(erank - 1 + 1e-7))."""
        logs = (2 * render.scales.clamp_min(1e-30).log()).log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1)
        values = (-(entropy.expm1() + 1e-7).log()).relu()
        return values.sum() / max(len(values), 1)


@dataclass
class Thin(Regularizer):
    """Mean of the smallest scale, world units, which makes Gaussians flat; it goes with `Erank`.

    Source: Hyung et al. 2024, "Effective Rank Analysis and Regularization".
    """

    weight: float = 1.0
    start: int = field(default=7_000, metadata=STEPS)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of min(s)."""
        return render.scales.amin(1).sum() / max(len(render.scales), 1)


@dataclass
class Transmittance(Regularizer):
    """Mean of what stays transparent, which fills photographs; it is refused for objects on a background.

    Source: Rota Bulo et al. 2024, "Revising Densification in Gaussian Splatting".
    """

    weight: float = 0.1

    def check(self, scene: "Scene") -> None:
        """Raises: ValueError for a scene whose pictures are transparent in places."""
        if scene.background is not None or scene.random_background:
            raise ValueError(
                f"regularizer.transmittance: expected pictures that are filled to the edge, "
                f"got {scene.name} with a background"
            )

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Mean of 1 - alpha over the pixels."""
        return (1 - render.alpha).mean()


@dataclass
class Logit(Regularizer):
    """Square of the distance between the mean logit and a target, which lets weak Gaussians die out.

    All logits get one gradient, 2 (mean - target) / N: what the pictures need holds out against it.

    Source: "Gaussian Natural Selection" (arXiv 2511.16980).
    Differs: the weight stays as its curve says; the authors steer it by how many have died, and in the first
    1,000 steps divide a logit's distance by 1 - o.
    """

    weight: float = 2e-4
    start: int = field(default=15_000, metadata=STEPS)
    stop: int = field(default=23_000, metadata=STEPS)
    target: float = -20.0
    every: int = 50  # it counts at every so many steps

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.logit.every", self.every, 1)

    def active(self, step: int) -> bool:
        """Whether it counts at a step."""
        return super().active(step) and (step - self.start) % self.every == 0

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """(mean(logit) - target)^2."""
        logits = splats.opacity_logits
        return (logits.sum() / max(len(logits), 1) - self.target).square()
