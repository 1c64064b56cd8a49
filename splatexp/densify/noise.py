"""Noise on the means that makes the optimizer explore: stochastic gradient Langevin dynamics (SGLD)."""

from dataclasses import dataclass, field

from splatexp.gaussians.splats import Overwrite, Splats
from splatexp.settings.checks import STEPS, check_range
from splatexp_kernels.noise import noise


@dataclass
class Noise:
    """Add noise to the means after every step, so that Gaussians of low opacity explore the scene.

    means += lr * means_lr * gate(o) * Sigma eta with eta ~ N(0, I), where means_lr is the learning rate of
    the means and gate(o) = sigmoid(-sharpness (o - threshold)) spares Gaussians that are already opaque.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 8-9, with lr = 5e5.
    """

    lr: float = 0.0  # multiple of the means' learning rate; 0: no noise
    sharpness: float = 100.0  # slope of the gate
    threshold: float = 0.005  # opacity at which the gate is half open
    start: int = field(default=0, metadata=STEPS)  # first step with noise
    stop: int = field(default=0, metadata=STEPS)  # first step without; 0: noise until the end

    def __post_init__(self) -> None:
        for name in ("lr", "sharpness", "start", "stop"):
            check_range(f"noise.{name}", getattr(self, name), 0)
        check_range("noise.threshold", self.threshold, 0, 1)

    def active(self, step: int) -> bool:
        """Return whether noise is added at a step."""
        return self.lr > 0 and self.start <= step and (step < self.stop or not self.stop)

    def plan(self, splats: Splats, step: int, seed: int, means_lr: float, backend: str) -> Overwrite:
        """Return the means plus the noise that belongs to (seed, step).

        Args:
            means_lr: learning rate of the means at this step, world units.
            backend: backend of the noise kernel.
        """
        means = splats.means.detach().clone()
        noise(
            means,
            splats.quats.detach(),
            splats.scales.detach(),
            splats.opacities.detach(),
            splats.uid,
            lr=self.lr * means_lr,
            sharpness=self.sharpness,
            threshold=self.threshold,
            seed=seed,
            step=step,
            backend=backend,
        )
        return Overwrite("means", means, reset_moments=False)
