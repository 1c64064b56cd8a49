"""Per-Gaussian statistics: one float per row that accumulates what the views say about each Gaussian.

A *channel* computes a value [N] from one view. An *accumulator* (sum, square, max) collects the values of
several views in a statistic: `error.max` is the channel `error` with the accumulator `max`. A channel is
gathered either during training, from the view of each step and its backward pass, or in a survey of training
views just before an event (`survey.py`). A view that does not see a Gaussian adds 0 to it.
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
class Observation:
    """One rendered view as a channel reads it. Only a survey fills the last three fields."""

    splats: Splats
    camera: Camera
    render: Render
    visible: Tensor  # [N] bool
    downscale: int = 1  # factor by which the view was reduced
    attribution: Attribution | None = None  # how much each Gaussian contributes to the pixels
    pixel_maps: dict[str, Tensor] = field(default_factory=dict)  # name -> [H,W]
    footprints: Tensor | None = None  # [N] px


@dataclass(frozen=True)
class Channel:
    """A value [N] per view; `value(observation)` is 0 for Gaussians that the view does not see.

    In a survey it is also 0 for Gaussians that contribute to no pixel.

    survey: the channel is gathered in a survey; otherwise during training.
    requires: what the rasterizer has to compute for it: "absgrad", or fields of `Attribution`.
    pixel_maps: names of the pixel maps that it reads.
    statistics: names of the statistics that it reads.
    """

    value: Callable[[Observation], Tensor]
    survey: bool = False
    requires: tuple[str, ...] = ()
    pixel_maps: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()


CHANNELS: dict[str, Channel] = {}


def channel(
    *requires: str, survey: bool = False, pixel_maps: tuple[str, ...] = (), statistics: tuple[str, ...] = ()
) -> Callable[[Callable[[Observation], Tensor]], Callable[[Observation], Tensor]]:
    """Register the decorated function as the channel of its name; see `Channel` for the arguments."""

    def register(function: Callable[[Observation], Tensor]) -> Callable[[Observation], Tensor]:
        CHANNELS[function.__name__] = Channel(function, survey, requires, pixel_maps, statistics)
        return function

    return register


def _sum(row: Tensor, value: Tensor) -> None:
    row += value


def _square(row: Tensor, value: Tensor) -> None:
    row.addcmul_(value, value)


def _max(row: Tensor, value: Tensor) -> None:
    torch.maximum(row, value, out=row)


# There is also `ema`, a moving average over surveys: `survey.py` updates it, and no event clears it.
ACCUMULATORS: dict[str, Callable[[Tensor, Tensor], None]] = {"sum": _sum, "square": _square, "max": _max}
# How many views saw a row: training views since the last event, and views of the last survey.
COUNTS = ("views", "surveyed")


def check_statistic(name: str) -> None:
    """Check that a statistic exists.

    Raises: ValueError for an unknown channel or accumulator.
    """
    if name in COUNTS:
        return
    base, _, accumulator = name.partition(".")
    check_choice("statistic", base, CHANNELS)
    known = (*ACCUMULATORS, "ema") if CHANNELS[base].survey else tuple(ACCUMULATORS)
    check_choice(f"statistic {base}", accumulator, known)


def training_statistics(names: Iterable[str]) -> set[str]:
    """Return those of the statistics that are gathered during training."""
    return {name for name in names if (name == "views" if name in COUNTS else not _channel_of(name).survey)}


def survey_statistics(names: Iterable[str]) -> set[str]:
    """Return those of the statistics that are gathered in a survey."""
    return {name for name in names if (name == "surveyed" if name in COUNTS else _channel_of(name).survey)}


def _channel_of(name: str) -> Channel:
    return CHANNELS[name.partition(".")[0]]


def accumulate(names: Iterable[str], observation: Observation) -> None:
    """Add one view to the statistics of these names; each channel is computed once."""
    values: dict[str, Tensor] = {}
    for name in sorted(names):
        row = observation.splats.row_stat(name)
        if name in COUNTS:
            row += observation.visible
            continue
        base, _, accumulator = name.partition(".")
        if base not in values:
            values[base] = CHANNELS[base].value(observation)
        if accumulator in ACCUMULATORS:
            ACCUMULATORS[accumulator](row, values[base])


@channel()
def grad2d(observation: Observation) -> Tensor:
    """Return the length of d loss / d means2d, in NDC^-1.  Source: Kerbl et al. 2023, section 5.2."""
    return _gradient_length(observation.render.means2d.grad, observation)


@channel("absgrad")
def absgrad(observation: Observation) -> Tensor:
    """Return the same length for the sum over pixels of absolute gradients, which cannot cancel, in NDC^-1.

    Source: Ye et al. 2024, "AbsGS", eq. 7.
    """
    return _gradient_length(observation.render.absgrad, observation)


@channel()
def grad2d_px(observation: Observation) -> Tensor:
    """Return the length of d loss / d means2d, in px^-1."""
    return _gradient_length(observation.render.means2d.grad, observation, ndc=False)


@channel("absgrad")
def absgrad_px(observation: Observation) -> Tensor:
    """Return the length of the sum over pixels of absolute gradients, in px^-1."""
    return _gradient_length(observation.render.absgrad, observation, ndc=False)


@channel()
def ellipse(observation: Observation) -> Tensor:
    """Return the area of the ellipse in which alpha exceeds 1/255, px, also outside the image."""
    a, b, c = observation.render.conics[0].unbind(-1)
    log_ratio = (255 * observation.render.blended_opacities[0]).clamp_min(1).log()
    area = 2 * torch.pi * log_ratio * (a * c - b * b).clamp_min(1e-12).rsqrt()
    return torch.where(observation.visible, area, 0).detach()


@channel()
def pixel_grad2d(observation: Observation) -> Tensor:
    """Return grad2d times the number of touched pixels, reduced for Gaussians close to the camera.

    Source: Zhang et al. 2024, "Pixel-GS", eq. 7 and 9. Differs: the area of the ellipse stands for the number
    of pixels.
    """
    splats, viewmat = observation.splats, observation.camera.viewmats[0]
    depth = splats.means.detach() @ viewmat[2, :3] + viewmat[2, 3]
    near = (depth / (0.37 * splats.extent)).clamp(0, 1).square()
    return grad2d(observation) * ellipse(observation) * near


@channel()
def grad3d(observation: Observation) -> Tensor:
    """Return the length of d loss / d means, per world unit."""
    grad = observation.splats.means.grad
    if grad is None:
        return torch.zeros_like(observation.visible, dtype=torch.float32)
    return grad.norm(dim=1)


@channel()
def opacity_pull(observation: Observation) -> Tensor:
    """Return o d loss / d o, signed: the sum over pixels of g d loss / d g with the Gaussian's falloff g."""
    grad = observation.splats.opacity_logits.grad
    if grad is None:
        return torch.zeros_like(observation.visible, dtype=torch.float32)
    transmittance = (1 - observation.splats.opacities.detach()).clamp_min(1e-6)
    return torch.where(observation.visible, grad / transmittance, 0)


def _gradient_length(grad: Tensor | None, observation: Observation, ndc: bool = True) -> Tensor:
    """Return the lengths [N] of gradients [1,N,2], given in px^-1, in NDC^-1 or px^-1."""
    if grad is None:
        return torch.zeros_like(observation.visible, dtype=torch.float32)
    x, y = grad[0].unbind(-1)
    render = observation.render
    width, height = (0.5 * render.width, 0.5 * render.height) if ndc else (1.0, 1.0)
    return torch.hypot(x * width, y * height)
