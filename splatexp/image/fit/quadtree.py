"""A partition of an image into rectangles that are small where the image varies: the least uniform parts are
halved first.

Notation: an image [H,W,D]; parts [P,4] of it, (x0, y0, x1, y1) px, with the last two exclusive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quadtree_leaves(image: Tensor, count: int, power: float = 1.0) -> Tensor:
    """Return `count` parts [count,4] that tile an image; the part of highest priority is halved, along its
    longer side.

    A part's priority is its area times the variance about its mean colour, to a power: at 1 the sum of
    squares. Up to 1 no half has a higher priority than its whole; so the parts to halve are simply those of
    the highest priorities, and they can be found level by level.

    Raises: ValueError for more parts than pixels.
    """
    height, width, _ = image.shape
    if count > height * width:
        raise ValueError(f"count: expected at most {height * width} with init=quadtree, got {count}")
    sums = _sums(image)
    level = torch.tensor([[0, 0, width, height]])
    claims = _priorities(sums, level, power)
    parts, claimed, parents = [level], [claims], [torch.tensor([-1])]
    first, bar = 0, -1.0  # of the level, in the list of all; what too many others exceed is not halved
    while len(rows := ((claims >= bar) & (claims >= 0)).nonzero().squeeze(1)):
        ceiling = claims[rows].repeat_interleave(2)
        parents.append(first + rows.repeat_interleave(2))
        first += len(level)
        level = _halved(level[rows])
        claims = _priorities(sums, level, power).minimum(ceiling)  # rounding lets no part outgrow its whole
        parts.append(level), claimed.append(claims)
        so_far = torch.cat(claimed)
        bar = float(so_far.topk(count).values[-1]) if len(so_far) > count else -1.0
    order = torch.cat(claimed).argsort(descending=True, stable=True)
    split = torch.zeros(len(order), dtype=torch.bool)
    split[order[: count - 1]] = True
    above = torch.cat(parents)
    leaf = ~split & ((above < 0) | split[above])
    return torch.cat(parts)[leaf]


def _sums(image: Tensor) -> Tensor:
    """Return the sums [H+1,W+1,2D] of values and squares over all pixels above and to the left."""
    values = image.double()
    both = torch.cat([values, values.square()], -1).cumsum(0).cumsum(1)
    return torch.nn.functional.pad(both, (0, 0, 1, 0, 1, 0))


def _areas(parts: Tensor) -> Tensor:
    return (parts[:, 2] - parts[:, 0]) * (parts[:, 3] - parts[:, 1])


def _priorities(sums: Tensor, parts: Tensor, power: float) -> Tensor:
    """Return the priority of each part [P,4] (x0, y0, x1, y1), slightly higher for a larger one; -1 for a
    single pixel.
    """
    x0, y0, x1, y1 = parts.unbind(1)
    total = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    channels = total.shape[1] // 2
    area = _areas(parts)
    about = total[:, channels:] - total[:, :channels].square() / area[:, None]
    claim = (about.clamp_min(0).sum(1) / area).pow(power) * area
    return torch.where(area > 1, claim + 1e-9 * area, -1.0)


def _halved(parts: Tensor) -> Tensor:
    """Return the two halves [2P,4] of each part, one after the other."""
    x0, y0, x1, y1 = parts.unbind(1)
    wide = (x1 - x0) >= (y1 - y0)
    x, y = (x0 + x1) // 2, (y0 + y1) // 2
    first = torch.stack([x0, y0, torch.where(wide, x, x1), torch.where(wide, y1, y)], 1)
    second = torch.stack([torch.where(wide, x, x0), torch.where(wide, y0, y), x1, y1], 1)
    return torch.stack([first, second], 1).view(-1, 4)
