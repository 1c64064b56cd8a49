"""Rasterization with the kernels: activations, projection, colours, tiles, blending."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, route_intrinsics_gradient
from splatexp.gaussians.splats import Splats
from splatexp.raster.precision import round_trip
from splatexp.raster.rasterizer import Render, SceneRasterizer, apply_dropout
from splatexp_kernels.blend import DEFAULT_FIELDS, LEAVE_ONE_OUT_FIELDS, Attribution, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import Tiles, tiles


@dataclass
class KernelRasterizer(SceneRasterizer):
    """A rasterizer that uses one backend of the kernels."""

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
        """Render the Gaussians; see `Rasterizer.__call__`."""
        scales, opacities = splats.render_params()
        width, height = camera.width, camera.height
        kept_opacities = apply_dropout(opacities, dropout)
        viewmats = route_intrinsics_gradient(camera.viewmats, camera.Ks)
        means2d, conics, depths, radii, compensations = project(
            splats.means,
            splats.quats,
            scales,
            kept_opacities,
            viewmats,
            camera.Ks,
            width,
            height,
            eps2d=self.eps2d,
            near=self.near,
            far=self.far,
            cull_radius_px=self.cull_radius_px,
            prefilter=self.antialiased,
            backend=self.backend,
        )
        if means2d.requires_grad:
            means2d.retain_grad()
        visible = radii[..., 0] > 0
        shN = splats.shN if sh_degree else splats.shN.detach()  # without a gradient, the optimizer skips it
        colors = sh(sh_degree, splats.means, camera.centers, splats.sh0, shN, visible, backend=self.backend)
        colors = round_trip(colors, self.amp)
        if self.antialiased:
            blended_opacities = kept_opacities * compensations
        else:
            blended_opacities = kept_opacities.expand(len(camera), -1)
        binned = tiles(
            means2d,
            radii,
            depths,
            width,
            height,
            tile_size=self.tile_size,
            per_tile_max=self.per_tile_max,
            backend=self.backend,
        )
        absgrad_buffer = torch.zeros_like(means2d) if absgrad else None
        channels = colors
        channel_background = background
        if depth:
            channels = torch.cat([colors, depths[..., None]], -1)
            if background is not None:
                channel_background = torch.nn.functional.pad(background, (0, 1))
        image, alpha = self.composite(
            means2d,
            conics,
            channels,
            blended_opacities,
            binned,
            width,
            height,
            channel_background,
            absgrad_buffer,
        )
        expected_depth = image[..., 3:] / alpha.clamp_min(1e-8) if depth else None
        image = image[..., :3] if depth else image
        return Render(
            image=image,
            alpha=alpha,
            depth=expected_depth,
            means2d=means2d,
            conics=conics,
            radii=radii,
            visible=visible,
            scales=scales,
            opacities=opacities,
            blended_opacities=blended_opacities,
            absgrad=absgrad_buffer,
            tiles=binned,
            colors=colors,
            background=background,
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
        """Return image [C,H,W,D] and alpha [C,H,W,1] of projected Gaussians, composited front to back.

        Args:
            channels: [C,N,D].
            binned: the Gaussians in each tile.
            background: [C,D]; None for black.
            absgrad: [C,N,2], which the backward pass fills; None where it is not needed.
        """
        return blend(
            means2d,
            conics,
            channels,
            opacities,
            binned,
            width,
            height,
            background=background,
            max_splats_per_pixel=self.max_splats_per_pixel,
            absgrad=absgrad,
            backend=self.backend,
        )

    def attribute(
        self,
        render: Render,
        maps: Tensor,
        threshold: float = 0.0,
        target: Tensor | None = None,
        *,
        want: Collection[str] | None = None,
    ) -> Attribution:
        """Return the contributions of the Gaussians to pixels; see `Rasterizer.attribute`."""
        if want is None:
            want = DEFAULT_FIELDS if target is None else (*DEFAULT_FIELDS, *LEAVE_ONE_OUT_FIELDS)
        return attribute(
            render.means2d,
            render.conics,
            render.blended_opacities,
            render.tiles,
            render.width,
            render.height,
            maps,
            threshold=threshold,
            max_splats_per_pixel=self.max_splats_per_pixel,
            want=want,
            colors=render.colors,
            image=render.image,
            target=target,
            backend=self.backend,
        )
