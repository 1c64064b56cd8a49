"""The Gaussians of an image: rows of means, shapes and colours.

Notation: N Gaussians, D channels; lengths in px of the image, whose first pixel has its centre at +0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from splatexp.gaussians.covariance import PARAMETRIZATIONS, Covariance
from splatexp.gaussians.rows import Rows
from splatexp.settings.checks import check_choice

PARAMS = ("means", "shapes", "colors")
OPACITY = "opacity_logits"  # the extra parameter of rows that are composited
LAYER = "layer"  # carried per row: the layer of a file that it belongs to


class RenderParams(NamedTuple):
    """The rows as they are rendered, in the autograd graph."""

    means: Tensor  # [N,2] px
    shapes: Tensor  # [N,3] numbers of the parametrization
    colors: Tensor  # [N,D], of any sign
    weights: Tensor  # [N] at the means
    parametrization: str  # of the shapes


class Splats2D(Rows):
    """The 2D Gaussians of an image.

    Args:
        params: means, shapes and colors by name.
        parametrization: of the covariances, a name in PARAMETRIZATIONS.

    Attributes:
        quantizer: None, or a function that replaces the rows by what is rendered of them; it is not part of
            the state.
    """

    PARAM_NAMES = PARAMS

    means: Tensor  # [N,2] px
    shapes: Tensor  # [N,3]
    colors: Tensor  # [N,D], what a row adds to the background; of any sign

    def __init__(self, params: dict[str, Tensor], parametrization: str = "cholesky"):
        check_choice("parametrization", parametrization, PARAMETRIZATIONS)
        super().__init__(params)
        self.parametrization = parametrization
        self.carried[LAYER] = torch.zeros(len(self), dtype=torch.int32, device=self.means.device)
        self.quantizer: Callable[[Splats2D], RenderParams] | None = None

    @property
    def weights(self) -> Tensor:
        """Return the weights [N] at the means, in the autograd graph: 1, or a learned opacity."""
        if OPACITY in self.extra:
            return self.extra[OPACITY].sigmoid()
        return torch.ones(len(self), device=self.means.device)

    @property
    def covariance(self) -> Covariance:
        """Return the covariances [N], px^2, in the autograd graph."""
        return PARAMETRIZATIONS[self.parametrization].covariance(self.shapes)

    def drawn(self) -> RenderParams:
        """The rows as they are drawn: themselves, or what `quantizer` makes of them."""
        if self.quantizer is not None:
            return self.quantizer(self)
        return RenderParams(self.means, self.shapes, self.colors, self.weights, self.parametrization)

    @torch.no_grad()
    def sigmas(self) -> Tensor:
        """Return the standard deviations [N], px: the geometric mean over the two axes."""
        return self.covariance.det.clamp_min(0).pow(0.25)

    @torch.no_grad()
    def contribution(self) -> Tensor:
        """Return the squared norm of each Gaussian by itself [N], px^2, without the factor pi: |c|^2 w^2
        sqrt(det Sigma).
        """
        return self.colors.square().sum(1) * self.weights.square() * self.sigmas().square()

    @torch.no_grad()
    def new_params(self, means: Tensor, covariance: Covariance, colors: Tensor) -> dict[str, Tensor]:
        """Return parameters, by name, of new rows; a new opacity is 0.5."""
        made = {
            "means": means,
            "shapes": PARAMETRIZATIONS[self.parametrization].shapes(covariance),
            "colors": colors,
        }
        return made | {name: row.new_zeros(len(means), *row.shape[1:]) for name, row in self.extra.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as `Rows.state_dict`, with the parametrization's name as bytes."""
        return super().state_dict() | {
            "form": torch.tensor(list(self.parametrization.encode()), dtype=torch.uint8)
        }

    @classmethod
    def _construct(cls, params: dict[str, Tensor], state: dict[str, Tensor]) -> Splats2D:
        return cls(params, bytes(state["form"].tolist()).decode() if "form" in state else "cholesky")

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        count, channels = len(params["means"]), params["colors"].shape[-1]
        for name, tail in zip(PARAMS, ((2,), (3,), (channels,)), strict=True):
            if tuple(params[name].shape) != (count, *tail):
                raise ValueError(f"{name}: expected {[count, *tail]}, got {tuple(params[name].shape)}")
