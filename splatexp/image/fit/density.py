"""Density maps, which say where an image needs its Gaussians, and points that follow such a map.

Notation: an image [H,W,D]; a density [H,W], in Gaussians per pixel, that sums to their number.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

MOST = 1.0  # Gaussians in one pixel of a dithered density


def gradient_magnitude(image: Tensor, blur: float = 0.0) -> Tensor:
    """Return the length of the image's gradient [H,W] over all channels, averaged in a square window.

    Args:
        blur: side of the window, px; up to 1 nothing is averaged.
    """
    x, y = gradients(image)
    strength = (x.square() + y.square()).sum(-1).sqrt()
    return box_mean(strength, blur)


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives along x and y, each [H,W,D], px^-1."""
    return _central(image, 1), _central(image, 0)


def _central(image: Tensor, axis: int) -> Tensor:
    """Return central differences along an axis, one-sided at the border; 0 where there is a single pixel."""
    if image.shape[axis] < 2:
        return torch.zeros_like(image)
    return torch.gradient(image, dim=axis)[0]


def box_mean(values: Tensor, side: float) -> Tensor:
    """Return the mean of [H,W] in a square window of an odd number of pixels, about `side`; at the border of
    what is inside.
    """
    reach = min(round((side - 1) / 2), min(values.shape) - 1)
    if reach < 1:
        return values
    return avg_pool2d(values[None], 2 * reach + 1, 1, reach, count_include_pad=False)[0]


def mix_uniform(strength: Tensor, count: int, uniform: float) -> Tensor:
    """Return a density that follows a nonnegative strength [H,W], except for a fraction that is spread
    evenly.

    A strength of 0 everywhere is spread evenly altogether.
    """
    even = torch.full_like(strength, 1 / strength.numel())
    total = strength.sum()
    shape = strength / total if total > 0 else even
    return count * (uniform * even + (1 - uniform) * shape)


def cap_density(density: Tensor, most: float = MOST) -> Tensor:
    """Return the density with at most `most` Gaussians in a pixel; the excess goes to the other pixels in
    proportion.

    Raises: ValueError where the image has too few pixels.
    """
    count = float(density.sum())
    if count > most * density.numel() * (1 + 1e-6):
        raise ValueError(
            f"count: expected at most {int(most * density.numel())} in this image, got {round(count)}"
        )
    flat = density.double().flatten()
    order = flat.sort(descending=True).values
    # the k densest pixels are cut to `most` and the rest is scaled by what is left; k is the least that
    # suffices
    below = flat.sum() - order.cumsum(0) + order
    ks = torch.arange(len(order), dtype=torch.float64)
    scale = (count - most * ks).clamp_min(0) / below.clamp_min(1e-30)
    k = int((order * scale > most * (1 + 1e-9)).sum())
    return (flat * scale[min(k, len(ks) - 1)]).clamp_max(most).view_as(density).float()


def sample_points(density: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample points [count,2] px independently from a density, anywhere inside their pixels."""
    sums = density.double().flatten().cumsum(0)
    draws = torch.rand(count, generator=generator, dtype=torch.float64) * sums[-1]
    pixels = torch.searchsorted(sums, draws, right=True).clamp_max(len(sums) - 1)
    within = torch.rand(count, 2, generator=generator)
    return _corners(pixels, density.shape[1]) + within


def dither_points(density: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return points [count,2] px at pixel centres, by error diffusion of a density.

    Where diffusion gives too many points, those of the lowest density are dropped; where it gives too few,
    the free pixels of the highest density get one.

    Raises: ValueError for more points than pixels.
    Source: Floyd and Steinberg 1976; for Gaussians: Zeng et al. 2025, "Instant GaussianImage", section 3.2.
    Differs: the number is given, not the sum of the map; the error that would leave the image at a border
        goes to the neighbours inside.
    """
    noise = torch.rand(density.shape, generator=generator, dtype=torch.float64)
    dots = error_diffusion(cap_density(density).double().numpy(), noise.numpy())
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
    return _corners(pixels, density.shape[1]) + 0.5


def error_diffusion(density: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Diffuse the rounding error of [H,W], 0 to 1, and return [H,W] bool: 7/16 goes right, 3/16, 5/16 and
    1/16 below.

    Thresholds [H,W] lie in [0,1). With 0.5 everywhere, the plain method, the upper border stays empty where
    the density is small until enough error has accumulated; random thresholds avoid that. A pixel waits for
    its left neighbour and three above it, so that all pixels with x + 2 y = t can be processed at once.
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


def pixels_at(values: Tensor, means: Tensor) -> Tensor:
    """Return the pixels [N,...] of [H,W,...] in which points [N,2] px lie; outside the image the nearest
    pixels.
    """
    height, width = values.shape[:2]
    x = means[:, 0].floor().long().clamp(0, width - 1)
    y = means[:, 1].floor().long().clamp(0, height - 1)
    return values[y, x]


def gaussian_blur(values: Tensor, sigma: float) -> Tensor:
    """Return the mean of [H,W] under a Gaussian of `sigma` px; at the border of what is inside."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(values)
    return _convolved(values, kernel, reach) / _convolved(torch.ones_like(values), kernel, reach)


def _convolved(values: Tensor, kernel: Tensor, reach: int) -> Tensor:
    rows = torch.nn.functional.conv2d(pad(values[None, None], (reach, reach)), kernel[None, None, None])
    return torch.nn.functional.conv2d(pad(rows, (0, 0, reach, reach)), kernel[None, None, :, None])[0, 0]


def _corners(pixels: Tensor, width: int) -> Tensor:
    """Return the corners [N,2] of pixels that are numbered line by line."""
    return torch.stack([pixels % width, pixels // width], 1).float()
