"""Births in an image: new rows where the rendering is wrong, in the colour that is missing there."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from splatexp.densify.context import Context
from splatexp.densify.operator import Operator, OperatorSettings
from splatexp.densify.pursuit import Found, pursue
from splatexp.densify.selectors import select
from splatexp.gaussians.covariance import Covariance
from splatexp.gaussians.edit import Edit
from splatexp.gaussians.splats2d import Splats2D
from splatexp.system.devices import to_device

# error: squared error of a pixel, mean over channels; one: 1 for every pixel; gain: reduction of the squared
# error by a Gaussian
BIRTH_SCORES = ("error", "one", "gain")
COLOR_FRACTION = 0.7  # of the colour that would be best for one Gaussian alone: several are born at once


@torch.no_grad()
def residual_image(splats: Splats2D, context: Context) -> Tensor:
    """Return what the image lacks, target minus rendering, [H,W,D], at the resolution of this step.

    Raises: ValueError where the context has no scene.
    """
    if context.scene is None or context.raster is None:
        raise ValueError("densify: expected an image with operate=birth, got a context without a scene")
    background = torch.tensor(context.scene.background or (0.0, 0.0, 0.0))
    views = context.scene.train if context.views is None else context.views
    target, _, camera = views[0].target(context.downscale, background)
    background = to_device(background, context.raster.device)[None]
    return (target - context.raster(splats, camera, sh_degree=0, background=background).image)[0]


def plan_births(
    splats: Splats2D,
    step: int,
    context: Context,
    random: torch.Generator,
    *,
    score: str,
    how: str,
    threshold: float,
    settings: OperatorSettings,
    min_rows: int,
    max_rows: int | None,
) -> Edit | None:
    """Return the edit that adds rows at pixels selected by their error, or None where none is selected.

    With score=gain the new rows are those of `pursue`, of any size, whose gain exceeds the threshold.
    Otherwise a new row is round, with a standard deviation of the mean spacing of the rows divided by
    `shrink`. It lies anywhere in its pixel, and its colour is the mean residual over a square of about twice
    its standard deviation. All of them belong to the layer of the newest row.

    Args:
        score: one of BIRTH_SCORES.
        how, threshold, min_rows, max_rows: as for `select`, of pixels.
        settings: only `shrink` is read.
    """
    residual = residual_image(splats, context)
    height, width, _ = residual.shape
    downscale = context.downscale
    if score == "gain":
        count = height * width if max_rows is None else max_rows
        min_gain = max(threshold, context.min_gain) / downscale**2
        return _from_pursuit(splats, step, downscale, pursue(residual, count, min_gain))
    scores = residual.square().mean(-1).flatten()
    scores = scores if score == "error" else torch.ones_like(scores)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    order = torch.arange(len(scores), device=scores.device)
    pixels = select(
        how, scores, threshold, allowed, order, min_rows=min_rows, max_rows=max_rows, random=random
    )
    if not len(pixels) or not len(splats):
        return None
    spacing = math.sqrt(height * width / (len(splats) + len(pixels)))
    deviation = max(spacing / (settings.shrink or BIRTH.defaults["shrink"]), 0.3)  # type: ignore[operator]
    corners = torch.stack([pixels % width, pixels // width], 1).to(residual)
    means = downscale * (corners + torch.rand(len(pixels), 2, generator=random).to(residual))
    variance = means.new_full((len(pixels),), (downscale * deviation) ** 2)
    covariance = Covariance(variance, torch.zeros_like(variance), variance, variance.square())
    colors = _window_means(residual, deviation).flatten(0, 1)[pixels]
    return _edit(splats, step, splats.new_params(means, covariance, colors))


def _from_pursuit(splats: Splats2D, step: int, downscale: int, found: Found) -> Edit | None:
    """Return the edit that adds what a pursuit has found in an image reduced by `downscale`."""
    if not len(found.means) or not len(splats):
        return None
    variance = (downscale * found.deviations).square()
    covariance = Covariance(variance, torch.zeros_like(variance), variance, variance.square())
    return _edit(
        splats, step, splats.new_params(downscale * found.means, covariance, COLOR_FRACTION * found.colors)
    )


def _edit(splats: Splats2D, step: int, values: dict[str, Tensor]) -> Edit:
    """Return the edit that keeps all rows and adds new ones behind them, in the layer of the newest row."""
    born, kept = len(values["means"]), torch.arange(len(splats), device=splats.means.device)
    parents = torch.cat([kept, splats.uid.argmax().expand(born)])
    fresh = torch.arange(len(parents), device=kept.device) >= len(kept)
    return Edit(parents, fresh, values, step=step)


def _window_means(image: Tensor, deviation: float) -> Tensor:
    """Return means [H,W,D] over squares of about twice a standard deviation, cut off at the border."""
    radius = min(round(deviation), (min(image.shape[:2]) - 1) // 2)
    if not radius:
        return image
    planes = pad(image.permute(2, 0, 1)[None], (radius,) * 4)
    inside = pad(torch.ones_like(planes[:, :1, radius:-radius, radius:-radius]), (radius,) * 4)
    size = 2 * radius + 1
    means = avg_pool2d(planes, size, 1) / avg_pool2d(inside, size, 1)
    return means[0].permute(1, 2, 0)


def _has_no_rows(
    splats: Splats2D, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit:
    raise TypeError("operate=birth: expected a call of plan_births, which selects pixels, got rows")


BIRTH = Operator(_has_no_rows, births=1, defaults={"shrink": 2.0})  # type: ignore[arg-type]
