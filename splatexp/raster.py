"""From Gaussians to pictures: activations, projection, colours, tiles, blending.

Notation: C cameras, N Gaussians, [C,H,W,3] pictures before any clamp.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.cameras import Camera
from splatexp.choices import check_range
from splatexp.splats import Splats
from splatexp_kernels.blend import Attribution, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import Tiles, tiles


@dataclass
class Render:
    """Pictures, and what the losses and density control want to know of their making."""

    image: Tensor  # [C,H,W,3]
    alpha: Tensor  # [C,H,W,1]
    depth: Tensor | None  # [C,H,W,1] expected camera z, world units; 0 where nothing is
    means2d: Tensor  # [C,N,2] px; keeps its gradient
    conics: Tensor  # [C,N,3] px^-2
    radii: Tensor  # [C,N,2] px
    visible: Tensor  # [C,N] bool, not culled
    scales: Tensor  # [N,3] activated, in the graph
    opacities: Tensor  # [N] activated, in the graph
    blended: Tensor  # [C,N] opacities as they were blended, compensated where prefiltered
    absgrad: Tensor | None  # [C,N,2] px^-1, filled by backward
    tiles: Tiles

    @property
    def width(self) -> int:
        """px."""
        return self.image.shape[2]

    @property
    def height(self) -> int:
        """px."""
        return self.image.shape[1]


@dataclass
class Rasterizer:
    """What every rasterizer may be asked for."""

    near: float = 0.01  # world units; nearer Gaussians are not drawn
    far: float = 1e10
    eps2d: float = 0.3  # px^2, added to the diagonal of every 2D covariance
    prefilter: bool = False  # antialiasing: dim what eps2d widens
    tile_size: int = 16  # 8, 16 or 32: a tile has its square of pixels
    per_tile_max: int = 0  # a tile keeps so many nearest Gaussians; 0: all
    max_splats_per_pixel: int = 0  # a pixel stops after so many contributions; 0: never
    cull_radius_px: float = 0.0  # Gaussians of this half extent or less are not drawn

    backend: ClassVar[str]  # of the kernels, also those of the loss and the optimizer

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(
                f"raster.near, raster.far: expected 0 <= near < far, got {self.near}, {self.far}"
            )
        if self.tile_size not in (8, 16, 32):
            raise ValueError(f"raster.tile_size: expected 8, 16 or 32, got {self.tile_size}")
        for name in ("eps2d", "per_tile_max", "max_splats_per_pixel", "cull_radius_px"):
            check_range(f"raster.{name}", getattr(self, name), 0)

    def __call__(
        self,
        splats: Splats,
        camera: Camera,
        *,
        sh_degree: int,
        background: Tensor | None = None,
        absgrad: bool = False,
        depth: bool = False,
    ) -> Render:
        """Draw the Gaussians.

        Args:
            sh_degree: at most that of the splats; bands above it rest.
            background: [C,3] behind what stays transparent; None: black.
            absgrad: have backward fill `absgrad`.
            depth: also blend the depths.

        Raises: RuntimeError where the kernels are missing, with the remedy.
        """
        scales, opacities = splats.scales, splats.opacities
        width, height = camera.width, camera.height
        means2d, conics, depths, radii, compensations = project(
            splats.means, splats.quats, scales, opacities, camera.viewmats, camera.Ks, width, height,
            eps2d=self.eps2d, near=self.near, far=self.far, cull_radius_px=self.cull_radius_px,
            prefilter=self.prefilter, backend=self.backend,
        )  # fmt: skip
        if means2d.requires_grad:
            means2d.retain_grad()
        visible = radii[..., 0] > 0
        shN = splats.shN if sh_degree else splats.shN.detach()  # no gradient, no optimizer step
        colors = sh(sh_degree, splats.means, camera.centers, splats.sh0, shN, visible, backend=self.backend)
        blended = opacities * compensations if self.prefilter else opacities.expand(len(camera), -1)
        binned = tiles(
            means2d, radii, depths, width, height,
            tile_size=self.tile_size, per_tile_max=self.per_tile_max, backend=self.backend,
        )  # fmt: skip
        buffer = torch.zeros_like(means2d) if absgrad else None
        if depth:
            colors = torch.cat([colors, depths[..., None]], -1)
            background = None if background is None else torch.nn.functional.pad(background, (0, 1))
        image, alpha = blend(
            means2d, conics, colors, blended, binned, width, height, background=background,
            max_splats_per_pixel=self.max_splats_per_pixel, absgrad=buffer, backend=self.backend,
        )  # fmt: skip
        expected = image[..., 3:] / alpha.clamp_min(1e-8) if depth else None
        image = image[..., :3] if depth else image
        return Render(
            image,
            alpha,
            expected,
            means2d,
            conics,
            radii,
            visible,
            scales,
            opacities,
            blended,
            buffer,
            binned,
        )

    def attribute(self, render: Render, maps: Tensor, threshold: float = 0.0) -> Attribution:
        """Every Gaussian's exact share in pixel maps [C,H,W,M]; a pixel above `threshold` is a hit."""
        return attribute(
            render.means2d, render.conics, render.blended, render.tiles, render.width, render.height, maps,
            threshold=threshold, max_splats_per_pixel=self.max_splats_per_pixel, backend=self.backend,
        )  # fmt: skip


@dataclass
class CPU(Rasterizer):
    """The C++ kernels: AVX-512, AVX2 or portable, chosen at run time."""

    backend: ClassVar[str] = "cpu"


@dataclass
class Reference(Rasterizer):
    """The readable torch kernels: for tests and tiny scenes, thousands of times slower."""

    backend: ClassVar[str] = "reference"
