"""gsplat's CUDA kernels behind our signature."""

import weakref
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, through_intrinsics
from splatexp.gaussians.splats import Splats
from splatexp.raster import gsplat_build
from splatexp.raster.rasterizer import Rasterizer, Render, attribute_by_autograd, dropped
from splatexp.system import process_group
from splatexp_kernels import door
from splatexp_kernels.blend import Attribution

LACKS = {"per_tile_max": 0, "max_splats_per_pixel": 0, "amp": "none"}  # knobs, and what they are at rest


class Lists(NamedTuple):
    """gsplat's lists of who is in which tile."""

    isect_offsets: Tensor  # [C, tiles down, tiles across] int32
    flatten_ids: Tensor  # [pairs] int32


@dataclass
class Gsplat(Rasterizer):
    """gsplat's `rasterization`; where its CUDA extension did not come compiled, the first run does it.

    Differs: alpha is clamped at 0.999, not 0.99; half extents are whole pixels, for `cull_radius_px` too;
    what is not finite is not culled; sums are atomic, so that their last bits differ from time to time;
    shares in pixels are linear ones alone. Its authors have not tested other tiles than those of 16.
    """

    distributed: bool = False  # under torchrun: one scene over several GPUs, see `splatexp.run.distributed`

    deterministic: ClassVar[bool] = False
    offers: ClassVar[frozenset[str]] = frozenset({"weight_sum", "weighted"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, rest in LACKS.items():
            if getattr(self, name) != rest:
                raise ValueError(
                    f"raster.{name}: expected {rest} with raster=gsplat, which has no such thing, "
                    f"got {getattr(self, name)}"
                )
        if self.distributed:
            self.offers = frozenset()  # type: ignore[misc]  # a process has not all the rows of a pixel

    @property
    def backend(self) -> str:  # type: ignore[override]
        """Of loss and optimizer: Triton's; where Triton cannot run torch's own operations, slower."""
        return "reference" if door.gpu_missing() else "gpu"

    @property
    def device(self) -> torch.device:
        """The current CUDA device."""
        return torch.device("cuda", torch.cuda.current_device())

    @classmethod
    def missing(cls, build: bool = True) -> str:
        """What gsplat lacks; `build`: what can be compiled counts as there."""
        return gsplat_build.missing(build)

    def alone(self) -> Rasterizer:
        """The same where one process has all rows."""
        return replace(self, distributed=False)

    def require(self) -> None:
        """As `Rasterizer` says; this may compile for minutes, and gsplat says so."""
        super().require()
        try:
            if self.distributed:
                process_group.start()
                process_group.one_by_one(gsplat_build.load)
            else:
                gsplat_build.load()
        except RuntimeError as error:
            raise self.refusal(str(error)) from error
        if reason := door.gpu_missing():
            slow = f"raster=gsplat: loss and optimizer by torch, slower, for Triton cannot run ({reason})"
            self.why = "; ".join(filter(None, [self.why, slow]))

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
        import gsplat

        scales, opacities = splats.drawn()
        bands = (sh_degree + 1) ** 2 - 1  # those above get no gradient: where all rest, no optimizer step
        coefficients = torch.cat([splats.sh0, splats.shN[:, :bands]], 1) if sh_degree else splats.sh0
        image, alpha, meta = gsplat.rasterization(
            splats.means, splats.quats, scales, dropped(opacities, dropout), coefficients,
            through_intrinsics(camera.viewmats, camera.Ks), camera.Ks.detach(), camera.width, camera.height,
            near_plane=self.near, far_plane=self.far, radius_clip=self.cull_radius_px, eps2d=self.eps2d,
            sh_degree=sh_degree, packed=False, tile_size=self.tile_size, backgrounds=background,
            render_mode="RGB+ED" if depth else "RGB", absgrad=absgrad,
            rasterize_mode="antialiased" if self.prefilter else "classic", distributed=self.distributed,
        )  # fmt: skip
        means2d, visible = meta["means2d"], (meta["radii"] > 0).all(-1)
        if means2d.requires_grad:
            means2d.retain_grad()
        conics = torch.where(
            visible[..., None], meta["conics"], 0
        )  # gsplat leaves those of the culled unwritten
        return Render(
            image[..., :3], alpha, image[..., 3:] if depth else None, means2d, conics,
            meta["radii"].to(means2d.dtype), visible, scales, opacities, meta["opacities"],
            _absgrad(means2d) if absgrad else None, Lists(meta["isect_offsets"], meta["flatten_ids"]),
            None, background,
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
        import gsplat

        geometry = render.means2d.detach(), render.conics.detach()
        opacities = render.blended.detach()

        def draw(features: Tensor) -> Tensor:
            return gsplat.rasterize_to_pixels(
                *geometry, features, opacities, render.width, render.height, self.tile_size, *render.tiles
            )[0]

        return attribute_by_autograd(draw, render.means2d.shape[1], maps)


def _absgrad(means2d: Any) -> Tensor:
    """What backward fills with the absolute gradient: gsplat leaves that on the means themselves."""
    filled, known = torch.zeros_like(means2d), weakref.ref(means2d)  # no cycle that would hold the memory

    def take(_: Tensor) -> None:
        filled.copy_(known().absgrad)  # type: ignore[union-attr]

    if means2d.requires_grad:
        means2d.register_hook(take)
    return filled
