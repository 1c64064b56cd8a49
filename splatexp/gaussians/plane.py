"""Gaussians of the picture plane: rows of means, shapes and colours.

Notation: N Gaussians, D channels; lengths in px of the picture, whose first pixel has its centre at +0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from splatexp.gaussians.covariance import FORMS, Covariance
from splatexp.gaussians.rows import Rows
from splatexp.settings.checks import check_choice

PARAMS = ("means", "shapes", "colors")
OPACITY = "opacity_logits"  # the extra parameter of rows that are composited
LAYER = "layer"  # carried: which layer of a file a row belongs to


class Drawn(NamedTuple):
    """Rows as they are drawn, in the graph."""

    means: Tensor  # [N,2] px
    shapes: Tensor  # [N,3] numbers of the rows' form
    colors: Tensor  # [N,D], of any sign
    weights: Tensor  # [N] at the means
    form: str  # of the shapes


class Plane(Rows):
    """The Gaussians of a picture.

    Args:
        params: means, shapes and colors by name.
        form: what the shapes are numbers of, a name in FORMS.

    Attributes:
        quantizer: None, or what makes of these rows what is drawn of them; it is no part of the state.
    """

    NAMES = PARAMS

    means: Tensor  # [N,2] px
    shapes: Tensor  # [N,3]
    colors: Tensor  # [N,D], what a row adds to the background; of any sign

    def __init__(self, params: dict[str, Tensor], form: str = "cholesky"):
        check_choice("form", form, FORMS)
        super().__init__(params)
        self.form = form
        self.carried[LAYER] = torch.zeros(len(self), dtype=torch.int32, device=self.means.device)
        self.quantizer: Callable[[Plane], Drawn] | None = None

    @property
    def weights(self) -> Tensor:
        """What the rows weigh at their means [N], in the graph: 1, or a learned opacity."""
        if OPACITY in self.extra:
            return self.extra[OPACITY].sigmoid()
        return torch.ones(len(self), device=self.means.device)

    @property
    def covariance(self) -> Covariance:
        """Covariances [N], px^2, in the graph."""
        return FORMS[self.form].covariance(self.shapes)

    def drawn(self) -> Drawn:
        """The rows as they are drawn: themselves, or what `quantizer` makes of them."""
        if self.quantizer is not None:
            return self.quantizer(self)
        return Drawn(self.means, self.shapes, self.colors, self.weights, self.form)

    @torch.no_grad()
    def sizes(self) -> Tensor:
        """Standard deviations [N], px: the geometric mean over the two axes."""
        return self.covariance.det.clamp_min(0).pow(0.25)

    @torch.no_grad()
    def strength(self) -> Tensor:
        """The squared norm of each row by itself [N], px: |c|^2 w^2 sqrt(det Sigma), but for pi."""
        return self.colors.square().sum(1) * self.weights.square() * self.sizes().square()

    @torch.no_grad()
    def like(self, means: Tensor, covariance: Covariance, colors: Tensor) -> dict[str, Tensor]:
        """Parameters, by name, of rows such as these; an opacity is that of a row that hides half."""
        made = {"means": means, "shapes": FORMS[self.form].shapes(covariance), "colors": colors}
        return made | {name: row.new_zeros(len(means), *row.shape[1:]) for name, row in self.extra.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """As `Rows` says; the form by its letters."""
        return super().state_dict() | {"form": torch.tensor(list(self.form.encode()), dtype=torch.uint8)}

    @classmethod
    def _begun(cls, params: dict[str, Tensor], state: dict[str, Tensor]) -> Plane:
        return cls(params, bytes(state["form"].tolist()).decode() if "form" in state else "cholesky")

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        count, channels = len(params["means"]), params["colors"].shape[-1]
        for name, tail in zip(PARAMS, ((2,), (3,), (channels,)), strict=True):
            if tuple(params[name].shape) != (count, *tail):
                raise ValueError(f"{name}: expected {[count, *tail]}, got {tuple(params[name].shape)}")
