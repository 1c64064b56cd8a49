"""Births in a picture: new rows of the plane where the last drawing is wrong, in the colour that it lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from splatexp.densify.context import Context
from splatexp.densify.operator import Operator, Shape
from splatexp.densify.pursuit import Found, pursue
from splatexp.densify.selectors import select
from splatexp.gaussians.covariance import Covariance
from splatexp.gaussians.edit import Edit
from splatexp.gaussians.plane import Plane
from splatexp.system.devices import sent

# of a pixel: its squared error, mean over channels; 1. Of a Gaussian: by how much it lowers that error
SCORES = ("error", "one", "gain")
SHARE = 0.7  # of the colour that would be best for one alone: several are born at once


@torch.no_grad()
def residual(splats: Plane, context: Context) -> Tensor:
    """What the picture lacks, target - drawing, [H,W,D], at the resolution of this step.

    Raises: ValueError without a scene to look at.
    """
    if context.scene is None or context.raster is None:
        raise ValueError("densify: operate=birth needs a picture to look at, got none")
    behind = torch.tensor(context.scene.background or (0.0, 0.0, 0.0))
    views = context.scene.train if context.views is None else context.views
    target, _, camera = views[0].target(context.factor, behind)
    background = sent(behind, context.raster.device)[None]
    return (target - context.raster(splats, camera, sh_degree=0, background=background).image)[0]


def plan(
    splats: Plane, step: int, context: Context, random: torch.Generator, *, score: str, how: str,
    threshold: float, shape: Shape, least: int, most: int | None,
) -> Edit | None:  # fmt: skip
    """Rows at pixels that are selected by their error; None where no pixel is.

    With score=gain they are those of `pursue`, of any size, whose gain is above the threshold.

    A newborn is round, of a standard deviation of the rows' mean spacing over `shrink`, and has the colour
    that is lacking on average over a square of twice that; it lies anywhere in its pixel. It is of the layer
    of the newest row.

    Args:
        score: one of SCORES. how, threshold, least, most: as for `select`, of pixels.
        shape: its `shrink` is read.
    """
    lacking = residual(splats, context)
    height, width, _ = lacking.shape
    if score == "gain":
        count = height * width if most is None else most
        gain = max(threshold, context.worth) / context.factor**2
        return _born(splats, step, context.factor, pursue(lacking, count, gain))
    scores = lacking.square().mean(-1).flatten()
    scores = scores if score == "error" else torch.ones_like(scores)
    everywhere = torch.ones_like(scores, dtype=torch.bool)
    order = torch.arange(len(scores), device=scores.device)
    pixels = select(how, scores, threshold, everywhere, order, least=least, most=most, random=random)
    if not len(pixels) or not len(splats):
        return None
    zoom = context.factor
    side = math.sqrt(height * width / (len(splats) + len(pixels)))
    deviation = max(side / (shape.shrink or BIRTH.own["shrink"]), 0.3)  # type: ignore[operator]
    corners = torch.stack([pixels % width, pixels // width], 1).to(lacking)
    means = zoom * (corners + torch.rand(len(pixels), 2, generator=random).to(lacking))
    variance = means.new_full((len(pixels),), (zoom * deviation) ** 2)
    covariance = Covariance(variance, torch.zeros_like(variance), variance, variance.square())
    colors = _windowed(lacking, deviation).flatten(0, 1)[pixels]
    return _edit(splats, step, splats.like(means, covariance, colors))


def _born(splats: Plane, step: int, zoom: int, found: Found) -> Edit | None:
    """Rows of what a pursuit has found in a picture that is reduced by `zoom`."""
    if not len(found.means) or not len(splats):
        return None
    variance = (zoom * found.deviations).square()
    covariance = Covariance(variance, torch.zeros_like(variance), variance, variance.square())
    return _edit(splats, step, splats.like(zoom * found.means, covariance, SHARE * found.colors))


def _edit(splats: Plane, step: int, values: dict[str, Tensor]) -> Edit:
    """All rows, then the newborn, which are of the layer of the newest row."""
    born, kept = len(values["means"]), torch.arange(len(splats), device=splats.means.device)
    parents = torch.cat([kept, splats.uid.argmax().expand(born)])
    fresh = torch.arange(len(parents), device=kept.device) >= len(kept)
    return Edit(parents, fresh, values, step=step)


def _windowed(picture: Tensor, deviation: float) -> Tensor:
    """Means over squares of about twice a standard deviation, [H,W,D]; beyond the border counts nothing."""
    reach = min(round(deviation), (min(picture.shape[:2]) - 1) // 2)
    if not reach:
        return picture
    planes = pad(picture.permute(2, 0, 1)[None], (reach,) * 4)
    ones = pad(torch.ones_like(planes[:, :1, reach:-reach, reach:-reach]), (reach,) * 4)
    size = 2 * reach + 1
    means = avg_pool2d(planes, size, 1) / avg_pool2d(ones, size, 1)
    return means[0].permute(1, 2, 0)


def _not_of_rows(splats: Plane, rows: Tensor, shape: Shape, step: int, generator: torch.Generator) -> Edit:
    raise TypeError("birth: expected a plan from pixels, got rows")


BIRTH = Operator(_not_of_rows, births=1, own={"shrink": 2.0})  # type: ignore[arg-type]
