"""Selectors: choose the rows that an operator changes, by score, and cut the choice down to a budget.

The selector decides what `threshold` means: a score, or a fraction of the rows that are allowed. Ties go to
the older row, the one with the lower uid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selector:
    """A way to choose rows by their scores: by a mask, or by drawing from them at random.

    mask: `mask(scores [A], threshold)` returns a bool mask [A] of the allowed rows; None for those that draw.
    lowest: the lowest scores are chosen first.
    fraction: the threshold is a fraction in [0,1], not a score.
    exact_count: no more rows than that fraction are chosen, even among equal scores.
    probability: "" or what a row is drawn in proportion to: "score" or "inverse" (1 / score), without
        replacement, or "with_replacement" (score, and a row can be drawn several times).
    """

    mask: Callable[[Tensor, float], Tensor] | None = None
    lowest: bool = False
    fraction: bool = False
    exact_count: bool = False
    probability: str = ""


def _everything(scores: Tensor, threshold: float) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool)


def _top_mass(scores: Tensor, fraction: float) -> Tensor:
    """Return a mask of the fewest highest-scored rows that hold a fraction of the sum of all scores."""
    order = scores.argsort(descending=True, stable=True)
    total = ordered_cumsum(scores[order].double().clamp_min(0))
    before = torch.cat([total.new_zeros(1), total[:-1]])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order] = before < fraction * total[-1:]
    return mask


def _quantile(scores: Tensor, fraction: float) -> Tensor:
    """Return the score below which a fraction of the rows with a positive score lie."""
    positive = scores[scores > 0]
    if not len(positive):
        return scores.new_zeros(())
    return positive.sort().values[min(len(positive) - 1, int(fraction * len(positive)))]


SELECTORS: dict[str, Selector] = {
    "above": Selector(lambda scores, threshold: scores >= threshold),
    "below": Selector(lambda scores, threshold: scores < threshold, lowest=True),
    "top": Selector(_everything, fraction=True, exact_count=True),
    "bottom": Selector(_everything, lowest=True, fraction=True, exact_count=True),
    # An adaptive threshold. Rows with score 0, which no view saw, do not move the quantile.
    "quantile": Selector(lambda scores, q: (scores > 0) & (scores >= _quantile(scores, q)), fraction=True),
    "below_quantile": Selector(lambda scores, q: scores < _quantile(scores, q), lowest=True, fraction=True),
    "top_mass": Selector(_top_mass, fraction=True),
    "outside_top_mass": Selector(
        lambda scores, fraction: ~_top_mass(scores, fraction), lowest=True, fraction=True
    ),
    "sample": Selector(fraction=True, probability="score"),
    "sample_inverse": Selector(fraction=True, probability="inverse", lowest=True),
    "sample_with_replacement": Selector(fraction=True, probability="with_replacement"),
}


def select(
    how: str,
    scores: Tensor,
    threshold: float,
    allowed: Tensor,
    uid: Tensor,
    *,
    min_rows: int = 0,
    max_rows: int | None = None,
    random: torch.Generator | None = None,
) -> Tensor:
    """Return the selected rows [M] in ascending order; `sample_with_replacement` may repeat a row.

    Args:
        how: one of SELECTORS.
        scores: [N]; a row whose score is NaN is never selected.
        threshold: a score or a fraction, as the selector has it.
        allowed: [N] bool, the rows that may be selected.
        uid: [N], which breaks ties.
        min_rows: select at least this many of the best-scored rows, even beyond the threshold, as far as
            they are allowed and their score is not 0.
        max_rows: select at most this many of the best-scored rows; None: no limit.
        random: generator for the selectors that draw.
    """
    selector = SELECTORS[how]
    allowed = allowed & ~scores.isnan()
    candidates = allowed.nonzero().squeeze(1)
    if selector.exact_count:
        wanted = max(math.ceil(threshold * len(candidates)), min_rows)
        max_rows = wanted if max_rows is None else min(wanted, max_rows)
    if selector.probability:
        count = max(math.ceil(threshold * len(candidates)), min_rows)
        count = count if max_rows is None else min(count, max_rows)
        return _draw(selector.probability, candidates[uid[candidates].argsort()], scores, count, random)
    assert selector.mask is not None
    rows = candidates[selector.mask(scores[candidates], threshold)] if len(candidates) else candidates
    if len(rows) < min_rows:
        rows = best_rows(allowed & (scores != 0), scores, uid, min_rows, selector.lowest)
    if max_rows is not None and len(rows) > max_rows:
        mask = torch.zeros_like(allowed).index_fill_(0, rows, True)
        rows = best_rows(mask, scores, uid, max_rows, selector.lowest)
    return rows


def best_rows(allowed: Tensor, scores: Tensor, uid: Tensor, count: int, lowest: bool = False) -> Tensor:
    """Return the `count` best-scored allowed rows in ascending order, by a stable sort by (-score, uid).

    Args:
        lowest: the lowest scores are the best.
    """
    rows = allowed.nonzero().squeeze(1)
    rows = rows[uid[rows].argsort()]
    order = scores[rows].argsort(descending=not lowest, stable=True)
    return rows[order[:count]].sort().values


def ordered_cumsum(values: Tensor) -> Tensor:
    """Return the cumulative sum [M], computed on the CPU.

    A GPU adds its partial sums in varying order and would not give the same bits in every run.
    """
    return values.cpu().cumsum(0).to(values.device)


def _draw(
    probability: str, rows: Tensor, scores: Tensor, count: int, random: torch.Generator | None
) -> Tensor:
    """Draw rows, given in the order of their uid, with probabilities that follow their scores.

    Drawing without replacement uses exponential clocks: the `count` smallest values of Exp(weight) are a
    sample drawn one row after another.  Source: Efraimidis and Spirakis 2006.
    """
    weights = scores[rows].double().clamp_min(0)
    if probability == "inverse":
        weights = 1 / weights.clamp_min(1e-12)
    rows, weights = rows[weights > 0], weights[weights > 0]
    if not count or not len(rows):
        return rows[:0]
    if probability == "with_replacement":
        points = torch.rand(count, generator=random, dtype=torch.float64).to(weights.device)
        total = ordered_cumsum(weights)
        picks = torch.searchsorted(total, points * total[-1], right=True).clamp_max(len(rows) - 1)
        return rows[picks].sort().values
    clocks = torch.empty(len(rows), dtype=torch.float64).exponential_(generator=random).to(weights.device)
    return rows[(clocks / weights).argsort(stable=True)[:count]].sort().values
