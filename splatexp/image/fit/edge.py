"""Gaussians along the edges of a picture: each pays for what the picture changes by under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.plane import Plane
from splatexp.image.fit import density
from splatexp.losses.regularizers import Regularizer
from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.raster.rasterizer import Render


@dataclass
class Edge(Regularizer):
    """Mean of tr(J Sigma): to first order the square of what the picture changes by inside a Gaussian.

    J is the structure tensor of the picture where the Gaussian lies: the mean of g g^T over a blur, summed
    over the channels, g their gradients. Across an edge a Gaussian pays for its width, along it for nothing.

    Source: the structure tensor: Bigun and Granlund 1987.
    """

    domain: ClassVar[str] = "image"
    _tensor: ClassVar[Tensor | None] = None  # of the picture, once `check` has seen it

    weight: float = 1e-3
    blur: float = 1.5  # px, standard deviation
    most: float = 1.0  # a Gaussian pays for at most this much, so that wide ones in flat places are let be

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.edge.blur", self.blur, 0.1)
        check_range("regularizer.edge.most", self.most, 1e-6)

    def check(self, scene: Scene) -> None:
        """Look at the picture.  Raises: ValueError for a scene that is none."""
        if len(scene.train) != 1:
            raise ValueError(
                f"regularizer.edge: expected one picture, got {len(scene.train)} of {scene.name}"
            )
        self._tensor = structure(scene.train[0].values, self.blur)

    def penalty(self, render: Render, splats: Plane) -> Tensor:  # type: ignore[override]
        """Mean of min(tr(J Sigma), most)."""
        if self._tensor is None:
            raise RuntimeError("regularizer.edge: expected check(scene) before the first step")
        self._tensor = self._tensor.to(splats.means.device)
        xx, xy, yy = density.at(self._tensor, splats.means.detach()).unbind(-1)
        cov = splats.covariance
        change = xx * cov.xx + 2 * xy * cov.xy + yy * cov.yy
        return change.clamp_max(self.most).sum() / max(len(splats), 1)


@torch.no_grad()
def structure(picture: Tensor, blur: float) -> Tensor:
    """The structure tensor [H,W,3] (xx, xy, yy) of a picture [H,W,D], px^-2."""
    x, y = density.slopes(picture)
    parts = [(a * b).sum(-1) for a, b in ((x, x), (x, y), (y, y))]
    return torch.stack([density.blurred(part, blur) for part in parts], -1)
