"""A regularizer that keeps Gaussians narrow across the edges of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.splats2d import Splats2D
from splatexp.image.fit import density
from splatexp.losses.regularizers import Regularizer
from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.raster.rasterizer import Render


@dataclass
class Edge(Regularizer):
    """Mean of tr(J Sigma): to first order the squared change of the image inside a Gaussian.

    J is the structure tensor of the image at the Gaussian's mean: the blurred mean of g g^T, summed over the
    channels, where g are their gradients. Across an edge a Gaussian pays for its width, along it nothing.

    Source: the structure tensor: Bigun and Granlund 1987.
    """

    domain: ClassVar[str] = "image"
    _tensor: ClassVar[Tensor | None] = None  # of the image, once `check` has run

    weight: float = 1e-3  # of the penalty in the loss
    blur: float = 1.5  # px, standard deviation of the blur of the structure tensor
    max_penalty: float = 1.0  # of one Gaussian, so that wide ones in flat places are not affected

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("regularizer.edge.blur", self.blur, 0.1)
        check_range("regularizer.edge.max_penalty", self.max_penalty, 1e-6)

    def check(self, scene: Scene) -> None:
        """Compute the structure tensor of the image.

        Raises: ValueError for a scene that is not a single image.
        """
        if len(scene.train) != 1:
            raise ValueError(f"regularizer.edge: expected one image, got {len(scene.train)} of {scene.name}")
        self._tensor = structure_tensor(scene.train[0].float_image, self.blur)

    def penalty(self, render: Render, splats: Splats2D) -> Tensor:  # type: ignore[override]
        """Return the mean of min(tr(J Sigma), max_penalty)."""
        if self._tensor is None:
            raise RuntimeError("regularizer.edge: expected check(scene) before the first step")
        self._tensor = self._tensor.to(splats.means.device)
        xx, xy, yy = density.pixels_at(self._tensor, splats.means.detach()).unbind(-1)
        cov = splats.covariance
        change = xx * cov.xx + 2 * xy * cov.xy + yy * cov.yy
        return change.clamp_max(self.max_penalty).sum() / max(len(splats), 1)


@torch.no_grad()
def structure_tensor(image: Tensor, blur: float) -> Tensor:
    """Return the structure tensor [H,W,3] (xx, xy, yy) of an image [H,W,D], px^-2."""
    x, y = density.gradients(image)
    parts = [(a * b).sum(-1) for a, b in ((x, x), (x, y), (y, y))]
    return torch.stack([density.gaussian_blur(part, blur) for part in parts], -1)
