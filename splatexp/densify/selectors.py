"""Which rows an operator gets: a selection by score, then a budget; ties go to the older row.

What `threshold` means is the selector's: a score, or a share of the rows that are allowed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selector:
    """`pick(scores [A], threshold)` gives a mask of the allowed rows; `draw` instead draws by score.

    low: the lowest scores are the best. share: the threshold is one, in [0,1]. count: no more rows than that
    share, ties or not. draw: "" or what a row's chance follows: "score", "inverse" (1 / score), "again"
    (score, and a row may come several times).
    """

    pick: Callable[[Tensor, float], Tensor] | None = None
    low: bool = False
    share: bool = False
    count: bool = False
    draw: str = ""


def _all(scores: Tensor, share: float) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def _mass(scores: Tensor, share: float) -> Tensor:
    """The fewest best-scored rows that hold a share of the sum."""
    order = scores.argsort(descending=True, stable=True)
    total = running(scores[order].double().clamp_min(0))
    before = torch.cat([total.new_zeros(1), total[:-1]])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order] = before < share * total[-1:]
    return mask


SELECTORS: dict[str, Selector] = {
    "above": Selector(lambda scores, threshold: scores >= threshold),
    "below": Selector(lambda scores, threshold: scores < threshold, low=True),
    "top": Selector(_all, share=True, count=True),
    "bottom": Selector(_all, low=True, share=True, count=True),
    # a quantile of what scores anything: an adaptive threshold, which rows that nobody saw do not move
    "quantile": Selector(lambda scores, q: (scores > 0) & (scores >= _quantile(scores, q)), share=True),
    "below_quantile": Selector(lambda scores, q: scores < _quantile(scores, q), low=True, share=True),
    "mass": Selector(_mass, share=True),
    "beyond_mass": Selector(lambda scores, share: ~_mass(scores, share), low=True, share=True),
    "multinomial": Selector(share=True, draw="score"),
    "multinomial_inverse": Selector(share=True, draw="inverse", low=True),
    "multinomial_repl": Selector(share=True, draw="again"),
}


def _quantile(scores: Tensor, share: float) -> Tensor:
    """The score that a share of the rows with a score above 0 lie below."""
    seen = scores[scores > 0]
    if not len(seen):
        return scores.new_zeros(())
    return seen.sort().values[min(len(seen) - 1, int(share * len(seen)))]


def select(
    how: str,
    scores: Tensor,
    threshold: float,
    allowed: Tensor,
    uid: Tensor,
    *,
    least: int = 0,
    most: int | None = None,
    random: torch.Generator | None = None,
) -> Tensor:
    """Rows [M], ascending; with `multinomial_repl` a row may stand there several times.

    Args:
        scores: [N]; one that is not a number is never selected.
        allowed: [N] bool.
        uid: [N], breaks ties.
        least: take so many of the best-scored even past the threshold, as far as they are allowed and
            score anything but 0.
        most: take no more than the so many best-scored; None: no limit.
        random: for the selectors that draw.
    """
    selector = SELECTORS[how]
    allowed = allowed & ~scores.isnan()
    candidates = allowed.nonzero().squeeze(1)
    if selector.count:
        share = max(math.ceil(threshold * len(candidates)), least)
        most = share if most is None else min(share, most)
    if selector.draw:
        count = max(math.ceil(threshold * len(candidates)), least)
        count = count if most is None else min(count, most)
        return _draw(selector.draw, candidates[uid[candidates].argsort()], scores, count, random)
    assert selector.pick is not None
    rows = candidates[selector.pick(scores[candidates], threshold)] if len(candidates) else candidates
    if len(rows) < least:
        rows = best(allowed & (scores != 0), scores, uid, least, selector.low)
    if most is not None and len(rows) > most:
        mask = torch.zeros_like(allowed).index_fill_(0, rows, True)
        rows = best(mask, scores, uid, most, selector.low)
    return rows


def best(allowed: Tensor, scores: Tensor, uid: Tensor, count: int, low: bool = False) -> Tensor:
    """The so many best-scored allowed rows, ascending: a stable sort by (-score, uid)."""
    rows = allowed.nonzero().squeeze(1)
    rows = rows[uid[rows].argsort()]
    order = scores[rows].argsort(descending=not low, stable=True)
    return rows[order[:count]].sort().values


def running(values: Tensor) -> Tensor:
    """The running sum [M], by the CPU: a device adds its parts as they come, and so not to the same bits."""
    return values.cpu().cumsum(0).to(values.device)


def _draw(how: str, rows: Tensor, scores: Tensor, count: int, random: torch.Generator | None) -> Tensor:
    """Draw from rows in the order of their uid, with a chance that follows the score.

    Without replacement by exponential clocks: the `count` first of Exp(weight) are a draw one after another.
    Source: Efraimidis and Spirakis 2006.
    """
    weights = scores[rows].double().clamp_min(0)
    if how == "inverse":
        weights = 1 / weights.clamp_min(1e-12)
    rows, weights = rows[weights > 0], weights[weights > 0]
    if not count or not len(rows):
        return rows[:0]
    if how == "again":
        places = torch.rand(count, generator=random, dtype=torch.float64).to(weights.device)
        total = running(weights)
        picks = torch.searchsorted(total, places * total[-1], right=True).clamp_max(len(rows) - 1)
        return rows[picks].sort().values
    clocks = torch.empty(len(rows), dtype=torch.float64).exponential_(generator=random).to(weights.device)
    return rows[(clocks / weights).argsort(stable=True)[:count]].sort().values
