"""Schedules: the SH degree, the resolution and the learning rates over the steps of a run.

Fields that are counted in steps carry `STEPS` as metadata, so that a preset that is written for 30,000 steps
can be run for 3,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from splatexp.schedules.curve import DECAYS, Curve, check_phases
from splatexp.settings.checks import STEPS, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import View


@dataclass
class LearningRateSchedule:
    """The resolution of the training images and the learning rates over a run, for rows of any kind.

    The curves are factors of the learning rates of the optimizer.
    """

    PARAM_NAMES: ClassVar[tuple[str, ...]] = ()  # parameters besides the means, each a field with its curve
    # the parameters, measured in lengths, whose learning rates `lr_count_power` reduces
    SLOWED_BY_COUNT: ClassVar[tuple[str, ...]] = ("means",)

    # factors by which the training images are downscaled, one for each phase of the run
    downscale_factors: list[int] = field(default_factory=lambda: [1])
    # step at which each phase but the last ends
    downscale_until: list[int] = field(default_factory=list, metadata=STEPS)
    min_downscale: int = 1  # smallest factor throughout the run
    means: Curve = field(default_factory=lambda: Curve("exponential", end=0.01))
    others: Curve = field(default_factory=Curve)  # of all but the means, multiplied by the curve of each
    # learning rates of lengths are multiplied by (rows at the start / rows now)^lr_count_power; 0: off
    lr_count_power: float = 0.0

    def __post_init__(self) -> None:
        check_range("schedule.lr_count_power", self.lr_count_power, 0)
        check_range("schedule.min_downscale", self.min_downscale, 1)
        check_phases(
            ("schedule.downscale_factors", "schedule.downscale_until"),
            self.downscale_factors,
            self.downscale_until,
        )

    def sh_degree(self, step: int, max_degree: int) -> int:
        """Return the SH degree at a step.

        Args:
            max_degree: the SH degree of the model.
        """
        return max_degree

    def fitted(self, views: Sequence[View]) -> LearningRateSchedule:
        """Return the schedule for these training views: itself, unless it depends on their images."""
        return self

    def downscale(self, step: int) -> int:
        """Return the factor by which the training images are downscaled at a step."""
        phase = sum(step >= end for end in self.downscale_until)
        return max(self.min_downscale, self.downscale_factors[phase])

    def lr_factors(
        self, step: int, steps: int, count: int, initial: int, max_degree: int = 4
    ) -> dict[str, float]:
        """Return the factors of the learning rates at a step, by parameter.

        Args:
            count, initial: the numbers of rows now and at the start, for `lr_count_power`. The distance
                between Gaussians on a surface falls as count^(-1/2), and their steps may fall with it.
            max_degree: the SH degree of the model.
        """
        others = self.others(step, steps)
        factors = {"means": self.means(step, steps)}
        factors |= {name: others * getattr(self, name)(step, steps) for name in self.PARAM_NAMES}
        crowding = (initial / max(count, 1)) ** self.lr_count_power if self.lr_count_power else 1.0
        return {
            name: factor * (crowding if name in self.SLOWED_BY_COUNT else 1.0)
            for name, factor in factors.items()
        }


@dataclass
class Schedule(LearningRateSchedule):
    """The schedule of a scene: resolution, learning rates, and the degree of the spherical harmonics (SH).

    The defaults are those of 3DGS (Kerbl et al. 2023, section 7.1), at full resolution throughout. The curves
    are factors of the learning rates of the optimizer.
    """

    PARAM_NAMES = ("quats", "log_scales", "opacity_logits", "sh0", "shN")
    SLOWED_BY_COUNT = ("means", "log_scales")

    sh_degree_start: int = field(default=0, metadata=STEPS)  # step until which the degree is 0
    # steps from each degree to the next; 0: all degrees at once
    sh_degree_interval: int = field(default=1000, metadata=STEPS)
    sh_warmup_from: float = 1.0  # factor of all learning rates when a degree is added; 1: off
    sh_warmup_steps: int = field(default=200, metadata=STEPS)  # steps over which the factor then returns to 1
    quats: Curve = field(default_factory=Curve)
    log_scales: Curve = field(default_factory=Curve)
    opacity_logits: Curve = field(default_factory=Curve)
    sh0: Curve = field(default_factory=Curve)
    shN: Curve = field(default_factory=Curve)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sh_degree_start", "sh_degree_interval", "sh_warmup_from"):
            check_range(f"schedule.{name}", getattr(self, name), 0)
        check_range("schedule.sh_warmup_steps", self.sh_warmup_steps, 1)

    def sh_degree(self, step: int, max_degree: int) -> int:
        """Return the SH degree at a step.

        Args:
            max_degree: the SH degree of the model.
        """
        if step < self.sh_degree_start:
            return 0
        if not self.sh_degree_interval:
            return max_degree
        return min(max_degree, (step - self.sh_degree_start) // self.sh_degree_interval)

    def lr_factors(
        self, step: int, steps: int, count: int, initial: int, max_degree: int = 4
    ) -> dict[str, float]:
        """Return the factors of the learning rates at a step; see `LearningRateSchedule.lr_factors`."""
        warmup = self._sh_warmup(step, max_degree)
        return {
            name: factor * warmup
            for name, factor in super().lr_factors(step, steps, count, initial, max_degree).items()
        }

    def _sh_warmup(self, step: int, max_degree: int) -> float:
        """Return the factor of all learning rates that follows from the degree that was added last."""
        degree = self.sh_degree(step, max_degree)
        if self.sh_warmup_from == 1 or not degree:
            return 1.0
        added = self.sh_degree_start + degree * self.sh_degree_interval
        if not added:  # the degree was there from the first step
            return 1.0
        progress = min(1.0, (step - added) / self.sh_warmup_steps)
        return self.sh_warmup_from + (1 - self.sh_warmup_from) * progress


@dataclass
class Dash(Schedule):
    """A schedule whose resolution follows from the spectra of the training images.

    E(r) is the fraction of an image's spectrum (the sum of its magnitudes) that remains when the image is
    downscaled by r. Training starts with the largest factor r_max; the factor r is reached after
    `full_resolution_at` * log(E(r) / E(r_max)) / log(1 / E(r_max)) steps, and images are downscaled by the
    whole number below it. The learning rate of the means starts to fall at full resolution, unless its curve
    sets `start` or `stop`. `downscale_factors` and `downscale_until` are computed and cannot be set.

    Source: Chen et al. 2025, "DashGaussian".
    Differs: E is computed from the mean of the channels of at most 32 images. Every whole factor has its
    exact step, where the authors interpolate between 32 levels and change the resolution at densification.
    """

    full_resolution_at: int = field(
        default=15_000, metadata=STEPS
    )  # step from which images are not downscaled
    max_downscale: int = 8  # largest r_max
    min_spectrum_fraction: float = 0.25  # smallest E(r_max)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.downscale_factors != [1]:
            raise ValueError(
                "schedule.downscale_factors: expected [1], since schedule=dash computes them, "
                f"got {self.downscale_factors}"
            )
        check_range("schedule.full_resolution_at", self.full_resolution_at, 1)
        check_range("schedule.max_downscale", self.max_downscale, 1)
        check_range("schedule.min_spectrum_fraction", self.min_spectrum_fraction, 1e-3, 1)

    def downscale(self, step: int) -> int:
        """Raise RuntimeError, since the factors are not known before `fitted`."""
        raise RuntimeError(
            "schedule: expected one that is fitted to the training views, got Dash; call fitted(views)"
        )

    def fitted(self, views: Sequence[View]) -> Schedule:
        """Return the schedule for these training views, with its factors and their steps."""
        sample = views[:: math.ceil(len(views) / 32)]
        by_view = [self._spectrum_fractions(view.image) for view in sample]
        fractions = [sum(column) / len(column) for column in zip(*by_view, strict=True)]  # E(1), E(2), ...
        smallest = max(fractions[-1], self.min_spectrum_fraction)
        factors = [factor for factor, fraction in enumerate(fractions, 1) if fraction >= smallest][::-1]
        length = math.log(1 / smallest) or 1.0
        until = [
            round(self.full_resolution_at * math.log(fractions[r - 1] / smallest) / length)
            for r in factors[:-1]
        ]
        settings: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Schedule)}
        if until and self.means.kind in DECAYS and not (self.means.start or self.means.stop):
            settings["means"] = replace(self.means, start=until[-1])
        settings |= {"downscale_factors": factors, "downscale_until": until}
        return Schedule(**settings)

    def _spectrum_fractions(self, image: Tensor) -> list[float]:
        """Return E(r) of an image [H,W,3] for r = 1 to `max_downscale`."""
        import torch

        spectrum = torch.fft.fft2(image.float().mean(2)).abs()
        rows, columns = (torch.fft.fftfreq(size).abs() for size in spectrum.shape)  # cycles per pixel
        inside = [(rows <= 0.5 / r, columns <= 0.5 / r) for r in range(1, self.max_downscale + 1)]
        sums = [float(y.float() @ spectrum @ x.float()) for y, x in inside]
        return [value / sums[0] if sums[0] else 1.0 for value in sums]
