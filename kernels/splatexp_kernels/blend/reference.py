"""Front-to-back alpha blending, in plain torch: tile by tile, [pixels, Gaussians] at once.

Notation: pixel p, Gaussian k of its tile, front to back; d = pixel centre - means2d.
alpha_pk = min(ALPHA_MAX, o_k exp(-(a dx^2 + c dy^2) / 2 - b dx dy)), taken as 0 below ALPHA_MIN;
T_pk = product over j < k of (1 - alpha_pj); weight w_pk = T_pk alpha_pk. A pixel stops before the
Gaussian that would take T to T_MIN or below.
Source: Porter and Duff 1984; Kerbl et al. 2023, eq. 2-3 and appendix C.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from splatexp_kernels.constants import ALPHA_MAX, ALPHA_MIN, T_MIN


class Attribution(NamedTuple):
    """The contribution of each Gaussian to C images, summed over the pixels it contributes to; None: not
    computed.

    The last three fields describe the effect of removing it while all others stay as they are: the image
    would lose dC = alpha dC/dalpha, and r = image - target becomes r - dC.
    """

    weight_sum: Tensor  # [C,N] sum of w
    weight_max: Tensor | None  # [C,N] largest w
    weighted: Tensor  # [C,N,M] sum of w * map
    hits: Tensor | None  # [C,N,M] int32, pixels where map > threshold
    pixels: Tensor | None  # [C,N] int32, pixels
    covered: Tensor | None = None  # [C,N,M] sum of map
    dominant: Tensor | None = None  # [C,N] int32, pixels where its w is the largest; the nearest of equals
    distance: Tensor | None = None  # [C,N] px, sum of |pixel centre - means2d|
    removal: Tensor | None = None  # [C,N] sum of |dC|^2
    removal_loss: Tensor | None = None  # [C,N] sum of |r - dC|^2 - |r|^2; below 0 where it does harm
    sensitivity: Tensor | None = None  # [C,N] sum of (sum over channels of dC/dg)^2, alpha = opacity g


DEFAULT_FIELDS = ("weight_sum", "weight_max", "weighted", "hits", "pixels")  # fields that are always computed
LEAVE_ONE_OUT_FIELDS = ("removal", "removal_loss", "sensitivity")  # fields that need colors, image and target


def blend(
    means2d, conics, colors, opacities, tiles, width, height, *, background, max_splats_per_pixel, absgrad
) -> tuple[Tensor, Tensor]:
    C, _, D = colors.shape
    means2d, conics, opacities = means2d.flatten(0, 1), conics.flatten(0, 1), opacities.flatten()
    rows, values = [], []
    for pixels, splats in walk(tiles, C, width, height):
        offsets = offsets_of(pixels, means2d[splats], width, height)
        if absgrad is not None and offsets.requires_grad:
            offsets.register_hook(_adder(absgrad, splats))
        weights, _, through = _weights(offsets, conics[splats], opacities[splats], max_splats_per_pixel)
        rows.append(pixels)
        values.append(torch.cat([weights @ colors.flatten(0, 1)[splats], through], 1))

    out = torch.cat(values)[torch.cat(rows).argsort()]
    image, through = out.unflatten(0, (C, height, width)).split([D, 1], -1)
    if background is not None:
        image = image + through * background[:, None, None, :]
    both = torch.cat([image, 1 - through], -1)
    if absgrad is not None and both.requires_grad:
        both.register_hook(_clearer(absgrad))  # runs before the tiles' hooks
    return both[..., :D], both[..., D:]


@torch.no_grad()
def attribute(
    means2d, conics, opacities, tiles, width, height, maps,
    *, threshold, max_splats_per_pixel, want, colors, image, target,
) -> Attribution:  # fmt: skip
    C, N = opacities.shape
    M = maps.shape[-1]
    means2d, conics, opacities = means2d.flatten(0, 1), conics.flatten(0, 1), opacities.flatten()
    maps = maps.flatten(0, 2)
    sums = {name: torch.zeros_like(opacities) for name in Attribution._fields}
    sums |= {name: opacities.new_zeros(C * N, M) for name in ("weighted", "hits", "covered")}
    for pixels, splats in walk(tiles, C, width, height):
        offsets = offsets_of(pixels, means2d[splats], width, height)
        weights, alphas, _ = _weights(offsets, conics[splats], opacities[splats], max_splats_per_pixel)
        used = (weights > 0).to(maps.dtype)
        sums["weight_sum"][splats] += weights.sum(0)
        sums["weight_max"][splats] = torch.maximum(sums["weight_max"][splats], weights.amax(0))
        sums["weighted"][splats] += weights.mT @ maps[pixels]
        sums["hits"][splats] += used.mT @ (maps[pixels] > threshold).to(maps.dtype)
        sums["pixels"][splats] += used.sum(0)
        sums["covered"][splats] += used.mT @ maps[pixels]
        sums["distance"][splats] += (used * offsets.norm(dim=-1)).sum(0)
        if len(splats):
            most = torch.nn.functional.one_hot(weights.argmax(1), len(splats))  # the first of equals
            sums["dominant"][splats] += (used * most).sum(0)
        if colors is not None:
            loss = _loss_without(weights, alphas, colors.flatten(0, 1)[splats], image.flatten(0, 2)[pixels])
            residual = (image - target).flatten(0, 2)[pixels, None]
            slope = (loss / alphas.clamp_min(ALPHA_MIN)[..., None]).sum(-1) * opacities[splats]
            sums["removal"][splats] += loss.square().sum((0, 2))
            sums["removal_loss"][splats] += (loss.square() - 2 * loss * residual).sum((0, 2))
            sums["sensitivity"][splats] += torch.where(alphas < ALPHA_MAX, slope, 0).square().sum(0)
    counts = {name: sums[name].int() for name in ("hits", "pixels", "dominant")}
    found = {name: tensor.unflatten(0, (C, N)) for name, tensor in (sums | counts).items()}
    return Attribution(
        **{name: found[name] for name in Attribution._fields if name in (*DEFAULT_FIELDS, *want)}
    )


def _loss_without(weights, alphas, colors, image):
    """Return what the pixels' colors [p,k,D] lose without a Gaussian, all others unchanged; image: [p,D]."""
    shares = weights[..., None] * colors
    behind = image[:, None] - shares.cumsum(1)  # with the background
    return shares - (alphas / (1 - alphas))[..., None] * behind


def walk(tiles, cameras, width, height):
    """Of each tile: flat indices of their pixels in [C,H,W] and of their Gaussians in [C,N]."""
    ys, xs = torch.arange(height), torch.arange(width)
    grid = (ys[:, None] // tiles.tile_height) * tiles.tiles_x + xs // tiles.tile_width
    tile_of = torch.arange(cameras)[:, None, None] * (tiles.tiles_x * tiles.tiles_y) + grid
    by_tile = tile_of.flatten().argsort(stable=True).to(tiles.order.device)
    counts = tile_of.flatten().bincount(minlength=len(tiles.starts)).tolist()
    for pixels, start, end in zip(
        by_tile.split(counts), tiles.starts.tolist(), tiles.ends.tolist(), strict=True
    ):
        yield pixels, tiles.order[tiles.ids[start:end].long()].long()


def offsets_of(pixels, means2d, width, height):
    """Offsets [p,k,2] px from Gaussians to pixel centres."""
    inside = pixels % (width * height)
    centres = torch.stack([inside % width, inside // width], -1) + 0.5
    return centres.to(means2d.dtype)[:, None, :] - means2d


def _weights(offsets, conics, opacities, max_splats_per_pixel):
    """Weights and alphas [p,k] of Gaussians in pixels, and what shines through behind them all [p,1]."""
    x, y = offsets.unbind(-1)
    a, b, c = conics.unbind(-1)
    alphas = (opacities * torch.exp(-0.5 * (a * x * x + c * y * y) - b * x * y)).clamp_max(ALPHA_MAX)
    with torch.no_grad():
        used = alphas >= ALPHA_MIN
        used &= torch.cumprod(torch.where(used, 1 - alphas, 1.0), 1) > T_MIN
        if max_splats_per_pixel > 0:
            used &= used.cumsum(1) <= max_splats_per_pixel
    alphas = torch.where(used, alphas, 0.0)
    through = torch.cumprod(torch.cat([alphas.new_ones(len(alphas), 1), 1 - alphas], 1), 1)
    return through[:, :-1] * alphas, alphas, through[:, -1:]


def _adder(absgrad, splats):
    """A hook that adds the per-pixel |gradient| of offsets [p,k,2] to `absgrad` [C,N,2]."""

    def hook(gradient):
        absgrad.view(-1, 2).index_add_(0, splats, gradient.abs().sum(0))

    return hook


def _clearer(absgrad):
    """A hook that empties `absgrad`."""

    def hook(_):
        absgrad.zero_()

    return hook
