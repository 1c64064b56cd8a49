"""Plain sums instead of compositing: nothing hides anything. For comparison."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.raster.kernels import Kernels
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import check_range
from splatexp_kernels.blend import Attribution
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.tiles import Tiles


@dataclass
class Additive(Kernels):
    """A pixel is the sum of opacity * falloff * colour over all Gaussians, times `gain`, and the background.

    It adds light, so it goes with a black background. `alpha` is the sum of the weights, at most 1.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", render_fast. Differs: anisotropic, exact
    boxes, weights below 1/255 are cut.
    """

    gain: float = 1.0  # its first version has 0.3

    backend: ClassVar[str] = "cpu"
    offers: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("raster.gain", self.gain, 1e-6)
        if self.max_splats_per_pixel:
            got = f"got {self.max_splats_per_pixel}"
            raise ValueError(f"raster.max_splats_per_pixel: expected 0, for a sum has no first ones, {got}")

    def blended(
        self, means2d: Tensor, conics: Tensor, channels: Tensor, opacities: Tensor, binned: Tiles, width: int,
        height: int, behind: Tensor | None, absgrad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `Kernels` says.  Raises: ValueError where `absgrad` is wanted."""
        if absgrad is not None:
            raise ValueError("raster: expected one other than additive where density control reads absgrad")
        gain = torch.ones_like(channels[0, 0])
        gain[:3] = self.gain
        image, total = blend2d(
            means2d, conics, channels * gain, opacities.contiguous(), binned, width, height, mode="sum",
            background=behind, backend=self.backend,
        )  # fmt: skip
        if channels.shape[-1] == 3:
            return image, total.clamp_max(1)
        mean = image[..., 3:] / total.clamp_min(1e-8)  # depth: `alpha` divides it again
        return torch.cat([image[..., :3], mean * total.clamp(1e-8, 1)], -1), total.clamp_max(1)

    def attribute(
        self,
        render: Render,
        maps: Tensor,
        threshold: float = 0.0,
        target: Tensor | None = None,
        *,
        want: Collection[str] | None = None,
    ) -> Attribution:
        """Raises: NotImplementedError: shares in a pixel are those of compositing."""
        raise NotImplementedError("raster: additive has no attribution")
