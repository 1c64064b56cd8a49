"""Where one more Gaussian would help most: matched filters of several sizes over what a picture still lacks.

Notation: a picture's residual r [H,W,D]; a round Gaussian w of standard deviation s px, whose squared norm is
pi s^2. The colour that lowers the squared error most is <r, w> / <w, w>, and it lowers it by
<r, w>^2 / <w, w> = 4 pi s^2 |G_s * r|^2, with G_s * r the residual blurred by a normalised Gaussian.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

SMALLEST = 1.0  # px; sizes are this times powers of two
APART = 1.5  # of one size, peaks are at least so many standard deviations apart


class Found(NamedTuple):
    """Round Gaussians that would help, best first."""

    means: Tensor  # [P,2] px
    deviations: Tensor  # [P] px
    colors: Tensor  # [P,D] that lower the squared error most, each by itself
    gains: Tensor  # [P] by how much, summed over pixels and channels


@torch.no_grad()
def pursue(lacking: Tensor, count: int, least: float = 0.0) -> Found:
    """At most `count` Gaussians that a residual [H,W,D] calls for, each of a gain above `least`.

    Of one size they are APART; of two sizes none lies within the smaller deviation of a better one.

    Source: Mallat and Zhang 1993, "Matching pursuits". Differs: many at once, from one residual.
    """
    height, width, _ = lacking.shape
    planes = lacking.permute(2, 0, 1)[None].contiguous()
    found, size = [], SMALLEST
    while size <= max(SMALLEST, min(height, width) / 8):
        found.append(_peaks(planes, size, least))
        size *= 2
    every = Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    order = every.gains.argsort(descending=True, stable=True)[: 4 * count]
    every = Found(*(part[order] for part in every))
    kept = _apart(every)[:count]
    return Found(*(part[kept] for part in every))


def _peaks(planes: Tensor, size: float, least: float) -> Found:
    """Local maxima of the gain at one size."""
    channels = planes.shape[1]
    reach, stride = math.ceil(3 * size), max(1, int(size / 2))
    taps = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    taps = (taps.square() / (-2 * size * size)).exp()
    taps = (taps / taps.sum()).view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    blurred = conv2d(planes, taps, padding=(0, reach), stride=(1, stride), groups=channels)
    blurred = conv2d(blurred, taps.mT, padding=(reach, 0), stride=(stride, 1), groups=channels)
    gain = 4 * math.pi * size * size * blurred.square().sum(1, keepdim=True)
    around = 2 * math.ceil(APART * size / stride) + 1
    highest = max_pool2d(gain, (1, around), 1, (0, around // 2))
    highest = max_pool2d(highest, (around, 1), 1, (around // 2, 0))
    y, x = ((gain == highest) & (gain > least))[0, 0].nonzero(as_tuple=True)
    means = torch.stack([x, y], 1) * stride + 0.5
    return Found(means, means.new_full((len(x),), size), 2 * blurred[0, :, y, x].T, gain[0, 0, y, x])


def _apart(found: Found) -> Tensor:
    """Indices of what is left when nothing lies too near to a better one."""
    from scipy.spatial import cKDTree

    means, sizes = found.means.double().cpu().numpy(), found.deviations.cpu().numpy()
    gone = torch.zeros(len(means), dtype=torch.bool)
    near: list[tuple[int, int]] = []
    for size in sorted(set(sizes.tolist())):
        rows = (sizes >= size).nonzero()[0]
        pairs = cKDTree(means[rows]).query_pairs(size, output_type="ndarray")
        pairs = rows[pairs][(sizes[rows[pairs]] == size).any(1)]
        near += [(int(min(pair)), int(max(pair))) for pair in pairs]
    for better, worse in sorted(near):
        if not gone[better]:
            gone[worse] = True
    return (~gone).nonzero().squeeze(1).to(found.means.device)
