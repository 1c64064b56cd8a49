"""What is remembered of every Gaussian: a channel of one view, summed up over views in rows of floats.

A channel is gathered along training, from the step's own view and its backward pass, or in a survey of
training views just before an event (`survey.py`). A view that does not see a Gaussian adds 0 to it, so no row
is ever picked out. The statistic `error.max` is the channel `error` under the accumulator `max`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.gaussians.splats import Splats
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import check_choice
from splatexp_kernels.blend import Attribution


@dataclass
class Sight:
    """One view of the Gaussians, as a channel sees it. In a survey there are also shares and pixel maps."""

    splats: Splats
    camera: Camera
    render: Render
    seen: Tensor  # [N] bool
    factor: int = 1  # by which the picture was reduced
    shares: Attribution | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)  # name -> [H,W]
    footprints: Tensor | None = None  # [N] px


@dataclass(frozen=True)
class Channel:
    """`value(sight)` gives [N], 0 where it was not seen, in a survey also where it has no part in a pixel.

    survey: gathered in a survey; else along training.
    wants: what it takes of the rasterizer: "absgrad", or fields of `Attribution`.
    maps: pixel maps that it reads.
    needs: statistics that it reads.
    """

    value: Callable[[Sight], Tensor]
    survey: bool = False
    wants: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


CHANNELS: dict[str, Channel] = {}


def channel(
    *wants: str, survey: bool = False, maps: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Sight], Tensor]], Callable[[Sight], Tensor]]:
    """Make a function a channel of its name."""

    def register(function: Callable[[Sight], Tensor]) -> Callable[[Sight], Tensor]:
        CHANNELS[function.__name__] = Channel(function, survey, wants, maps, needs)
        return function

    return register


def _sum(row: Tensor, value: Tensor) -> None:
    row += value


def _square(row: Tensor, value: Tensor) -> None:
    row.addcmul_(value, value)


def _max(row: Tensor, value: Tensor) -> None:
    torch.maximum(row, value, out=row)


# `ema` is no sum over views: a survey writes it (see `survey.py`), and no event clears it
ACCUMULATORS: dict[str, Callable[[Tensor, Tensor], None]] = {"sum": _sum, "square": _square, "max": _max}
COUNTS = ("views", "surveyed")  # of training steps since the last event and of the last survey that saw it


def check_statistic(name: str) -> None:
    """Raises: ValueError for what is no statistic."""
    if name in COUNTS:
        return
    base, _, how = name.partition(".")
    check_choice("score.needs", base, CHANNELS)
    check_choice("score.needs", how, (*ACCUMULATORS, "ema") if CHANNELS[base].survey else ACCUMULATORS)


def along_training(names: Iterable[str]) -> set[str]:
    """Those that are gathered step by step."""
    return {name for name in names if (name == "views" if name in COUNTS else not _channel(name).survey)}


def surveyed(names: Iterable[str]) -> set[str]:
    """Those that are gathered in a survey."""
    return {name for name in names if (name == "surveyed" if name in COUNTS else _channel(name).survey)}


def _channel(name: str) -> Channel:
    return CHANNELS[name.partition(".")[0]]


def add(names: Iterable[str], sight: Sight) -> None:
    """Add a view to statistics; each channel is computed once."""
    values: dict[str, Tensor] = {}
    for name in sorted(names):
        row = sight.splats.row_stat(name)
        if name in COUNTS:
            row += sight.seen
            continue
        base, _, how = name.partition(".")
        if base not in values:
            values[base] = CHANNELS[base].value(sight)
        if how in ACCUMULATORS:
            ACCUMULATORS[how](row, values[base])


@channel()
def grad2d(sight: Sight) -> Tensor:
    """Length of d loss / d means2d, in NDC. Source: Kerbl et al. 2023, section 5.2."""
    return _length(sight.render.means2d.grad, sight)


@channel("absgrad")
def absgrad(sight: Sight) -> Tensor:
    """The same of absolute values summed over pixels, which cannot cancel. Source: Ye et al. 2024, eq. 7."""
    return _length(sight.render.absgrad, sight)


@channel()
def grad2d_px(sight: Sight) -> Tensor:
    """Length of d loss / d means2d, per pixel of way."""
    return _length(sight.render.means2d.grad, sight, ndc=False)


@channel("absgrad")
def absgrad_px(sight: Sight) -> Tensor:
    """The same of absolute values summed over pixels."""
    return _length(sight.render.absgrad, sight, ndc=False)


@channel()
def ellipse(sight: Sight) -> Tensor:
    """Pixels inside the ellipse where alpha is above 1/255, also off the picture."""
    a, b, c = sight.render.conics[0].unbind(-1)
    reach = (255 * sight.render.blended[0]).clamp_min(1).log()
    area = 2 * torch.pi * reach * (a * c - b * b).clamp_min(1e-12).rsqrt()
    return torch.where(sight.seen, area, 0).detach()


@channel()
def pixel_grad2d(sight: Sight) -> Tensor:
    """grad2d times the pixels it touches, less for what is close to the camera.

    Source: Zhang et al. 2024, "Pixel-GS", eq. 7 and 9. Differs: pixels by the ellipse's area, not counted.
    """
    depth = sight.splats.means.detach() @ sight.camera.viewmats[0, 2, :3] + sight.camera.viewmats[0, 2, 3]
    near = (depth / (0.37 * sight.splats.extent)).clamp(0, 1).square()
    return grad2d(sight) * ellipse(sight) * near


@channel()
def grad3d(sight: Sight) -> Tensor:
    """Length of d loss / d means, per world unit."""
    grad = sight.splats.means.grad
    return torch.zeros_like(sight.seen, dtype=torch.float32) if grad is None else grad.norm(dim=1)


@channel()
def opacity_pull(sight: Sight) -> Tensor:
    """o d loss / d o, signed: the sum over pixels of g d loss / d g, with g the Gaussian's falloff."""
    grad = sight.splats.opacity_logits.grad
    if grad is None:
        return torch.zeros_like(sight.seen, dtype=torch.float32)
    return torch.where(sight.seen, grad / (1 - sight.splats.opacities.detach()).clamp_min(1e-6), 0)


def _length(grad: Tensor | None, sight: Sight, ndc: bool = True) -> Tensor:
    """Lengths [N] of gradients [1,N,2] px^-1, in NDC^-1 or px^-1."""
    if grad is None:
        return torch.zeros_like(sight.seen, dtype=torch.float32)
    x, y = grad[0].unbind(-1)
    width, height = (0.5 * sight.render.width, 0.5 * sight.render.height) if ndc else (1.0, 1.0)
    return torch.hypot(x * width, y * height)
