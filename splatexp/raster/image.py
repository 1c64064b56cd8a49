"""Rasterizer of 2D Gaussians: nothing is projected; a camera says which part of the image is rendered, and
how large.

Notation: as in rasterizer.py, with D channels. A camera of the image plane maps x to Ks x: its focal length
    is the magnification and its principal point the position of the image's corner; its pose has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.gaussians.covariance import conics
from splatexp.gaussians.splats2d import OPACITY, Splats2D
from splatexp.raster.precision import PRECISIONS, round_trip
from splatexp.raster.rasterizer import Rasterizer, Render, attribute_by_autograd
from splatexp.settings.checks import check_choice, check_range
from splatexp_kernels import dispatch, extension
from splatexp_kernels.blend import Attribution
from splatexp_kernels.blend2d import MODES, blend2d
from splatexp_kernels.tiles import tiles


@dataclass
class ImageRaster(Rasterizer):
    """Blends 2D Gaussians: `sum` and `normalized` do not depend on an order, `alpha` composites rows in their
    order.

    Source: sum: Zhang et al. 2024, "GaussianImage"; normalized: Zhang et al. 2025, "Image-GS".
    """

    domain: ClassVar[str] = "image"
    name: ClassVar[str] = "image"  # type: ignore[assignment]

    mode: str = "sum"  # sum, normalized or alpha: how weights become a pixel, see `blend2d`
    top_k: int = 0  # a pixel uses only its top_k largest weights; 0: all; at most 32 on the CPU
    tile_size: int = 16  # px, the side of a tile: 8, 16 or 32
    amp: str = "none"  # none, bf16 or fp16: precision of colours and their gradients, see `round_trip`
    backend: str = "auto"  # cpu, gpu or reference; auto: gpu where there is one, else cpu

    attribution_fields: ClassVar[frozenset[str]] = frozenset(
        {"weight_sum", "weighted", "removal", "removal_loss"}
    )

    def __post_init__(self) -> None:
        check_choice("raster.mode", self.mode, MODES)
        check_range("raster.top_k", self.top_k, 0)
        if self.tile_size not in (8, 16, 32):
            raise ValueError(f"raster.tile_size: expected 8, 16 or 32, got {self.tile_size}")
        check_choice("raster.amp", self.amp, PRECISIONS)
        check_choice("raster.backend", self.backend, ("auto", *dispatch.BACKENDS))
        if self.backend == "auto":  # the run records the backend that it really used
            self.backend = "cpu" if dispatch.gpu_missing() else "gpu"
        if self.mode == "alpha" and self.top_k:
            raise ValueError(f"raster.top_k: expected 0 with raster.mode=alpha, got {self.top_k}")
        if self.mode != "sum" or self.top_k:
            # the effect of leaving a row out depends on the other rows
            self.attribution_fields = frozenset({"weight_sum", "weighted"})  # type: ignore[misc]
        if self.mode == "alpha":
            self.attribution_fields = frozenset()  # type: ignore[misc]

    @property
    def device(self) -> torch.device:
        """Return the current CUDA device for the backend gpu, else the CPU."""
        if self.backend != "gpu" or dispatch.interpreted():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def ensure_available(self) -> None:
        """Raise ValueError, with the reason, where the backend cannot run here."""
        reason = ""
        if self.backend == "gpu" and not dispatch.interpreted():
            reason = dispatch.gpu_missing()
        elif self.backend == "cpu":
            try:
                extension()
            except ImportError as error:
                reason = str(error)
        if reason:
            raise ValueError(f"raster.backend: {self.backend} cannot run here: {reason}")

    def with_required_params(self, rows: Splats2D) -> Splats2D:
        """Return the rows with what the mode needs: for alpha, opacities of 0.5.

        Raises: ValueError for rows with opacities in another mode.
        """
        if self.mode != "alpha" and OPACITY in rows.extra:
            raise ValueError(f"raster.mode: expected alpha, since the rows have opacities, got {self.mode}")
        if self.mode == "alpha" and OPACITY not in rows.extra:
            rows.add_param(OPACITY, torch.zeros(len(rows), device=rows.means.device))
        return rows

    def __call__(
        self,
        splats: Splats2D,
        camera: Camera,
        *,
        sh_degree: int = 0,
        background: Tensor | None = None,
        absgrad: bool = False,
        depth: bool = False,
        dropout: Tensor | None = None,
    ) -> Render:
        """Render the Gaussians as `Rasterizer` says, on a background [C,D].

        Raises: ValueError for absgrad, depth or dropout, which images do not have.
        """
        if absgrad or depth or dropout is not None:
            raise ValueError("raster: image has no absgrad, depth or dropout")
        means, shapes, colors, weights, parametrization = splats.drawn()
        shapes_, radii = conics(parametrization, shapes, weights)
        zoom, *corner = camera.Ks[0, (0, 0, 1), (0, 2, 2)].tolist()
        if zoom != 1 or any(corner):
            means = means * zoom + means.new_tensor(corner)
            shapes_, radii = shapes_ / zoom**2, radii * zoom
        means2d, shapes_, radii, blended = means[None], shapes_[None], radii[None], weights[None]
        if means2d.requires_grad:
            means2d.retain_grad()
        channels = round_trip(colors[None], self.amp)
        binned = tiles(
            means2d,
            radii,
            torch.zeros_like(blended),
            camera.width,
            camera.height,
            tile_size=self.tile_size,
            backend=self.backend,
        )
        image, total = blend2d(
            means2d,
            shapes_,
            channels,
            blended,
            binned,
            camera.width,
            camera.height,
            mode=self.mode,
            top_k=self.top_k,
            background=background,
            backend=self.backend,
        )
        with torch.no_grad():
            size = radii.new_tensor([camera.width, camera.height])
            inside = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        return Render(
            image,
            total.clamp_max(1),
            None,
            means2d,
            shapes_,
            radii,
            inside & (radii[..., 0] > 0),
            None,
            weights,
            blended,
            None,
            binned,
            channels,
            background,
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
        """Attribute maps to rows as `Rasterizer` says, in the modes without alpha, where shares are sums.

        The effect of leaving a row out is exact, except that the integral of its square is taken over the
        whole plane: with D the sum of squared errors over pixels and channels, and c its colour, removal =
        |c|^2 w^2 pi sqrt(det Sigma), removal_loss = -c . dD/dc + removal.

        Raises: NotImplementedError with alpha.
        """
        if self.mode == "alpha":
            raise NotImplementedError("raster.mode: expected sum or normalized for an attribution, got alpha")
        conics_, weights = render.conics.detach(), render.blended_opacities.detach()

        def draw(features: Tensor) -> Tensor:
            return blend2d(
                render.means2d.detach(),
                conics_,
                features,
                weights,
                render.tiles,
                render.width,
                render.height,
                mode=self.mode,
                top_k=self.top_k,
                backend=self.backend,
            )[0]

        count, loss = weights.shape[1], target is not None and "removal_loss" in (want or ())
        away = (render.image.detach() - target) if loss and target is not None else maps[..., :0]
        shares = attribute_by_autograd(draw, count, torch.cat([maps, away], -1))
        assert shares.weighted is not None and render.colors is not None
        split, colors = maps.shape[-1], render.colors.detach()
        a, b, c = conics_.unbind(-1)
        area = torch.where(render.visible, math.pi * (a * c - b * b).clamp_min(1e-30).rsqrt(), 0.0)
        removal = colors.square().sum(-1) * weights.square() * area
        rise = removal - 2 * (colors * shares.weighted[..., split:]).sum(-1) if loss else None
        found = {"weight_sum": shares.weight_sum, "weighted": shares.weighted[..., :split]}
        if "removal" in self.attribution_fields:
            found |= {"removal": removal, "removal_loss": rise}
        return Attribution(**{name: found.get(name) for name in Attribution._fields})
