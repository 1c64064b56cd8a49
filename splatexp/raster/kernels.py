"""From Gaussians to pictures with the kernels: activations, projection, colours, tiles, blending."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, through_intrinsics
from splatexp.gaussians.splats import Splats
from splatexp.raster.precision import lowered
from splatexp.raster.rasterizer import Rasterizer, Render, dropped
from splatexp_kernels.blend import ALWAYS, LEFT_OUT, Attribution, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import Tiles, tiles


@dataclass
class Kernels(Rasterizer):
    """Draws with one backend of the kernels."""

    def __call__(
        self,
        splats: Splats,
        camera: Camera,
        *,
        sh_degree: int,
        background: Tensor | None = None,
        absgrad: bool = False,
        depth: bool = False,
        dropout: Tensor | None = None,
    ) -> Render:
        """As `Rasterizer` says."""
        scales, opacities = splats.drawn()
        width, height = camera.width, camera.height
        present = dropped(opacities, dropout)
        viewmats = through_intrinsics(camera.viewmats, camera.Ks)
        means2d, conics, depths, radii, compensations = project(
            splats.means, splats.quats, scales, present, viewmats, camera.Ks, width, height,
            eps2d=self.eps2d, near=self.near, far=self.far, cull_radius_px=self.cull_radius_px,
            prefilter=self.prefilter, backend=self.backend,
        )  # fmt: skip
        if means2d.requires_grad:
            means2d.retain_grad()
        visible = radii[..., 0] > 0
        shN = splats.shN if sh_degree else splats.shN.detach()  # no gradient, no optimizer step
        colors = sh(sh_degree, splats.means, camera.centers, splats.sh0, shN, visible, backend=self.backend)
        colors = lowered(colors, self.amp)
        blended = present * compensations if self.prefilter else present.expand(len(camera), -1)
        binned = tiles(
            means2d, radii, depths, width, height,
            tile_size=self.tile_size, per_tile_max=self.per_tile_max, backend=self.backend,
        )  # fmt: skip
        buffer = torch.zeros_like(means2d) if absgrad else None
        channels, behind = colors, background
        if depth:
            channels = torch.cat([colors, depths[..., None]], -1)
            behind = None if background is None else torch.nn.functional.pad(background, (0, 1))
        image, alpha = self.blended(means2d, conics, channels, blended, binned, width, height, behind, buffer)
        expected = image[..., 3:] / alpha.clamp_min(1e-8) if depth else None
        image = image[..., :3] if depth else image
        return Render(
            image, alpha, expected, means2d, conics, radii, visible, scales, opacities, blended, buffer,
            binned, colors, background,
        )  # fmt: skip

    def blended(
        self, means2d: Tensor, conics: Tensor, channels: Tensor, opacities: Tensor, binned: Tiles, width: int,
        height: int, behind: Tensor | None, absgrad: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Image [C,H,W,D] and alpha [C,H,W,1] of projected Gaussians: composited, the nearest first."""
        return blend(
            means2d, conics, channels, opacities, binned, width, height, background=behind,
            max_splats_per_pixel=self.max_splats_per_pixel, absgrad=absgrad, backend=self.backend,
        )  # fmt: skip

    def attribute(
        self,
        render: Render,
        maps: Tensor,
        threshold: float = 0.0,
        target: Tensor | None = None,
        *,
        want: Collection[str] | None = None,
    ) -> Attribution:
        """As `Rasterizer` says."""
        if want is None:
            want = ALWAYS if target is None else (*ALWAYS, *LEFT_OUT)
        return attribute(
            render.means2d, render.conics, render.blended, render.tiles, render.width, render.height, maps,
            threshold=threshold, max_splats_per_pixel=self.max_splats_per_pixel, want=want,
            colors=render.colors, image=render.image, target=target, backend=self.backend,
        )  # fmt: skip
