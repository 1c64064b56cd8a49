"""Whether a variant differs from the baseline by more than its runs differ among themselves.

Notation: S scenes, K runs (seeds) of each, V held-out views. A difference is variant - baseline at one
(scene, seed, view) that both have; what both arms share there (a hard view, a lucky seed) cancels.
Differences are averaged over the views of a run, the runs of a scene and the scenes, in this order: a scene
with more views weighs no more than another.

**The claim** is that the means over many more seeds would differ, on these scenes and these held-out views.
Scenes and views are the benchmark, chosen, and the same for every method; chance enters by the training
runs, and all views of a run share its luck. So a run, a cluster of views, is one observation: S x K in all,
however many views. Nothing is claimed of other scenes: `per_scene` shows whether these agree.

**The interval** is a cluster bootstrap: each resample gives every run of a scene, with all its views, a
random weight (Dirichlet, all ones: smoother than draws with replacement, of which 3 runs have 10). Alone
that never leaves the range of the runs, and of 3 runs it holds the truth in 3 cases of 4 at best. Two
corrections: the deviations grow by sqrt((K + 1) / (K - 1)), so that their variance is that of a mean of K
runs; and each is divided by sqrt(chi2(f) / f), since that variance is itself known from f degrees of freedom
only. f is Satterthwaite's, by which each scene has a noise of its own, less 1/K of what it has above K - 1,
the least it can be: it is an estimate, and too bold where one noisy scene looks calm by chance. Where scenes
have unequal K the least counts for all. The interval is symmetric and `p` is its own: p <= 1 - level and a 0
outside the interval are one statement. It is close to Student's t interval at any K.

The runs' noise has to be roughly normal; at 2 to 5 runs nothing can stand in for that (5 runs of one sign
have p = 0.06 by their signs). Heavy tails make it cautious; skewed noise makes it bold, but cancels in the
difference as far as both arms have it.

**One seed** tells nothing of the runs' noise. Where any scene has a single run, the scenes are the
observations, if there are six (of fewer no rank test reaches 5 %): then differences between scenes count as
noise, which is cautious for these scenes and makes it a claim about others like them. Otherwise the verdict
is "too few", the interval is infinite and p is 1; an interval over the views of a single run would measure
something else and is not given.

**Several variants**: Holm's p decides. Interval and p stay those of the one comparison, so an interval may
leave out 0 and the verdict still be "within noise".

Sources: Rubin 1981, "The Bayesian Bootstrap"; Hesterberg 2015, "What Teachers Should Know About the
Bootstrap" (too narrow for few observations); Satterthwaite 1946; Hajek 1962 (K - 1 is never too bold);
Ibragimov and Mueller 2010, "t-Statistic Based Correlation and Heterogeneity Robust Inference" (scenes as
observations); Wilcoxon 1945; Holm 1979.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import numpy as np

Key = tuple[str, int, str]  # scene, seed, view

FEWEST_SCENES = 6  # that can be the observations where some have a single run
POWER = 0.8  # share of studies of `seeds_needed` that would settle a difference such as the observed one
MOST_SEEDS = 1000  # per scene; more is hopeless
ROUNDING = 1e-12  # a difference of so much of the largest value, or less, is none


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline; differences in the metric's own unit, variant - baseline."""

    difference: float  # mean over scenes of the mean over runs of the mean over views
    low: float  # the interval; infinite where the runs are too few
    high: float
    p: float  # two-sided, of the interval
    p_holm: float  # corrected for the number of variants; decides
    p_ranks: float  # of Wilcoxon's test on the same observations: a second opinion that assumes symmetry only
    verdict: Literal["better", "worse", "within noise", "too few"]
    seeds_needed: int | None  # per scene, to settle such a difference; None: settled, hopeless, unknown
    noise: float | None  # standard deviation of a run's difference, scenes' root mean square; None: unknown
    units: Literal["runs", "scenes"]  # what is one observation
    pairs: int  # values that both arms have
    dropped: int  # values that only one has
    scenes: int
    seeds: int  # runs of the scene that has the fewest
    per_scene: dict[str, float]


def compare(
    baseline: Mapping[Key, float],
    variant: Mapping[Key, float],
    *,
    higher_is_better: bool = True,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare a metric's values by (scene, seed, view); the same `seed` gives the same result to the bit."""
    alpha = _alpha(level, resamples)
    return _judged(_measured(baseline, variant, alpha, resamples, seed), alpha, higher_is_better)


def verdicts(
    tables: Mapping[str, Mapping[Key, float]],
    baseline: str,
    *,
    higher_is_better: bool = True,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every other table with the baseline's, with Holm's correction for their number.

    `seeds_needed` is that of the correction's strictest step, as if no other variant differed.
    """
    if baseline not in tables:
        raise ValueError(f"baseline: expected one of {', '.join(tables) or 'no tables'}, got {baseline!r}")
    alpha, names = _alpha(level, resamples), [name for name in tables if name != baseline]
    measured = []
    for name in names:
        try:
            step = alpha / len(names)
            measured.append(_measured(tables[baseline], tables[name], alpha, resamples, seed, step))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    corrected = holm([comparison.p for comparison in measured])
    return {
        name: _judged(replace(comparison, p_holm=p), alpha, higher_is_better)
        for name, comparison, p in zip(names, measured, corrected, strict=True)
    }


def holm(ps: Sequence[float]) -> list[float]:
    """The p values in their order, corrected: an error among all is as rare as it was for each.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def _alpha(level: float, resamples: int) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}")
    alpha = round(1 - level, 12)
    if not alpha * (resamples + 1) >= 1:
        least = math.ceil(1 / alpha) - 1
        raise ValueError(f"resamples: expected {least} or more at level {level}, got {resamples}")
    return alpha


def _judged(comparison: Comparison, alpha: float, higher_is_better: bool) -> Comparison:
    """With the verdict that follows from `p_holm`; what is settled needs no more seeds."""
    if comparison.verdict == "too few" or comparison.p_holm > alpha:
        return comparison
    better = (comparison.difference > 0) == higher_is_better
    return replace(comparison, verdict="better" if better else "worse", seeds_needed=None)


def _measured(
    baseline: Mapping[Key, float],
    variant: Mapping[Key, float],
    alpha: float,
    resamples: int,
    seed: int,
    step: float | None = None,
) -> Comparison:
    """All but the verdict; `step` is the level at which `seeds_needed` has to settle it."""
    both = _common(baseline, variant)
    rounding = ROUNDING * max(max(abs(float(baseline[key])), abs(float(variant[key]))) for key in both)
    runs = _runs({key: float(variant[key]) - float(baseline[key]) for key in both})
    means, seeds = np.array([values.mean() for values in runs.values()]), min(map(len, runs.values()))
    difference, half, p, noise, seeds_needed = float(means.mean()), math.inf, 1.0, None, None
    strata = list(runs.values()) if seeds > 1 else [means]
    if seeds > 1:
        variances = _variances(strata)
        noise = float(np.sqrt(variances.mean()))
        if abs(difference) > rounding:
            seeds_needed = _seeds_needed(difference, variances, seeds, step or alpha)
    enough = seeds > 1 or len(runs) >= FEWEST_SCENES
    if enough:
        drawn = _deviations(strata, resamples, np.random.default_rng(seed)) + rounding
        half = float(np.sort(drawn)[-math.floor(alpha * (resamples + 1))])
        p = float((1 + (drawn >= abs(difference)).sum()) / (1 + resamples))
    return Comparison(
        difference=difference,
        low=difference - half,
        high=difference + half,
        p=p,
        p_holm=p,
        p_ranks=_wilcoxon(np.concatenate(strata), rounding),
        verdict="within noise" if enough else "too few",
        seeds_needed=seeds_needed,
        noise=noise,
        units="runs" if seeds > 1 else "scenes",
        pairs=len(both),
        dropped=len(baseline) + len(variant) - 2 * len(both),
        scenes=len(runs),
        seeds=seeds,
        per_scene=dict(zip(runs, means.tolist(), strict=True)),
    )


def _common(baseline: Mapping[Key, float], variant: Mapping[Key, float]) -> list[Key]:
    """The keys that both have, sorted."""
    for name, values in (("baseline", baseline), ("variant", variant)):
        for key, value in values.items():
            if not (isinstance(value, Real) and math.isfinite(value)):
                raise ValueError(f"{name} {key}: expected a finite number, got {value}")
    both = sorted(baseline.keys() & variant.keys())
    if not both:
        got = f"none of {len(baseline)} and {len(variant)}"
        raise ValueError(f"baseline, variant: expected a (scene, seed, view) that both have, got {got}")
    return both


def _runs(differences: Mapping[Key, float]) -> dict[str, np.ndarray]:
    """Per scene the mean difference [K] of each run over its views."""
    views: dict[str, dict[int, list[float]]] = {}
    for (scene, seed, _), value in differences.items():
        views.setdefault(scene, {}).setdefault(seed, []).append(value)
    return {scene: np.array([np.mean(run) for run in runs.values()]) for scene, runs in views.items()}


def _variances(strata: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values.var(ddof=1) for values in strata])


def _deviations(strata: Sequence[np.ndarray], resamples: int, dice: np.random.Generator) -> np.ndarray:
    """How far [B] the mean over strata may lie from the truth, by the corrected cluster bootstrap."""
    total = np.zeros(resamples)
    for values in strata:
        count = len(values)
        weights = dice.standard_exponential((resamples, count))
        drawn = weights @ (values - values.mean()) / weights.sum(1)
        total += drawn * math.sqrt((count + 1) / (count - 1)) / len(strata)
    freedom = _freedom(_variances(strata), np.array([len(values) for values in strata]))
    return np.abs(total) / np.sqrt(dice.chisquare(freedom, resamples) / freedom)


def _freedom(variances: np.ndarray, counts: np.ndarray) -> float:
    """Degrees of freedom with which a mean over strata knows its variance.

    All strata count as if they had as few values as the smallest, which may be the one with most noise.
    """
    fewest = int(counts.min())
    shares = variances / counts
    if not shares.any():
        return fewest - 1
    shares = shares / shares.max()
    satterthwaite = (fewest - 1) * float(shares.sum() ** 2 / (shares**2).sum())
    return satterthwaite - (satterthwaite - (fewest - 1)) / fewest


def _wilcoxon(differences: np.ndarray, rounding: float) -> float:
    """Two-sided p of the signed-rank test; equal sizes share their mean rank, zeros are left out.

    Differs: exact with ties too, where scipy's turns to the normal law. Each sign is as likely as the other,
    so the rank sum's law is that of sums over all subsets of the ranks.
    """
    moved = differences[np.abs(differences) > rounding]
    _, place, ties = np.unique(np.abs(moved), return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(ties) - ties + 1)[place]  # twice the mean rank: whole numbers
    chance = np.zeros(int(ranks.sum()) + 1)
    chance[0] = 1
    for rank in ranks:
        with_it = np.zeros_like(chance)
        with_it[rank:] = chance[:-rank]
        chance = (chance + with_it) / 2
    smaller = min(int(ranks[moved > 0].sum()), int(ranks[moved < 0].sum()))
    return min(1.0, 2 * float(chance[: smaller + 1].sum()))


def _seeds_needed(difference: float, variances: np.ndarray, seeds: int, alpha: float) -> int | None:
    """The least number of seeds per scene, above those there are, that finds the difference with `POWER`.

    By the noncentral t law, as if difference and noise were as observed; both are estimates, and of a few
    seeds the answer is no more than an order of magnitude.
    """
    from scipy.special import nctdtr, stdtrit

    def suffices(count: int) -> bool:
        freedom = _freedom(variances, np.full(len(variances), count))
        error = math.sqrt(variances.sum() / count) / len(variances)
        if error == 0:
            return True
        return bool(nctdtr(freedom, abs(difference) / error, stdtrit(freedom, 1 - alpha / 2)) <= 1 - POWER)

    tried = range(seeds + 1, MOST_SEEDS + 1)
    place = bisect_left(tried, True, key=suffices)
    return tried[place] if place < len(tried) else None
