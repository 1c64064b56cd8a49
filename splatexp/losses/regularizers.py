"""Regularizers: weighted penalties on the Gaussians, which are added to the photometric loss.

Notation: N Gaussians, [C,H,W,1] pixels; scales s and opacities o are the activated ones of the render.
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
    """A penalty with a weight and a window of steps, in which it is active."""

    weight: float = 0.01
    anneal: Curve = field(default_factory=Curve)  # factor of the weight over the run
    start: int = field(default=0, metadata=STEPS)  # first step of the window
    stop: int = field(default=0, metadata=STEPS)  # the window ends before this step; 0: the end of the run

    domain: ClassVar[str] = "scene"  # or "image", for a regularizer of images

    def __post_init__(self) -> None:
        check_range("regularizer.weight", self.weight, 0)
        check_range("regularizer.start", self.start, 0)
        check_range("regularizer.stop", self.stop, 0)

    def check(self, scene: "Scene") -> None:
        """Check that the penalty makes sense for a scene.  Raises: ValueError where it does not."""

    def active(self, step: int) -> bool:
        """Return whether the penalty is part of the loss at a step."""
        return self.weight > 0 and self.start <= step and (step < self.stop or not self.stop)

    def weight_at(self, step: int, steps: int) -> float:
        """Return the weight at a step of a run of `steps` steps; 0 where the penalty is not active."""
        return self.weight * self.anneal(step, steps) if self.active(step) else 0.0

    def __call__(self, render: Render, splats: Splats, step: int, steps: int) -> Tensor:
        """Return the weighted penalty, a scalar, at a step of a run of `steps` steps."""
        return self.weight * self.anneal(step, steps) * self.penalty(render, splats)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the penalty, a scalar, without its weight."""
        raise NotImplementedError


@dataclass
class Opacity(Regularizer):
    """The mean distance of the opacities from a target, to a power.

    With target 0, Gaussians that the images do not need become transparent.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10 (power 1, target 0); CluelessStudent,
    "Neural-Head-Reconstruction-Thesis" (power 2, target 0.8, weight 0.01: no Gaussian stays
    half transparent).
    """

    power: float = 1.0  # 1: L1, 2: L2
    target: float = 0.0  # opacity, 0 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.opacity.power", self.power, 1e-3)
        check_range("regularizer.opacity.target", self.target, 0, 1)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of |o - target|^power."""
        distances = (render.opacities - self.target).abs() if self.target else render.opacities
        values = distances if self.power == 1 else distances.pow(self.power)
        return values.sum() / max(len(values), 1)


@dataclass
class Scale(Regularizer):
    """The mean of the scales, world units, which keeps Gaussians small.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 10.
    """

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of s."""
        return render.scales.sum() / max(render.scales.numel(), 1)


@dataclass
class ScaleBounds(Regularizer):
    """The mean square of how far the scales are outside [low, high], relative to the bound that they exceed.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", where the bounds are 1 and 10 in a cube of
    side 140, seen from a distance of 500.
    Differs: the bounds are relative to the extent of the scene, and the excess to the bound.
    """

    low: float = 0.0005  # fraction of the scene's extent
    high: float = 0.02  # fraction of the scene's extent

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.scale_bounds.low", self.low, 1e-9)
        check_range("regularizer.scale_bounds.high", self.high, self.low)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of max(0, 1 - s / low)^2 + max(0, s / high - 1)^2."""
        relative = render.scales / splats.extent
        outside = (1 - relative / self.low).relu().square() + (relative / self.high - 1).relu().square()
        return outside.sum() / max(outside.numel(), 1)


@dataclass
class BoundingBox(Regularizer):
    """The mean square of how far the means are outside a cube, relative to half its side.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", a cube of side 200, seen from a distance of
    500.
    Differs: the side is relative to the extent of the scene, and the excess to half the side.
    """

    weight: float = 0.001
    half_size: float = 0.25  # half the side of the cube, fraction of the scene's extent
    center: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # world units

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.bounding_box.half_size", self.half_size, 1e-9)
        if len(self.center) != 3:
            raise ValueError(
                f"regularizer.bounding_box.center: expected three numbers, got {list(self.center)}"
            )

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean over means and axes of max(0, |x - center| / half_size - 1)^2."""
        offsets = [splats.means[:, axis] - value for axis, value in enumerate(self.center)]
        relative = torch.stack(offsets, 1).abs() / (self.half_size * splats.extent)
        return (relative - 1).relu().square().sum() / max(relative.numel(), 1)


@dataclass
class ScreenSize(Regularizer):
    """The mean square of the footprint's radius over the visible Gaussians, which keeps them small on screen.

    The radius r is 3 standard deviations along the longer axis, in pixels of the training image. Of a
    Gaussian that is more than a thousand times as long as wide on screen, a thousand widths count.
    """

    weight: float = 1e-5  # per square pixel; with max_radius, 0.01 is a good start
    max_radius: float = 0.0  # px; above 0 only larger radii count, as (r / max_radius - 1)^2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.screen_size.max_radius", self.max_radius, 0)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of r^2, px^2, or of the squared relative excess over max_radius."""
        conics = render.conics
        visible: Tensor | None = render.visible
        if conics.is_cpu:
            conics = conics[visible]
            visible = None
        else:  # indexing would wait for the device to count them, so the invisible ones are masked out below
            conics = torch.where(visible[..., None], conics, 1.0)
        a, b, c = conics.unbind(-1)
        larger = 0.5 * (a + c) + torch.hypot(0.5 * (a - c), b)  # eigenvalues of the inverse covariance
        smaller = torch.maximum((a * c - b * b) / larger, 1e-6 * larger)  # float32 resolves no smaller ratio
        square = 9 / smaller
        if self.max_radius:
            square = (square.sqrt() / self.max_radius - 1).relu().square()
        if visible is None:
            return square.sum() / max(len(square), 1)
        return torch.where(visible, square, 0.0).sum() / visible.sum().clamp_min(1)


@dataclass
class SH(Regularizer):
    """The mean square of the SH coefficients above degree 0, against colours that change with the view."""

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of ||shN||^2 over the Gaussians; bands and channels are summed."""
        return splats.shN.square().sum() / max(len(splats), 1)


@dataclass
class Erank(Regularizer):
    """The mean of max(0, -ln(erank - 1)), which turns needles into discs.

    The effective rank, erank, is exp of the entropy of s^2 / sum(s^2): 1 for a needle, 2 for a disc, 3 for a
    ball.

    Source: Hyung et al. 2024, "Effective Rank Analysis and Regularization".
    """

    start: int = field(default=7_000, metadata=STEPS)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of max(0, -ln(erank - 1 + 1e-7))."""
        logs = (2 * render.scales.clamp_min(1e-30).log()).log_softmax(1)
        entropy = -(logs.exp() * logs).sum(1)
        values = (-(entropy.expm1() + 1e-7).log()).relu()
        return values.sum() / max(len(values), 1)


@dataclass
class Flatness(Regularizer):
    """The mean of the smallest scale, world units, which flattens Gaussians; its authors use it with `Erank`.

    Source: Hyung et al. 2024, "Effective Rank Analysis and Regularization".
    """

    weight: float = 1.0
    start: int = field(default=7_000, metadata=STEPS)

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of min(s)."""
        return render.scales.amin(1).sum() / max(len(render.scales), 1)


@dataclass
class Transmittance(Regularizer):
    """The mean transmittance of the pixels, for photographs, which show something everywhere.

    It is refused for scenes with a background, whose images are transparent in places.

    Source: Rota Bulo et al. 2024, "Revising Densification in Gaussian Splatting".
    """

    weight: float = 0.1

    def check(self, scene: "Scene") -> None:
        """Check that the scene has no background.  Raises: ValueError where it has one."""
        if scene.background is not None or scene.random_background:
            raise ValueError(
                f"regularizer.transmittance: expected a scene without a background, "
                f"got {scene.name} with a background"
            )

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return the mean of 1 - alpha over the pixels."""
        return (1 - render.alpha).mean()


@dataclass
class OpacityLogit(Regularizer):
    """The squared distance of the mean opacity logit from a target.

    All logits get the same gradient, 2 (mean - target) / N. Gaussians that the images need hold out against
    it; the others become transparent.

    Source: "Gaussian Natural Selection" (arXiv 2511.16980).
    Differs: the weight follows its curve alone. The authors adapt it to the number of Gaussians that have
    become transparent, and in the first 1,000 steps they divide a logit's distance by 1 - o.
    """

    weight: float = 2e-4
    start: int = field(default=15_000, metadata=STEPS)
    stop: int = field(default=23_000, metadata=STEPS)
    target: float = -20.0  # logit
    every: int = 50  # steps between two steps in which the penalty is part of the loss

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.opacity_logit.every", self.every, 1)

    def active(self, step: int) -> bool:
        """Return whether the penalty is part of the loss at a step."""
        return super().active(step) and (step - self.start) % self.every == 0

    def penalty(self, render: Render, splats: Splats) -> Tensor:
        """Return (mean(logit) - target)^2."""
        logits = splats.opacity_logits
        return (logits.sum() / max(len(logits), 1) - self.target).square()
