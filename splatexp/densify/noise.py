"""Noise on the means, which makes the optimizer explore: stochastic gradient Langevin dynamics."""

from dataclasses import dataclass, field

from splatexp.gaussians.splats import Overwrite, Splats
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.noise import noise


@dataclass
class Noise:
    """After every step means += rate * lr * gate(o) * Sigma eta, eta ~ N(0, I), so that the faint wander.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 8-9 (rate 5e5).
    """

    rate: float = 0.0  # times the means' learning rate; 0: off
    sharpness: float = 100.0  # of the gate, sigmoid(-sharpness (o - threshold))
    threshold: float = 0.005
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: to the end

    def __post_init__(self) -> None:
        for name in ("rate", "sharpness", "start", "stop"):
            check_range(f"noise.{name}", getattr(self, name), 0)
        check_range("noise.threshold", self.threshold, 0, 1)

    def active(self, step: int) -> bool:
        """Whether there is any at a step."""
        return self.rate > 0 and self.start <= step and (step < self.stop or not self.stop)

    def plan(self, splats: Splats, step: int, seed: int, rate: float, backend: str) -> Overwrite:
        """The means with the noise of (seed, step); `rate` is their learning rate, world units."""
        means = splats.means.detach().clone()
        noise(
            means, splats.quats.detach(), splats.scales.detach(), splats.opacities.detach(), splats.uid,
            rate=self.rate * rate, sharpness=self.sharpness, threshold=self.threshold,
            seed=seed, step=step, backend=backend,
        )  # fmt: skip
        return Overwrite("means", means, restart=False)
