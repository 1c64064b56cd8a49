"""The interface of all rasterizers, and the result of rendering.

Notation: C cameras, N Gaussians, [C,H,W,3] images, which are not clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.raster.precision import PRECISIONS
from splatexp.settings.checks import check_choice, check_range
from splatexp_kernels.blend import Attribution


@dataclass
class Render:
    """Rendered images, with the intermediate results that losses and density control read."""

    image: Tensor  # [C,H,W,3]
    alpha: Tensor  # [C,H,W,1]
    depth: Tensor | None  # [C,H,W,1] expected camera z, world units; 0 where nothing is rendered
    means2d: Tensor  # [C,N,2] px; keeps its gradient
    conics: Tensor  # [C,N,3] px^-2
    radii: Tensor  # [C,N,2] px
    visible: Tensor  # [C,N] bool, not culled
    scales: Any  # [N,3] activated, in the autograd graph; None for images
    opacities: Tensor  # [N] activated, in the autograd graph, before dropout
    blended_opacities: Tensor  # [C,N] after dropout and, where antialiased, compensation
    absgrad: Tensor | None  # [C,N,2] px^-1, filled by the backward pass
    tiles: Any  # the Gaussians in each tile, for `attribute` of the same rasterizer
    colors: Tensor | None  # [C,N,3] before blending, in the graph; 0 where not visible
    background: Tensor | None  # [C,3]; None for black

    @property
    def width(self) -> int:
        """Return the width of the images, px."""
        return self.image.shape[2]

    @property
    def height(self) -> int:
        """Return the height of the images, px."""
        return self.image.shape[1]


class Rasterizer:
    """A renderer of rows of one kind; subclasses are dataclasses whose fields are its settings."""

    backend: str  # of the kernels that the loss and the optimizer use
    deterministic: ClassVar[bool] = True  # whether equal inputs give equal bits
    attribution_fields: ClassVar[frozenset[str]] = frozenset()  # fields that `attribute` can compute
    alternatives: ClassVar[tuple[type[Rasterizer], ...]] = ()  # for error messages; filled by `backends`
    distributed = False  # whether each of several processes holds a part of the rows
    selection_note = ""  # of raster=auto: which rasterizer it has selected, and why no better one

    @property
    def name(self) -> str:
        """Return the name of its option, as in raster=<name>."""
        return type(self).__name__.lower()

    @property
    def device(self) -> torch.device:
        """Return the device of rows, cameras and images."""
        return torch.device("cpu")

    @classmethod
    def unavailable_reason(cls, can_build: bool = True) -> str:
        """Return why this machine cannot run it, and the remedy, in one line; "" where it can.

        The answer is quick, and nothing is compiled.

        Args:
            can_build: whether parts that the first run can compile count as available.
        """
        return ""

    def single_process(self) -> Rasterizer:
        """Return the same rasterizer for a single process that holds all rows."""
        return self

    def with_required_params(self, rows: Any) -> Any:
        """Add the parameters that the rasterizer needs to rows that lack them, and return the rows."""
        return rows

    def ensure_available(self) -> None:
        """Prepare for rendering; parts that have to be compiled are compiled here.

        Raises: ValueError, one line with reason and remedy, where this machine cannot run it.
        """
        if reason := self.unavailable_reason():
            raise self.unavailable_error(reason)

    def unavailable_error(self, reason: str) -> ValueError:
        """Return the error for a machine that cannot run it; it names what the machine can run."""
        available = [
            f"raster={kind.__name__.lower()}" for kind in self.alternatives if not kind.unavailable_reason()
        ]
        others = f"; available here: {', '.join(available)}" if available else ""
        return ValueError(f"raster: {self.name} cannot run here: {reason}{others}")

    def __call__(
        self,
        splats: Any,
        camera: Camera,
        *,
        sh_degree: int,
        background: Tensor | None = None,
        absgrad: bool = False,
        depth: bool = False,
        dropout: Tensor | None = None,
    ) -> Render:
        """Render the Gaussians.

        Gradients reach every parameter, and `camera.viewmats` and `camera.Ks` where they require one.

        Args:
            sh_degree: at most that of the splats; higher bands are not used and get no gradient.
            background: [C,3] behind transparent pixels; None for black.
            absgrad: have the backward pass fill `Render.absgrad`.
            depth: render the depth too.
            dropout: [N] factors of the opacities, which stay at most 1; None for no dropout.

        Raises: RuntimeError, with the remedy, where the kernels are missing.
        """
        raise NotImplementedError

    def attribute(
        self,
        render: Render,
        maps: Tensor,
        threshold: float = 0.0,
        target: Tensor | None = None,
        *,
        want: Collection[str] | None = None,
    ) -> Attribution:
        """Return the exact contribution of every Gaussian to the pixels of a render, dropout included.

        Args:
            maps: [C,H,W,M] pixel maps, whose sums weighted by a Gaussian's contributions are computed; M may
                be 0.
            threshold: above which the pixel of a map counts as a hit.
            target: [C,H,W,3] the image to reach, for the effect of leaving a Gaussian out.
            want: names of the fields to compute, besides the cheap DEFAULT_FIELDS. None stands for those,
                and with `target` for LEAVE_ONE_OUT_FIELDS too. Fields outside `attribution_fields` are None.
        """
        raise NotImplementedError


@dataclass
class SceneRasterizer(Rasterizer):
    """The settings of all rasterizers of scenes; a rasterizer refuses a setting that it does not support."""

    near: float = 0.01  # world units; nearer Gaussians are not rendered
    far: float = 1e10  # world units; farther Gaussians are not rendered
    eps2d: float = 0.3  # px^2, added to the diagonal of every 2D covariance
    antialiased: bool = False  # multiply opacities by gsplat's compensation for eps2d
    tile_size: int = 16  # 8, 16 or 32 px, the side of a tile
    per_tile_max: int = 0  # largest number of Gaussians in a tile, the nearest ones; 0: no limit
    max_splats_per_pixel: int = 0  # largest number of contributions to a pixel; 0: no limit
    cull_radius_px: float = 0.0  # Gaussians of this half extent or less are not rendered
    amp: str = "none"  # none, bf16 or fp16: emulated precision of colours and their gradients

    attribution_fields: ClassVar[frozenset[str]] = frozenset(Attribution._fields)

    def __post_init__(self) -> None:
        if not 0 <= self.near < self.far:
            raise ValueError(
                f"raster.near, raster.far: expected 0 <= near < far, got {self.near}, {self.far}"
            )
        if self.tile_size not in (8, 16, 32):
            raise ValueError(f"raster.tile_size: expected 8, 16 or 32, got {self.tile_size}")
        for name in ("eps2d", "per_tile_max", "max_splats_per_pixel", "cull_radius_px"):
            check_range(f"raster.{name}", getattr(self, name), 0)
        check_choice("raster.amp", self.amp, PRECISIONS)


def apply_dropout(opacities: Tensor, dropout: Tensor | None) -> Tensor:
    """Return opacities [N] multiplied by the factors of a dropout [N], at most 1; None changes nothing."""
    if dropout is None:
        return opacities
    if dropout.shape != opacities.shape:
        raise ValueError(f"dropout: expected {list(opacities.shape)}, got {tuple(dropout.shape)}")
    return (opacities * dropout).clamp_max(1)


def attribute_by_autograd(draw: Callable[[Tensor], Tensor], count: int, maps: Tensor) -> Attribution:
    """Return the linear fields of an attribution, for a rasterizer that has no kernel for it.

    A pixel of `draw` is a sum of weights times features, so the gradient of sum(map * image) with respect to
    a feature is the sum of weight times map, for any features: here 0.

    Args:
        draw: renders features [C,N,D] as they are, without SH and offset, to an image [C,H,W,D] on black, for
            any D. Geometry and opacities are those of the render, without gradient.
        count: N.
        maps: [C,H,W,M].

    Returns: weight_sum and weighted; the other fields, which are not linear, are None.
    """
    maps = torch.nn.functional.pad(maps.detach(), (0, 1), value=1.0)  # the last map is 1 everywhere
    with torch.enable_grad():
        features = maps.new_zeros(len(maps), count, maps.shape[-1], requires_grad=True)
        (shares,) = torch.autograd.grad((draw(features) * maps).sum(), features)
    return Attribution(shares[..., -1], None, shares[..., :-1], None, None)
