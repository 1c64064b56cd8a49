"""Where a picture needs its Gaussians: density maps, and points that are spread after one.

Notation: a picture [H,W,D]; a density [H,W], Gaussians per pixel, that sums to their number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

MOST = 1.0  # Gaussians in one pixel of a dithered density


def edges(picture: Tensor, blur: float = 0.0) -> Tensor:
    """Length of the gradient [H,W], over all channels, of a picture; then the mean in a square window.

    Args:
        blur: side of the window, px; up to 1: as it is.
    """
    x, y = slopes(picture)
    strength = (x.square() + y.square()).sum(-1).sqrt()
    return windowed(strength, blur)


def slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y [H,W,D], px^-1."""
    return _central(picture, 1), _central(picture, 0)


def _central(picture: Tensor, axis: int) -> Tensor:
    """Central differences along an axis, one-sided at the border; 0 where there is one pixel alone."""
    if picture.shape[axis] < 2:
        return torch.zeros_like(picture)
    return torch.gradient(picture, dim=axis)[0]


def windowed(values: Tensor, side: float) -> Tensor:
    """Mean of [H,W] in a square window of an odd number of pixels, about `side`; borders count their own."""
    reach = min(round((side - 1) / 2), min(values.shape) - 1)
    if reach < 1:
        return values
    return avg_pool2d(values[None], 2 * reach + 1, 1, reach, count_include_pad=False)[0]


def mixed(strength: Tensor, count: int, uniform: float) -> Tensor:
    """A density that follows a strength [H,W], from 0 on, but for a share that is spread evenly.

    A strength of 0 everywhere is spread evenly altogether.
    """
    even = torch.full_like(strength, 1 / strength.numel())
    total = strength.sum()
    shape = strength / total if total > 0 else even
    return count * (uniform * even + (1 - uniform) * shape)


def capped(density: Tensor, most: float = MOST) -> Tensor:
    """The density with at most so many in a pixel; what is over goes to the other pixels in proportion.

    Raises: ValueError where the picture has not the room.
    """
    count = float(density.sum())
    if count > most * density.numel() * (1 + 1e-6):
        raise ValueError(f"count: expected at most {int(most * density.numel())} here, got {round(count)}")
    flat = density.double().flatten()
    order = flat.sort(descending=True).values
    # the k densest are cut to `most`; the rest is scaled by what is left: the least k that cuts enough
    below = flat.sum() - order.cumsum(0) + order
    ks = torch.arange(len(order), dtype=torch.float64)
    scale = (count - most * ks).clamp_min(0) / below.clamp_min(1e-30)
    k = int((order * scale > most * (1 + 1e-9)).sum())
    return (flat * scale[min(k, len(ks) - 1)]).clamp_max(most).view_as(density).float()


def sampled(density: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points [count,2] px, drawn independently from a density, anywhere inside their pixels."""
    sums = density.double().flatten().cumsum(0)
    draws = torch.rand(count, generator=generator, dtype=torch.float64) * sums[-1]
    pixels = torch.searchsorted(sums, draws, right=True).clamp_max(len(sums) - 1)
    within = torch.rand(count, 2, generator=generator)
    return _places(pixels, density.shape[1]) + within


def dithered(density: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points [count,2] px at centres of pixels, by error diffusion of a density.

    What diffusion gives too many of, the thinnest places lose; what it lacks, the densest free pixels get.

    Raises: ValueError for more points than pixels.
    Source: Floyd and Steinberg 1976; for Gaussians: Zeng et al. 2025, "Instant GaussianImage", section 3.2.
    Differs: the number is given, not the sum of the map; edges lose what would fall outside to their
        neighbours inside.
    """
    noise = torch.rand(density.shape, generator=generator, dtype=torch.float64)
    dots = diffused(capped(density).double().numpy(), noise.numpy())
    pixels = torch.from_numpy(dots.ravel().nonzero()[0])
    flat = density.flatten()
    if len(pixels) > count:
        keep = flat[pixels].argsort(descending=True, stable=True)[:count]
        pixels = pixels[keep].sort().values
    elif len(pixels) < count:
        free = flat.clone()
        free[pixels] = -1.0
        more = free.argsort(descending=True, stable=True)[: count - len(pixels)]
        pixels = torch.cat([pixels, more]).sort().values
    return _places(pixels, density.shape[1]) + 0.5


def diffused(density: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Error diffusion of [H,W] from 0 to 1 to [H,W] bool: 7 to the right, 3, 5 and 1 of 16 below.

    Thresholds [H,W] in [0,1): 0.5 everywhere is the plain method, which leaves the upper border bare where
    the density is small, until enough has piled up; random ones do not.
    A pixel waits for its left neighbour and three above it, so that pixels x + 2 y = t can go at once.
    """
    height, width = density.shape
    waiting = np.zeros((height + 1, width + 2))  # a margin at both sides and below
    waiting[:height, 1:-1] = density
    dots = np.zeros((height, width), dtype=bool)
    for t in range(width + 2 * (height - 1)):
        y = np.arange(max(0, (t - width + 2) // 2), min(height - 1, t // 2) + 1)
        x = t - 2 * y + 1
        value = waiting[y, x]
        on = value >= thresholds[y, x - 1]
        dots[y, x - 1] = on
        error = value - on
        right, left, below = x < width, x > 1, y < height - 1
        share = 7.0 * right + (3.0 * left + 5.0 + 1.0 * right) * below
        unit = np.divide(error, share, out=np.zeros_like(error), where=share > 0)
        waiting[y, x + 1] += 7 * unit * right
        waiting[y + 1, x - 1] += 3 * unit * left * below
        waiting[y + 1, x] += 5 * unit * below
        waiting[y + 1, x + 1] += unit * right * below
    return dots


def at(values: Tensor, means: Tensor) -> Tensor:
    """The pixels of [H,W,...] that points [N,2] px lie in, [N,...]; outside the picture the nearest."""
    height, width = values.shape[:2]
    x = means[:, 0].floor().long().clamp(0, width - 1)
    y = means[:, 1].floor().long().clamp(0, height - 1)
    return values[y, x]


def blurred(values: Tensor, sigma: float) -> Tensor:
    """Mean of [H,W] under a Gaussian of `sigma` px; at the border of what is inside."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(values)
    return _convolved(values, kernel, reach) / _convolved(torch.ones_like(values), kernel, reach)


def _convolved(values: Tensor, kernel: Tensor, reach: int) -> Tensor:
    rows = torch.nn.functional.conv2d(pad(values[None, None], (reach, reach)), kernel[None, None, None])
    return torch.nn.functional.conv2d(pad(rows, (0, 0, reach, reach)), kernel[None, None, :, None])[0, 0]


def _places(pixels: Tensor, width: int) -> Tensor:
    """Corners [N,2] of pixels counted along the lines."""
    return torch.stack([pixels % width, pixels // width], 1).float()
