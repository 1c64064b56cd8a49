"""What changes over a run: SH degree, resolution, learning rates.

Fields in steps carry `STEPS` as metadata, so that a preset made for 30,000 steps can be run for 3,000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from splatexp.schedules.curve import SMOOTH, Curve, check_turns
from splatexp.settings.checks import STEPS, check_range

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import View


@dataclass
class Pace:
    """Resolution and learning rates over a run, of rows of any kind.

    The curves are factors of the learning rates that the optimizer states.
    """

    NAMES: ClassVar[tuple[str, ...]] = ()  # parameters besides the means; each has its curve
    CROWDED: ClassVar[tuple[str, ...]] = ("means",)  # those that `count_power` slows

    factors: list[int] = field(default_factory=lambda: [1])  # pictures are reduced by these, in turn
    until: list[int] = field(default_factory=list, metadata=STEPS)  # where each but the last factor ends
    least_factor: int = 1  # by at least this throughout
    means: Curve = field(default_factory=lambda: Curve("exponential", end=0.01))
    others: Curve = field(default_factory=Curve)  # of all but the means, times the curve of each
    count_power: float = (
        0.0  # what is measured in lengths learns (rows at the start / rows)^this slower; 0: off
    )

    def __post_init__(self) -> None:
        check_range("schedule.count_power", self.count_power, 0)
        check_range("schedule.least_factor", self.least_factor, 1)
        check_turns(("schedule.factors", "schedule.until"), self.factors, self.until)

    def sh_degree(self, step: int, most: int) -> int:
        """The SH degree at a step, at most that of the model."""
        return most

    def fitted(self, views: Sequence[View]) -> Pace:
        """The schedule for training pictures: this one, unless it has to look at them first."""
        return self

    def factor(self, step: int) -> int:
        """By how much the pictures are reduced at a step."""
        return max(self.least_factor, self.factors[sum(step >= end for end in self.until)])

    def rates(self, step: int, steps: int, count: int, initial: int, most: int = 4) -> dict[str, float]:
        """Factors of the learning rates at a step, by parameter.

        Args:
            count, initial: rows now and at the start; `count_power` reads them. The distance between
                Gaussians on a surface falls as count^(-1/2), and steps in space may fall with it.
            most: the SH degree of the model.
        """
        rest = self.others(step, steps)
        rates = {"means": self.means(step, steps)}
        rates |= {name: rest * getattr(self, name)(step, steps) for name in self.NAMES}
        crowding = (initial / max(count, 1)) ** self.count_power if self.count_power else 1.0
        return {name: rate * (crowding if name in self.CROWDED else 1.0) for name, rate in rates.items()}


@dataclass
class Schedule(Pace):
    """The defaults are those of 3DGS (Kerbl et al. 2023, section 7.1), at full resolution throughout.

    The curves are factors of the learning rates that the optimizer states.
    """

    NAMES = ("quats", "log_scales", "opacity_logits", "sh0", "shN")
    CROWDED = ("means", "log_scales")

    sh_start: int = field(default=0, metadata=STEPS)  # steps with degree 0 before the ramp
    sh_every: int = field(default=1000, metadata=STEPS)  # then steps per degree; 0: all at once
    sh_drop: float = 1.0  # factor of all learning rates where a new degree comes in; 1: off
    sh_drop_steps: int = field(default=200, metadata=STEPS)  # then it rises to 1 over so many steps
    quats: Curve = field(default_factory=Curve)
    log_scales: Curve = field(default_factory=Curve)
    opacity_logits: Curve = field(default_factory=Curve)
    sh0: Curve = field(default_factory=Curve)
    shN: Curve = field(default_factory=Curve)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sh_start", "sh_every", "sh_drop"):
            check_range(f"schedule.{name}", getattr(self, name), 0)
        check_range("schedule.sh_drop_steps", self.sh_drop_steps, 1)

    def sh_degree(self, step: int, most: int) -> int:
        """The SH degree at a step, at most that of the model."""
        if step < self.sh_start:
            return 0
        return min(most, (step - self.sh_start) // self.sh_every) if self.sh_every else most

    def rates(self, step: int, steps: int, count: int, initial: int, most: int = 4) -> dict[str, float]:
        """As `Pace` says; `sh_drop` reads `most`."""
        drop = self._drop(step, most)
        return {name: rate * drop for name, rate in super().rates(step, steps, count, initial, most).items()}

    def _drop(self, step: int, most: int) -> float:
        """The factor while the last degree that came in is new."""
        degree = self.sh_degree(step, most)
        if self.sh_drop == 1 or not degree:
            return 1.0
        came = self.sh_start + degree * self.sh_every
        if not came:  # there from the first step: nothing is new
            return 1.0
        return self.sh_drop + (1 - self.sh_drop) * min(1.0, (step - came) / self.sh_drop_steps)


@dataclass
class Dash(Schedule):
    """Resolution after the pictures' spectra: coarse for as long as little of what they hold is finer.

    E(r) is the share of a picture's spectrum (sum of magnitudes) that survives when it is reduced by r. From
    r_max at the start, r is reached after `reduce_until` log(E(r) / E(r_max)) / log(1 / E(r_max)) steps;
    pictures are reduced by the whole number below. The means' learning rate starts to fall with full
    resolution, unless its curve says where. `factors` and `until` follow and are not set.

    Source: Chen et al. 2025, "DashGaussian".
    Differs: E is that of the mean of the channels, over 32 pictures at most; whole reductions have their
    exact steps instead of 32 levels with a line between them, and come with any step.
    """

    reduce_until: int = field(default=15_000, metadata=STEPS)
    reduce_max: int = 8  # r_max is at most this
    reduce_share: float = 0.25  # and E(r_max) at least this

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factors != [1]:
            raise ValueError(f"schedule.factors: expected [1], for they follow here, got {self.factors}")
        check_range("schedule.reduce_until", self.reduce_until, 1)
        check_range("schedule.reduce_max", self.reduce_max, 1)
        check_range("schedule.reduce_share", self.reduce_share, 1e-3, 1)

    def factor(self, step: int) -> int:
        """Raises: RuntimeError, for the pictures tell."""
        raise RuntimeError("factor: expected a schedule fitted to pictures; call fitted(views)")

    def fitted(self, views: Sequence[View]) -> Schedule:
        """The schedule for training pictures, with its factors and steps."""
        some = views[:: math.ceil(len(views) / 32)]
        shares = [self._shares(view.image) for view in some]
        kept = [sum(column) / len(column) for column in zip(*shares, strict=True)]  # E(1), E(2), ...
        least = max(kept[-1], self.reduce_share)
        factors = [factor for factor, share in enumerate(kept, 1) if share >= least][::-1]
        length = math.log(1 / least) or 1.0
        until = [round(self.reduce_until * math.log(kept[r - 1] / least) / length) for r in factors[:-1]]
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Schedule)}
        if until and self.means.kind in SMOOTH and not (self.means.start or self.means.stop):
            plain["means"] = replace(self.means, start=until[-1])
        plain |= {"factors": factors, "until": until}
        return Schedule(**plain)

    def _shares(self, image: Tensor) -> list[float]:
        """E(r) of a picture [H,W,3] for r = 1 to `reduce_max`."""
        import torch

        spectrum = torch.fft.fft2(image.float().mean(2)).abs()
        rows, columns = (torch.fft.fftfreq(size).abs() for size in spectrum.shape)  # cycles per pixel
        inside = [(rows <= 0.5 / r, columns <= 0.5 / r) for r in range(1, self.reduce_max + 1)]
        sums = [float(y.float() @ spectrum @ x.float()) for y, x in inside]
        return [value / sums[0] if sums[0] else 1.0 for value in sums]
