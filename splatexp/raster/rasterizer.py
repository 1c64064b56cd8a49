"""What every rasterizer may be asked for, and what it gives.

Notation: C cameras, N Gaussians, [C,H,W,3] pictures before any clamp.
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
    """Pictures, and what the losses and density control want to know of their making."""

    image: Tensor  # [C,H,W,3]
    alpha: Tensor  # [C,H,W,1]
    depth: Tensor | None  # [C,H,W,1] expected camera z, world units; 0 where nothing is
    means2d: Tensor  # [C,N,2] px; keeps its gradient
    conics: Tensor  # [C,N,3] px^-2
    radii: Tensor  # [C,N,2] px
    visible: Tensor  # [C,N] bool, not culled
    scales: Any  # [N,3] activated, in the graph; None of a plane
    opacities: Tensor  # [N] activated, in the graph, before dropout
    blended: Tensor  # [C,N] opacities as they were blended: after dropout, compensated where prefiltered
    absgrad: Tensor | None  # [C,N,2] px^-1, filled by backward
    tiles: Any  # by which `attribute` of the same rasterizer finds who is where
    colors: Tensor | None  # likewise: [C,N,3] before blending, in the graph; 0 where not visible
    background: Tensor | None  # [C,3]; None: black

    @property
    def width(self) -> int:
        """px."""
        return self.image.shape[2]

    @property
    def height(self) -> int:
        """px."""
        return self.image.shape[1]


class Drawing:
    """What draws rows of some kind; its knobs are the fields of a dataclass."""

    backend: str  # of the kernels of the loss and the optimizer
    deterministic: ClassVar[bool] = True  # the same bits every time
    offers: ClassVar[frozenset[str]] = frozenset()  # fields of `Attribution` that `attribute` can give
    alternatives: ClassVar[
        tuple[type[Drawing], ...]
    ] = ()  # what a refusal may recommend; filled by `backends`
    distributed = False  # over several GPUs: each process has a share of the rows
    why = ""  # of one that raster=auto took: which, and why no better one

    @property
    def name(self) -> str:
        """What chooses it: raster=<name>."""
        return type(self).__name__.lower()

    @property
    def device(self) -> torch.device:
        """Where it takes rows and cameras, and where its pictures are."""
        return torch.device("cpu")

    @classmethod
    def missing(cls, build: bool = True) -> str:
        """Why this machine cannot run it, then what would help, in one line; "" where it can.

        Quick, and nothing is compiled.

        Args:
            build: what the first run can still compile counts as there.
        """
        return ""

    def alone(self) -> Drawing:
        """The same where one process has all rows."""
        return self

    def equipped(self, rows: Any) -> Any:
        """First rows, with the parameters that it needs of them besides those of their kind."""
        return rows

    def require(self) -> None:
        """Make it ready to draw; what has to be compiled first is compiled here.

        Raises: ValueError, one line with reason and remedy, where this machine cannot run it.
        """
        if reason := self.missing():
            raise self.refusal(reason)

    def refusal(self, reason: str) -> ValueError:
        """That this machine cannot run it and why, and what it can run, in one line."""
        able = [f"raster={kind.__name__.lower()}" for kind in self.alternatives if not kind.missing()]
        others = f"; what can: {', '.join(able)}" if able else ""
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
        """Draw the Gaussians.

        Gradients: every parameter, and `camera.viewmats` and `camera.Ks` where they want one.

        Args:
            sh_degree: at most that of the splats; bands above it rest.
            background: [C,3] behind what stays transparent; None: black.
            absgrad: have backward fill `absgrad`.
            depth: also blend the depths.
            dropout: [N] factors of the opacities in this picture, which stay at most 1; None: 1.

        Raises: RuntimeError where the kernels are missing, with the remedy.
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
        """Every Gaussian's exact share in the pixels of a render, dropout included.

        Args:
            maps: [C,H,W,M]; M may be 0.
            threshold: a map's pixel above it is a hit.
            target: [C,H,W,3] what the picture should be, for what leaving a Gaussian out would do.
            want: names of the fields; the cheap ALWAYS come anyway. None: those, and with `target` LEFT_OUT.
                A field that is not among `offers` is None.
        """
        raise NotImplementedError


@dataclass
class Rasterizer(Drawing):
    """The knobs of all rasterizers of scenes; one that cannot honour a knob refuses it."""

    near: float = 0.01  # world units; nearer Gaussians are not drawn
    far: float = 1e10
    eps2d: float = 0.3  # px^2, added to the diagonal of every 2D covariance
    prefilter: bool = False  # antialiasing: dim what eps2d widens
    tile_size: int = 16  # 8, 16 or 32: a tile has its square of pixels
    per_tile_max: int = 0  # a tile keeps so many nearest Gaussians; 0: all
    max_splats_per_pixel: int = 0  # a pixel stops after so many contributions; 0: never
    cull_radius_px: float = 0.0  # Gaussians of this half extent or less are not drawn
    amp: str = "none"  # none, bf16, fp16: precision of colours and their gradients, see `lowered`

    offers: ClassVar[frozenset[str]] = frozenset(Attribution._fields)  # what `attribute` can give

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


def dropped(opacities: Tensor, dropout: Tensor | None) -> Tensor:
    """Opacities [N] times the factors of a dropout [N], at most 1; None: as they are."""
    if dropout is None:
        return opacities
    if dropout.shape != opacities.shape:
        raise ValueError(f"dropout: expected {list(opacities.shape)}, got {tuple(dropout.shape)}")
    return (opacities * dropout).clamp_max(1)


def attribute_by_autograd(draw: Callable[[Tensor], Tensor], count: int, maps: Tensor) -> Attribution:
    """Shares in pixel maps [C,H,W,M] for a rasterizer that can only be differentiated.

    A pixel of `draw` is a sum of weights times features, so the gradient of sum(map * picture) with respect
    to a feature is the sum of weight times map, whatever the features are: here 0.

    Args:
        draw: features [C,N,D] -> picture [C,H,W,D] on black, for any D, blended as they are: no SH, no
            offset. Geometry and opacities are those of the render; they need no gradient, and get none.
        count: N.

    Returns: weight_sum and weighted; the others, which are not linear, are None.
    """
    maps = torch.nn.functional.pad(maps.detach(), (0, 1), value=1.0)  # the last map is of ones
    with torch.enable_grad():
        features = maps.new_zeros(len(maps), count, maps.shape[-1], requires_grad=True)
        (shares,) = torch.autograd.grad((draw(features) * maps).sum(), features)
    return Attribution(shares[..., -1], None, shares[..., :-1], None, None)
