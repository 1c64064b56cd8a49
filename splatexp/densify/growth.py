"""How many Gaussians there may be: curves of growth towards the cap."""

import math
from dataclasses import dataclass

from splatexp.settings.checks import check_choice, check_range

KINDS = ("none", "linear", "quadratic", "sqrt", "dash", "compound")


@dataclass
class Growth:
    """No more Gaussians after an event than a curve allows.

    S is their first number, B the cap, x in (0,1] the share of the time for growing that is over.

    kind:
        linear     S + (B - S) x
        quadratic  S + (B - S) (2x - x^2)   Source: Mallick et al. 2024, "Taming 3DGS", eq. 2
        sqrt       B sqrt(x)                Source: Deng et al. 2025, "Improved-GS"
        dash       S + (B - S) / r^(2 - x), r by how much the pictures are reduced, at most 20 % an event
                   Source: Chen et al. 2025, "DashGaussian", eq. 8
        compound   5 % more an event        Source: Kheradmand et al. 2024, "3DGS as MCMC"
        none       no limit but the cap
    """

    kind: str = "none"
    rate: float = 0.0  # share per event; 0: 5 % (compound), 20 % (dash)

    def __post_init__(self) -> None:
        check_choice("growth.kind", self.kind, KINDS)
        check_range("growth.rate", self.rate, 0)
        if self.rate and self.kind not in ("compound", "dash"):
            raise ValueError(
                f"growth.rate: expected 0 but with compound and dash, got {self.rate} with {self.kind}"
            )

    def limit(self, x: float, count: int, first: int, cap: int, factor: int) -> int | None:
        """How many there may be after an event that began with `count`; None: as many as the cap allows.

        Args:
            x: share of the time for growing that is over.
            factor: by which the pictures are reduced.
        """
        if self.kind == "none":
            return None
        if self.kind == "compound":
            return math.ceil(count * (1 + (self.rate or 0.05)))
        room = max(0, cap - first)
        if self.kind == "linear":
            return round(first + room * x)
        if self.kind == "quadratic":
            return round(first + room * (2 * x - x * x))
        if self.kind == "sqrt":
            return round(cap * math.sqrt(x))
        return min(round(first + room / factor ** (2 - x)), math.ceil(count * (1 + (self.rate or 0.2))))
