"""Which rows an operator gets: a selection by score, then a budget; ties go to the older row."""

from collections.abc import Callable

import torch
from torch import Tensor

# name -> (mask of the selected, whether low scores are the best)
SELECTORS: dict[str, tuple[Callable[[Tensor, float], Tensor], bool]] = {
    "above": (lambda scores, threshold: scores >= threshold, False),
    "below": (lambda scores, threshold: scores < threshold, True),
}


def select(
    how: str,
    scores: Tensor,
    threshold: float,
    allowed: Tensor,
    uid: Tensor,
    *,
    least: int = 0,
    most: int | None = None,
) -> Tensor:
    """Rows [M], ascending.

    Args:
        scores: [N]; one that is not a number is never selected.
        allowed: [N] bool.
        uid: [N], breaks ties.
        least: take so many of the best-scored even past the threshold, as far as they are allowed and
            score anything but 0.
        most: take no more than the so many best-scored; None: no limit.
    """
    picks, low = SELECTORS[how]
    allowed = allowed & ~scores.isnan()
    rows = (picks(scores, threshold) & allowed).nonzero().squeeze(1)
    if len(rows) < least:
        rows = best(allowed & (scores != 0), scores, uid, least, low)
    if most is not None and len(rows) > most:
        mask = torch.zeros_like(allowed).index_fill_(0, rows, True)
        rows = best(mask, scores, uid, most, low)
    return rows


def best(allowed: Tensor, scores: Tensor, uid: Tensor, count: int, low: bool = False) -> Tensor:
    """The so many best-scored allowed rows, ascending: a stable sort by (-score, uid)."""
    rows = allowed.nonzero().squeeze(1)
    rows = rows[uid[rows].argsort()]
    order = scores[rows].argsort(descending=not low, stable=True)
    return rows[order[:count]].sort().values
