"""Order-free blending in plain torch: tile by tile, [pixels, Gaussians] at once.

Notation: pixel p, Gaussian k of its tile, d = pixel centre - means2d;
w_pk = weight_k exp(-(a dx^2 + c dy^2) / 2 - b dx dy), taken as 0 below ALPHA_MIN; W_p = sum over k of w_pk.
Source: Zhang et al. 2024, "GaussianImage", section 3.2; Zhang et al. 2025, "Image-GS".
"""

import torch
from torch import Tensor

from splatexp_kernels.blend import reference as alpha
from splatexp_kernels.constants import ALPHA_MIN, NORMALIZER_EPS


def blend2d(
    means2d, conics, colors, weights, tiles, width, height, *, mode, top_k, background
) -> tuple[Tensor, Tensor]:
    if mode == "alpha":
        return alpha.blend(
            means2d, conics, colors, weights, tiles, width, height,
            background=background, max_splats_per_pixel=0, absgrad=None,
        )  # fmt: skip
    C, _, D = colors.shape
    behind = 0.0 if background is None else background[:, None, None, :]
    means2d, conics, weights = means2d.flatten(0, 1), conics.flatten(0, 1), weights.flatten()
    ones = torch.cat([colors, torch.ones_like(colors[..., :1])], -1).flatten(0, 1)
    rows, values = [], []
    for pixels, splats in alpha.walk(tiles, C, width, height):
        offsets = alpha.offsets_of(pixels, means2d[splats], width, height)
        rows.append(pixels)
        values.append(_weights(offsets, conics[splats], weights[splats], top_k) @ ones[splats])
    out = torch.cat(values)[torch.cat(rows).argsort()]
    image, total = out.unflatten(0, (C, height, width)).split([D, 1], -1)
    if mode == "normalized":
        return (image + NORMALIZER_EPS * behind) / (total + NORMALIZER_EPS), total
    return image + behind, total


def _weights(offsets, conics, weights, top_k):
    """Weights [p,k] of Gaussians in pixels, 0 for those that a pixel does not take."""
    x, y = offsets.unbind(-1)
    a, b, c = conics.unbind(-1)
    powers = -0.5 * (a * x * x + c * y * y) - b * x * y
    found = weights * torch.exp(powers.clamp_max(0))  # above 0 by rounding alone
    with torch.no_grad():
        taken = found >= ALPHA_MIN
        if 0 < top_k < len(weights):
            largest = found.argsort(dim=1, descending=True, stable=True)[:, :top_k]
            taken &= torch.zeros_like(taken).scatter_(1, largest, True)
    return torch.where(taken, found, 0.0)
