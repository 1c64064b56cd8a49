"""From Gaussians to pictures: activations, projection, colours, tiles, blending.

Notation: C cameras, N Gaussians, [C,H,W,3] pictures before any clamp.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from splatexp.cameras import Camera
from splatexp.choices import check_choice, check_range
from splatexp.splats import Splats
from splatexp_kernels.blend import ALWAYS, LEFT_OUT, Attribution, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import Tiles, tiles

PRECISIONS = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    opacities: Tensor  # [N] activated, in the graph, before dropout
    blended: Tensor  # [C,N] opacities as they were blended: after dropout, compensated where prefiltered
    absgrad: Tensor | None  # [C,N,2] px^-1, filled by backward
    tiles: Tiles
    colors: Tensor  # [C,N,3] before blending, in the graph; 0 where not visible
    background: Tensor | None  # [C,3]; None: black

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
    amp: str = "none"  # none, bf16, fp16: precision of colours and their gradients, see `lowered`

    backend: ClassVar[str]  # of the kernels, also those of the loss and the optimizer
    deterministic: ClassVar[bool] = True  # the same bits every time
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
        """Draw the Gaussians.

        Args:
            sh_degree: at most that of the splats; bands above it rest.
            background: [C,3] behind what stays transparent; None: black.
            absgrad: have backward fill `absgrad`.
            depth: also blend the depths.
            dropout: [N] factors of the opacities in this picture, which stay at most 1; None: 1.

        Raises: RuntimeError where the kernels are missing, with the remedy.
        """
        scales, opacities = splats.drawn()
        width, height = camera.width, camera.height
        present = opacities if dropout is None else _dropped(opacities, dropout)
        means2d, conics, depths, radii, compensations = project(
            splats.means, splats.quats, scales, present, camera.viewmats, camera.Ks, width, height,
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
        image, alpha = blend(
            means2d, conics, channels, blended, binned, width, height, background=behind,
            max_splats_per_pixel=self.max_splats_per_pixel, absgrad=buffer, backend=self.backend,
        )  # fmt: skip
        expected = image[..., 3:] / alpha.clamp_min(1e-8) if depth else None
        image = image[..., :3] if depth else image
        return Render(
            image, alpha, expected, means2d, conics, radii, visible, scales, opacities, blended, buffer,
            binned, colors, background,
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
        """Every Gaussian's exact share in the pixels of a render, dropout included.

        Args:
            maps: [C,H,W,M]; M may be 0.
            threshold: a map's pixel above it is a hit.
            target: [C,H,W,3] what the picture should be, for what leaving a Gaussian out would do.
            want: names of the fields; the cheap ALWAYS come anyway. None: those, and with `target` LEFT_OUT.
        """
        if want is None:
            want = ALWAYS if target is None else (*ALWAYS, *LEFT_OUT)
        return attribute(
            render.means2d, render.conics, render.blended, render.tiles, render.width, render.height, maps,
            threshold=threshold, max_splats_per_pixel=self.max_splats_per_pixel, want=want,
            colors=render.colors, image=render.image, target=target, backend=self.backend,
        )  # fmt: skip


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


def lowered(colors: Tensor, amp: str) -> Tensor:
    """Colours [C,N,3] that have been in a lower precision, and whose gradient will have been: float32 again.

    This shows what half precision costs a method. It saves nothing by itself: the kernels take float32, and
    their sums over pixels are float32 whatever `amp` says. Geometry and opacities never pass through here: a
    position of 11 bits (fp16; 8 for bf16) moves by up to a pixel in a picture wider than 2048 px (256 px).

    Args:
        amp: none (the tensor itself), bf16, fp16.
    """
    return colors if amp == "none" else _Lowered.apply(colors, PRECISIONS[amp])


class _Lowered(torch.autograd.Function):
    """There and back in both directions; on its way back a gradient of any size fits."""

    @staticmethod
    def forward(ctx, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[override]
        if not grad.numel():
            return grad, None
        # times a power of two, so exactly, that puts the largest into [2^14, 2^15): below fp16's 65504, and
        # far from its smallest. It follows from this gradient alone: no scaler that would skip steps, or
        # whose state a checkpoint would have to hold.
        exponent = torch.frexp(grad.abs().amax().float()).exponent.clamp(-111, 128)
        return (grad * _power(15 - exponent)).to(ctx.dtype).to(grad.dtype) * _power(exponent - 15), None


def _power(exponent: Tensor) -> Tensor:
    """2^exponent as float32, for int32 from -126 to 127: its bits, since a device's `pow` may round."""
    return ((exponent + 127) << 23).view(torch.float32)


def _dropped(opacities: Tensor, dropout: Tensor) -> Tensor:
    if dropout.shape != opacities.shape:
        raise ValueError(f"dropout: expected {list(opacities.shape)}, got {tuple(dropout.shape)}")
    return (opacities * dropout).clamp_max(1)


@dataclass
class CPU(Rasterizer):
    """The C++ kernels: AVX-512, AVX2 or portable, chosen at run time."""

    backend: ClassVar[str] = "cpu"


@dataclass
class Reference(Rasterizer):
    """The readable torch kernels: for tests and tiny scenes, thousands of times slower."""

    backend: ClassVar[str] = "reference"
