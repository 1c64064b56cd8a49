"""Growth curves: how many Gaussians there may be on the way to the cap."""

import math
from dataclasses import dataclass

from splatexp.settings.checks import check_choice, check_range

KINDS = ("none", "linear", "quadratic", "sqrt", "dash", "compound")


@dataclass
class Growth:
    """Limit the number of Gaussians after each event by a curve that rises to `max_gaussians`.

    In the formulas S is the number of Gaussians at the start, B the cap `max_gaussians`, and x in (0,1] the
    fraction of the growing phase that has passed.

    kind:
        linear     S + (B - S) x
        quadratic  S + (B - S) (2x - x^2)   Source: Mallick et al. 2024, "Taming 3DGS", eq. 2
        sqrt       B sqrt(x)                Source: Deng et al. 2025, "Improved-GS"
        dash       S + (B - S) / r^(2 - x) where the images are reduced by the factor r, and at most
                   `fraction` (20 %) more per event   Source: Chen et al. 2025, "DashGaussian", eq. 8
        compound   `fraction` (5 %) more per event    Source: Kheradmand et al. 2024, "3DGS as MCMC"
        none       the cap is the only limit
    """

    kind: str = "none"
    fraction: float = 0.0  # growth per event as a fraction of the rows; 0: 0.05 (compound), 0.2 (dash)

    def __post_init__(self) -> None:
        check_choice("growth.kind", self.kind, KINDS)
        check_range("growth.fraction", self.fraction, 0)
        if self.fraction and self.kind not in ("compound", "dash"):
            raise ValueError(
                f"growth.fraction: expected 0 with growth.kind={self.kind} (compound and dash read it), "
                f"got {self.fraction}"
            )

    def limit(self, x: float, count: int, first: int, cap: int, downscale: int) -> int | None:
        """Return how many rows there may be after an event, or None where only the cap limits them.

        Args:
            x: fraction of the growing phase that has passed, in (0,1].
            count: rows at the beginning of the event.
            first: rows at the start of the run.
            cap: `max_gaussians`.
            downscale: factor by which the training images are reduced.
        """
        if self.kind == "none":
            return None
        if self.kind == "compound":
            return math.ceil(count * (1 + (self.fraction or 0.05)))
        room = max(0, cap - first)
        if self.kind == "linear":
            return round(first + room * x)
        if self.kind == "quadratic":
            return round(first + room * (2 * x - x * x))
        if self.kind == "sqrt":
            return round(cap * math.sqrt(x))
        by_resolution = round(first + room / downscale ** (2 - x))
        return min(by_resolution, math.ceil(count * (1 + (self.fraction or 0.2))))
