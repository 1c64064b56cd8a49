"""Colours by least squares: with means and shapes fixed, an image is linear in the colours.

Notation: N Gaussians, an image [H,W,D]; A is the map from colours [N,D] to the image on black; y is the
    target image without its background.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.settings.checks import check_range
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.tiles import tiles

MIN_AREA = 0.25  # px^2: the area over pi that a Gaussian narrower than a pixel counts for


class BlendOperator:
    """The linear map A, and its transpose, of Gaussians whose geometry is fixed.

    Args:
        means: [N,2] px.
        conics: [N,3] px^-2, and radii [N,2] px: as `conics` of gaussians/covariance.py returns them.
        weights: [N] at the means.
        size: (width, height) px.
        mode, top_k, backend: as in `blend2d`. With alpha, rows are composited in their order.
        tile_size: 8, 16 or 32.
    """

    def __init__(
        self,
        means: Tensor,
        conics: Tensor,
        radii: Tensor,
        weights: Tensor,
        size: tuple[int, int],
        *,
        mode: str = "sum",
        top_k: int = 0,
        tile_size: int = 16,
        backend: str = "cpu",
    ):
        geometry = (means, conics, radii, weights)
        self._means, self._conics, self._radii, self._weights = (each.detach()[None] for each in geometry)
        self.size, self._knobs = size, {"mode": mode, "top_k": top_k, "backend": backend}
        depths = torch.arange(len(means), device=means.device, dtype=means.dtype)[None]
        self._tiles = tiles(self._means, self._radii, depths, *size, tile_size=tile_size, backend=backend)
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}  # by channels: colours of 0 and their image

    def __len__(self) -> int:
        return self._means.shape[1]

    def _blended(self, colors: Tensor) -> Tensor:
        rows = self._means, self._conics, colors[None], self._weights
        return blend2d(*rows, self._tiles, *self.size, **self._knobs)[0][0]

    @torch.no_grad()
    def draw(self, colors: Tensor) -> Tensor:
        """Return A colors: colours [N,D] rendered as an image [H,W,D] on black."""
        return self._blended(colors)

    def transpose(self, image: Tensor) -> Tensor:
        """Return A^T image: what of an image [H,W,D] lies under each Gaussian, [N,D]."""
        channels = image.shape[-1]
        if channels not in self._drawn:  # rendered once, since the gradient does not depend on the colours
            with torch.enable_grad():
                colors = self._means.new_zeros(len(self), channels, requires_grad=True)
                self._drawn[channels] = colors, self._blended(colors)
        colors, drawn = self._drawn[channels]
        return torch.autograd.grad(drawn, colors, image, retain_graph=True)[0]

    @property
    def column_norms(self) -> Tensor:
        """Return approximate norms of the columns of A [N]: exact for a wide Gaussian that is summed."""
        a, b, c = self._conics[0].unbind(-1)
        area = (a * c - b * b).clamp_min(1e-12).rsqrt()
        return (torch.pi * area.clamp_min(MIN_AREA)).sqrt() * self._weights[0].clamp_min(1e-6)

    def initial_colors(self, image: Tensor) -> Tensor:
        """Return colours [N,D] to start from: the weighted mean of an image under each Gaussian over that of
        all weights.

        They are exact where the image is flat; `solve_colors` is exact everywhere, and more expensive.
        """
        ones = self._means.new_ones(len(self), 1)
        crowd = self.transpose(self.draw(ones))
        return self.transpose(image) / crowd.clamp_min(1e-6)


@dataclass
class Solution:
    """The result of a solve."""

    colors: Tensor  # [N,D]
    steps: int  # number of steps that were taken
    error: float  # mean square of A colors - y over pixels and channels


def solve_colors(
    blend: BlendOperator,
    image: Tensor,
    colors: Tensor | None = None,
    *,
    steps: int = 30,
    ridge: float = 1e-4,
    tolerance: float = 1e-4,
) -> Solution:
    """Minimize |A c - y|^2 + ridge |z - z0|^2 by conjugate gradients on the normal equations.

    z are the colours times the norms of their columns. The equations are solved in z, whose entries have
    similar sizes, and `ridge` weighs by how much of the image a Gaussian makes alone. All channels share the
    steps, each with step lengths of its own.

    Args:
        blend: A.
        image: y [H,W,D].
        colors: [N,D] to start from and, with `ridge`, to stay near to; None: 0.
        steps: at most; each step renders once and gathers once.
        tolerance: stop where the gradient in z has fallen to this fraction of that of A^T y.

    Raises: ValueError for numbers out of range.
    Source: Hestenes and Stiefel 1952, section 10; Bjorck 1996, algorithm 7.4.1 (CGLS).
    """
    check_range("steps", steps, 0)
    check_range("ridge", ridge, 0)
    check_range("tolerance", tolerance, 0)
    norms = blend.column_norms[:, None]
    z = torch.zeros_like(norms).expand(-1, image.shape[-1]).clone() if colors is None else colors * norms
    z0 = z.clone()
    left = image - blend.draw(z / norms)
    down = blend.transpose(left) / norms
    goal = tolerance * float(((blend.transpose(image) / norms).square().sum()).sqrt())
    way, square, taken = down, down.square().sum(0), 0
    while taken < steps and float(square.sum().sqrt()) > goal:
        seen = blend.draw(way / norms)
        curved = seen.square().sum((0, 1)) + ridge * way.square().sum(0)
        length = torch.where(curved > 0, square / curved.clamp_min(1e-30), 0.0)
        z, left = z + length * way, left - length * seen
        down = blend.transpose(left) / norms - ridge * (z - z0)
        before, square = square, down.square().sum(0)
        way = down + torch.where(before > 0, square / before.clamp_min(1e-30), 0.0) * way
        taken += 1
    return Solution(z / norms, taken, float(left.square().mean()))
