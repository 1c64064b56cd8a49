"""Structural similarity per pixel, in plain torch.

Source: Wang et al. 2004, "Image quality assessment", eq. 13, with sample covariances from E[xy] - E[x]E[y].
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

RADIUS, SIGMA = 5, 1.5  # px
C1, C2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 for values in [0, 1]


def ssim(image, target) -> Tensor:
    x, y = image, target.detach()
    mean_x, mean_y = blur(x), blur(y)
    var_x = blur(x * x) - mean_x * mean_x
    var_y = blur(y * y) - mean_y * mean_y
    cov = blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
    return likeness / ((mean_x * mean_x + mean_y * mean_y + C1) * (var_x + var_y + C2))


def blur(image: Tensor) -> Tensor:
    """Return the Gaussian mean of [C,H,W,D] over 11x11 pixels; the image is padded with 0."""
    taps = torch.arange(-RADIUS, RADIUS + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (taps / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    planes = image.movedim(-1, 1).flatten(0, 1)[:, None]  # [C*D, 1, H, W]
    planes = conv2d(planes, kernel[None, None, None, :], padding=(0, RADIUS))
    planes = conv2d(planes, kernel[None, None, :, None], padding=(RADIUS, 0))
    return planes[:, 0].unflatten(0, (image.shape[0], image.shape[3])).movedim(1, -1)
