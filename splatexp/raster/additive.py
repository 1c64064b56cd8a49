"""Additive blending, in which no Gaussian occludes another, for comparison with compositing."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.raster.kernels import KernelRasterizer
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import check_range
from splatexp_kernels.blend import Attribution
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.tiles import Tiles


@dataclass
class Additive(KernelRasterizer):
    """A rasterizer whose pixels are sums of opacity * falloff * colour, times `gain`, plus the background.

    Since it only adds light, it needs a black background. `alpha` is the sum of the weights, at most 1.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", render_fast.
    Differs: Gaussians are anisotropic, their boxes are exact, and weights below 1/255 are cut off.
    """

    gain: float = 1.0  # factor of all colours; 0.3 in the first version of the source

    backend: ClassVar[str] = "cpu"
    attribution_fields: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("raster.gain", self.gain, 1e-6)
        if self.max_splats_per_pixel:
            raise ValueError(
                "raster.max_splats_per_pixel: expected 0 with raster=additive, which has no order, "
                f"got {self.max_splats_per_pixel}"
            )

    def composite(
        self,
        means2d: Tensor,
        conics: Tensor,
        channels: Tensor,
        opacities: Tensor,
        binned: Tiles,
        width: int,
        height: int,
        background: Tensor | None,
        absgrad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sum the projected Gaussians; see `KernelRasterizer.composite`.

        Raises: ValueError where `absgrad` is not None.
        """
        if absgrad is not None:
            raise ValueError("raster: expected one that computes absgrad, which densify reads, got additive")
        gain = torch.ones_like(channels[0, 0])
        gain[:3] = self.gain
        image, total = blend2d(
            means2d,
            conics,
            channels * gain,
            opacities.contiguous(),
            binned,
            width,
            height,
            mode="sum",
            background=background,
            backend=self.backend,
        )
        if channels.shape[-1] == 3:
            return image, total.clamp_max(1)
        mean = image[..., 3:] / total.clamp_min(1e-8)  # the depth, which is divided by `alpha` later
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
        """Raise NotImplementedError, since attribution is defined for compositing."""
        raise NotImplementedError("raster: expected one with attribution, got additive")
