"""The CUDA kernels of gsplat behind our interface."""

import weakref
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, route_intrinsics_gradient
from splatexp.gaussians.splats import Splats
from splatexp.raster import gsplat_build
from splatexp.raster.rasterizer import Render, SceneRasterizer, apply_dropout, attribute_by_autograd
from splatexp.system import process_group
from splatexp_kernels import dispatch
from splatexp_kernels.blend import Attribution

# Settings that gsplat does not support -> the only value that is accepted.
UNSUPPORTED = {"per_tile_max": 0, "max_splats_per_pixel": 0, "amp": "none"}


class TileLists(NamedTuple):
    """gsplat's lists of the Gaussians in each tile."""

    isect_offsets: Tensor  # [C, tiles down, tiles across] int32
    flatten_ids: Tensor  # [pairs] int32


@dataclass
class Gsplat(SceneRasterizer):
    """gsplat's `rasterization`; its CUDA extension is compiled by the first run, where no wheel has it.

    Differs: alpha is clamped at 0.999, not 0.99. Half extents are whole pixels, for `cull_radius_px` too.
    Gaussians that are not finite are not culled. Sums are atomic, so their last bits vary between runs.
    Attribution has its linear fields alone. gsplat's authors have tested tiles of 16 px alone.
    """

    distributed: bool = (
        False  # under torchrun, train one scene on several GPUs; see `splatexp.run.distributed`
    )

    deterministic: ClassVar[bool] = False
    attribution_fields: ClassVar[frozenset[str]] = frozenset({"weight_sum", "weighted"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in UNSUPPORTED.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"raster.{name}: expected {only} with raster=gsplat, which does not support it, "
                    f"got {getattr(self, name)}"
                )
        if self.distributed:
            # a process does not hold all the rows of a pixel
            self.attribution_fields = frozenset()  # type: ignore[misc]

    @property
    def backend(self) -> str:  # type: ignore[override]
        """Return the backend of loss and optimizer: Triton, or slower torch where Triton cannot run."""
        return "reference" if dispatch.gpu_missing() else "gpu"

    @property
    def device(self) -> torch.device:
        """Return the current CUDA device."""
        return torch.device("cuda", torch.cuda.current_device())

    @classmethod
    def unavailable_reason(cls, can_build: bool = True) -> str:
        """Return why gsplat cannot run; see `Rasterizer.unavailable_reason`."""
        return gsplat_build.unavailable_reason(can_build)

    def single_process(self) -> SceneRasterizer:
        """Return the same rasterizer for a single process that holds all rows."""
        return replace(self, distributed=False)

    def ensure_available(self) -> None:
        """Prepare for rendering; gsplat may compile its extension, which takes minutes, and says so."""
        super().ensure_available()
        try:
            if self.distributed:
                process_group.init_process_group()
                process_group.main_process_first(gsplat_build.load)
            else:
                gsplat_build.load()
        except RuntimeError as error:
            raise self.unavailable_error(str(error)) from error
        if reason := dispatch.gpu_missing():
            slow = f"raster=gsplat: loss and optimizer use torch, which is slower, since {reason}"
            self.selection_note = "; ".join(filter(None, [self.selection_note, slow]))

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
        import gsplat

        scales, opacities = splats.render_params()
        bands = (sh_degree + 1) ** 2 - 1  # higher bands get no gradient; without any, the optimizer skips shN
        coefficients = torch.cat([splats.sh0, splats.shN[:, :bands]], 1) if sh_degree else splats.sh0
        image, alpha, meta = gsplat.rasterization(
            splats.means,
            splats.quats,
            scales,
            apply_dropout(opacities, dropout),
            coefficients,
            route_intrinsics_gradient(camera.viewmats, camera.Ks),
            camera.Ks.detach(),
            camera.width,
            camera.height,
            near_plane=self.near,
            far_plane=self.far,
            radius_clip=self.cull_radius_px,
            eps2d=self.eps2d,
            sh_degree=sh_degree,
            packed=False,
            tile_size=self.tile_size,
            backgrounds=background,
            render_mode="RGB+ED" if depth else "RGB",
            absgrad=absgrad,
            rasterize_mode="antialiased" if self.antialiased else "classic",
            distributed=self.distributed,
        )
        means2d = meta["means2d"]
        visible = (meta["radii"] > 0).all(-1)
        if means2d.requires_grad:
            means2d.retain_grad()
        # gsplat leaves the conics of culled Gaussians uninitialized
        conics = torch.where(visible[..., None], meta["conics"], 0)
        return Render(
            image=image[..., :3],
            alpha=alpha,
            depth=image[..., 3:] if depth else None,
            means2d=means2d,
            conics=conics,
            radii=meta["radii"].to(means2d.dtype),
            visible=visible,
            scales=scales,
            opacities=opacities,
            blended_opacities=meta["opacities"],
            absgrad=_absgrad(means2d) if absgrad else None,
            tiles=TileLists(meta["isect_offsets"], meta["flatten_ids"]),
            colors=None,
            background=background,
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
        import gsplat

        geometry = render.means2d.detach(), render.conics.detach()
        opacities = render.blended_opacities.detach()

        def draw(features: Tensor) -> Tensor:
            return gsplat.rasterize_to_pixels(
                *geometry, features, opacities, render.width, render.height, self.tile_size, *render.tiles
            )[0]

        return attribute_by_autograd(draw, render.means2d.shape[1], maps)


def _absgrad(means2d: Any) -> Tensor:
    """Return the tensor that the backward pass fills with the absolute gradient.

    gsplat leaves that gradient as an attribute of the means themselves.
    """
    filled = torch.zeros_like(means2d)
    reference = weakref.ref(means2d)  # without a cycle, which would keep the memory

    def copy_absgrad(_: Tensor) -> None:
        filled.copy_(reference().absgrad)  # type: ignore[union-attr]

    if means2d.requires_grad:
        means2d.register_hook(copy_absgrad)
    return filled
