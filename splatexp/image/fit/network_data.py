"""Training data of the initializer network: images, and the Gaussians that a fit has found for them.

Notation: an image [S,S,3], S px; N Gaussians at a mean spacing of s px.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from splatexp.gaussians.covariance import PARAMETRIZATIONS, Covariance, conics
from splatexp.image.fit import density
from splatexp.image.fit.initial import Initializer
from splatexp.image.fit.network import log_covariances
from splatexp.system.rng import generator
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.tiles import tiles

SPACINGS = (2.5, 20.0)  # px, least and most; log-uniform
MAX_SHAPES = 60  # in a synthetic image
LEARNING_RATES = {"means": 0.5, "shapes": 0.1, "colors": 0.05}  # of Adam, px and 1
PARAMETRIZATION = "log_cholesky"
BIRTHS = 6  # number of times that a fit adds rows where its error is largest
MIN_STD = 0.05  # a crop whose values vary less than this is replaced


class Example(NamedTuple):
    """An image and its fitted Gaussians."""

    image: Tensor  # [S,S,3]
    spacing: float  # s, px
    means: Tensor  # [N,2] px
    logs: Tensor  # [N,3], of Sigma / s^2


def make_examples(count: int, size: int, steps: int, seed: int, images: list[Tensor]) -> Iterator[Example]:
    """Yield examples from crops of the given images [H,W,3], or of synthetic images where there are none."""
    for index in range(count):
        random = generator("example", seed, index)
        image = _crop(images, size, random) if images else synthetic_image(size, random)
        low, high = map(math.log, SPACINGS)
        spacing = math.exp(low + (high - low) * float(torch.rand(1, generator=random)))
        rows = max(BIRTHS + 2, round((size / spacing) ** 2))
        means, covariance = fit_gaussians(image, rows, steps, random)
        spacing = size / rows**0.5
        yield Example(image, spacing, means, log_covariances(covariance, spacing))


def synthetic_image(size: int, random: torch.Generator) -> Tensor:
    """Return an image [S,S,3] of shaded and textured shapes that cover each other, some of them blurred."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")

    def paint() -> Tensor:
        return draw(1) + (0.2 + 0.6 * draw(1)) * (draw(3) - 0.5)

    canvas = paint() + ((x / size)[..., None] - 0.5) * (draw(3) - 0.5)
    canvas = canvas + ((y / size)[..., None] - 0.5) * (draw(3) - 0.5)
    for _ in range(3 + int(draw(1) * MAX_SHAPES)):
        kind, radius = int(draw(1) * 4), size * 0.6 * (0.03 ** draw(1).item())
        (u0, v0), angle = draw(2) * size, math.pi * draw(1).item()
        flat, soft = 0.15 + 0.85 * draw(1).item(), 0.4 * (12 ** (draw(1).item() ** 2))
        along = (x - u0) * math.cos(angle) + (y - v0) * math.sin(angle)
        across = ((y - v0) * math.cos(angle) - (x - u0) * math.sin(angle)) / flat
        inside = {
            0: radius - torch.hypot(along, across),
            1: radius - torch.maximum(along.abs(), across.abs()),
            2: radius - torch.maximum(along.abs() + across, -2 * across),
            3: radius * 0.15 - (across + radius * 0.5 * torch.sin(along / radius * 2)).abs() * flat,
        }[kind] * (flat if kind < 3 else 1.0)
        cover = torch.sigmoid(inside / soft * 2)[..., None]
        color = paint() + (along / radius).clamp(-2, 2)[..., None] * 0.3 * (draw(3) - 0.5)
        if draw(1) < 0.4:
            color = color + 0.5 * draw(1) ** 2 * _noise(size, random)[..., None]
        canvas = canvas + cover * (color - canvas)
    return canvas.clamp(0, 1)


def _noise(size: int, random: torch.Generator) -> Tensor:
    """Return values [S,S] about 0 of one random coarseness, stretched in one direction."""
    coarse = [max(2, int(size / 2 ** (4.5 * torch.rand(1, generator=random).item()))) for _ in range(2)]
    values = torch.randn(1, 1, *coarse, generator=random)
    return interpolate(values, (size, size), mode="bicubic", align_corners=False)[0, 0]


def _crop(images: list[Tensor], size: int, random: torch.Generator) -> Tensor:
    """Return a square of an image, reduced up to four times; of several draws the first that has enough
    contrast.
    """
    crop = torch.zeros(size, size, 3)
    for _ in range(8):
        image = images[int(torch.randint(len(images), (1,), generator=random))]
        most = max(1, min(4, min(image.shape[:2]) // size))
        factor = 1 + int(torch.randint(most, (1,), generator=random))
        room = [length - size * factor for length in image.shape[:2]]
        y, x = (int(torch.randint(rest + 1, (1,), generator=random)) for rest in room)
        crop = image[y : y + size * factor, x : x + size * factor].movedim(-1, 0)[None]
        crop = avg_pool2d(crop, factor)[0].movedim(0, -1).contiguous()
        if crop.std() > MIN_STD:
            break
    return crop


def fit_gaussians(
    image: Tensor, count: int, steps: int, random: torch.Generator
) -> tuple[Tensor, Covariance]:
    """Fit `count` Gaussians to an image by a few steps of Adam; return means [N,2] and covariances of those
    inside the image.

    Some of them start evenly spread, the others are added where the image has the largest error as the fit
    goes on: their final positions follow from the image, not from an initializer.
    """
    height, width, _ = image.shape
    behind = image.mean((0, 1))
    first = count - BIRTHS * (count * 5 // 6 // BIRTHS)
    rows = Initializer("random")(
        image, first, seed=int(torch.randint(2**31, (1,), generator=random)), background=behind
    )
    leaves = {
        "means": rows.means,
        "shapes": PARAMETRIZATIONS[PARAMETRIZATION].shapes(rows.covariance),
        "colors": rows.colors,
    }
    births = {round(steps * 0.6 * (k + 1) / (BIRTHS + 1)) for k in range(BIRTHS)}
    optimizer = _adam(leaves, None)
    for step in range(steps):
        rate = min(1.0, 0.03 + 1.94 * (1 - step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * LEARNING_RATES[group["name"]]
        weights = torch.ones(len(leaves["means"]))
        found, radii = conics(PARAMETRIZATION, leaves["shapes"], weights)
        means, depths = leaves["means"][None], torch.zeros(1, len(weights))
        binned = tiles(means, radii[None], depths, width, height)
        drawn = blend2d(
            means,
            found[None],
            leaves["colors"][None],
            weights[None],
            binned,
            width,
            height,
            background=behind[None],
        )[0][0]
        away = image - drawn
        away.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in births:
            more = (count - first) // len(births)
            optimizer = _adam(_born(leaves, away.detach(), more, random), optimizer)
            leaves = {group["name"]: group["params"][0] for group in optimizer.param_groups}
    means, shapes = leaves["means"].detach(), leaves["shapes"].detach()
    inside = ((means >= 0) & (means < means.new_tensor([width, height]))).all(1)
    return means[inside], PARAMETRIZATIONS[PARAMETRIZATION].covariance(shapes[inside])


def _born(leaves: dict[str, Tensor], away: Tensor, count: int, random: torch.Generator) -> dict[str, Tensor]:
    """Return the rows and `count` more, sampled by the squared error, each with half of the missing colour
    there.
    """
    height, width, _ = away.shape
    error = density.box_mean(away.square().sum(-1), 3)
    means = density.sample_points(error, count, random)
    side = 0.3 * (height * width / (len(leaves["means"]) + count)) ** 0.5
    shapes = torch.tensor([math.log(side), 0.0, math.log(side)]).repeat(count, 1)
    colors = density.pixels_at(away, means) / 2
    fresh = {"means": means, "shapes": shapes, "colors": colors}
    return {name: torch.cat([leaf.detach(), fresh[name]]) for name, leaf in leaves.items()}


def _adam(leaves: dict[str, Tensor], before: torch.optim.Adam | None) -> torch.optim.Adam:
    """Return Adam over the parameters with the moments of an optimizer that had fewer rows; those of new rows
    are 0.
    """
    groups = [{"params": [leaf.requires_grad_()], "name": name} for name, leaf in leaves.items()]
    made = torch.optim.Adam(groups, eps=1e-15)
    for new, old in zip(made.param_groups, before.param_groups if before else [], strict=before is not None):
        leaf, state = new["params"][0], before.state[old["params"][0]]  # type: ignore[union-attr]
        more = len(leaf) - len(old["params"][0])
        moments = {
            name: torch.cat([state[name], state[name].new_zeros(more, *leaf.shape[1:])])
            for name in ("exp_avg", "exp_avg_sq")
        }
        made.state[leaf] = {"step": state["step"], **moments}
    return made
