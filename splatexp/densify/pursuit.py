"""Matching pursuit: find where one more Gaussian would lower an image's error most, at several sizes.

Notation: r [H,W,D] is the residual of an image, target minus rendering; w is a round Gaussian of standard
deviation s px, whose squared norm is pi s^2. The colour that lowers the squared error most is
<r, w> / <w, w>, and it lowers it by <r, w>^2 / <w, w> = 4 pi s^2 |G_s * r|^2, where G_s * r is the residual
blurred by a normalized Gaussian. This is a matched filter for each size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

SMALLEST_SIZE = 1.0  # px; the sizes are this times powers of two
PEAK_DISTANCE = 1.5  # peaks of one size are at least this many standard deviations apart


class Found(NamedTuple):
    """Round Gaussians that would lower the error, best first."""

    means: Tensor  # [P,2] px
    deviations: Tensor  # [P] standard deviations, px
    colors: Tensor  # [P,D] the colours that lower the squared error most, each by itself
    gains: Tensor  # [P] reduction of the squared error, summed over pixels and channels


@torch.no_grad()
def pursue(residual: Tensor, count: int, min_gain: float = 0.0) -> Found:
    """Return at most `count` Gaussians that a residual [H,W,D] asks for, each with a gain above `min_gain`.

    Gaussians of one size are PEAK_DISTANCE apart; of two sizes, none lies within the smaller standard
    deviation of a better one.

    Source: Mallat and Zhang 1993, "Matching pursuits". Differs: many Gaussians are found in one residual.
    """
    height, width, _ = residual.shape
    planes = residual.permute(2, 0, 1)[None].contiguous()
    found, size = [], SMALLEST_SIZE
    while size <= max(SMALLEST_SIZE, min(height, width) / 8):
        found.append(_peaks(planes, size, min_gain))
        size *= 2
    peaks = Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    order = peaks.gains.argsort(descending=True, stable=True)[: 4 * count]
    peaks = Found(*(part[order] for part in peaks))
    kept = _without_overlap(peaks)[:count]
    return Found(*(part[kept] for part in peaks))


def _peaks(planes: Tensor, size: float, min_gain: float) -> Found:
    """Return the local maxima of the gain at one size, for a residual given as [1,D,H,W]."""
    channels = planes.shape[1]
    radius, stride = math.ceil(3 * size), max(1, int(size / 2))
    taps = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    taps = (taps.square() / (-2 * size * size)).exp()
    taps = (taps / taps.sum()).view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    blurred = conv2d(planes, taps, padding=(0, radius), stride=(1, stride), groups=channels)
    blurred = conv2d(blurred, taps.mT, padding=(radius, 0), stride=(stride, 1), groups=channels)
    gain = 4 * math.pi * size * size * blurred.square().sum(1, keepdim=True)
    window = 2 * math.ceil(PEAK_DISTANCE * size / stride) + 1
    highest = max_pool2d(gain, (1, window), 1, (0, window // 2))
    highest = max_pool2d(highest, (window, 1), 1, (window // 2, 0))
    y, x = ((gain == highest) & (gain > min_gain))[0, 0].nonzero(as_tuple=True)
    means = torch.stack([x, y], 1) * stride + 0.5
    return Found(means, means.new_full((len(x),), size), 2 * blurred[0, :, y, x].T, gain[0, 0, y, x])


def _without_overlap(found: Found) -> Tensor:
    """Return the indices that are left when every Gaussian too close to a better one is dropped."""
    from scipy.spatial import cKDTree

    means, sizes = found.means.double().cpu().numpy(), found.deviations.cpu().numpy()
    dropped = torch.zeros(len(means), dtype=torch.bool)
    near: list[tuple[int, int]] = []
    for size in sorted(set(sizes.tolist())):
        rows = (sizes >= size).nonzero()[0]
        pairs = cKDTree(means[rows]).query_pairs(size, output_type="ndarray")
        pairs = rows[pairs][(sizes[rows[pairs]] == size).any(1)]
        near += [(int(min(pair)), int(max(pair))) for pair in pairs]
    for better, worse in sorted(near):
        if not dropped[better]:
            dropped[worse] = True
    return (~dropped).nonzero().squeeze(1).to(found.means.device)
