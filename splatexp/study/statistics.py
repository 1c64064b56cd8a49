"""Tests of whether a variant differs from the baseline by more than its runs differ among themselves.

Notation: S scenes, K runs (seeds) of each, V held-out views. A difference is variant - baseline at one
(scene, seed, view) that both have; whatever both share there (a hard view, a lucky seed) cancels.
Differences are averaged over the views of a run, the runs of a scene and the scenes, in this order: a scene
with more views has no more weight than another.

**Claim.** The means over many more seeds would differ, on these scenes and these held-out views. Scenes and
views are the benchmark: they are chosen, and the same for every method. Chance enters by the training runs,
and all views of a run share its luck. So a run, a cluster of views, is one observation: there are S x K,
however many views. Nothing is claimed about other scenes; `per_scene` shows whether these agree.

**Interval.** The interval is a cluster bootstrap: each resample gives every run of a scene, with all its
views, a random weight (Dirichlet with all parameters 1, which is smoother than draws with replacement, of
which 3 runs have only 10). Weights alone never leave the range of the runs, and with 3 runs would contain
the truth in at most 3 of 4 cases. There are two corrections. The deviations are multiplied by sqrt((K + 1)
/ (K - 1)), so that their variance is that of a mean of K runs. Each is divided by sqrt(chi2(f) / f), since
that variance is itself known with f degrees of freedom only. f is Satterthwaite's, in which each scene has
a noise of its own, minus 1/K of its excess over K - 1, the least possible value; for f is an estimate, and
too large where one noisy scene looks calm by chance. Where scenes have unequal K the least counts for all.
The interval is symmetric, and `p` belongs to it: p <= 1 - level and a 0 outside the interval are the same
statement. It is close to Student's t interval at any K.

The noise of the runs has to be roughly normal; with 2 to 5 runs nothing can replace this assumption (5 runs
of one sign have p = 0.06 by their signs). Heavy tails make the test conservative. Skewed noise makes it too
permissive, but cancels in the difference as far as baseline and variant both have it.

**One seed** tells nothing about the noise of the runs. Where any scene has a single run, the scenes are the
observations, if there are six (with fewer no rank test reaches 5 %). Differences between scenes then count
as noise, which is conservative for these scenes and makes it a claim about others like them. Otherwise the
verdict is "too few", the interval is infinite and p is 1; an interval over the views of a single run would
measure something else and is not given.

**Several variants.** Holm's p decides. Interval and p stay those of the single comparison, so an interval
may exclude 0 while the verdict is "within noise".

Sources: Rubin 1981, "The Bayesian Bootstrap"; Hesterberg 2015, "What Teachers Should Know About the
Bootstrap" (too narrow for few observations); Satterthwaite 1946; Hajek 1962 (K - 1 is never too
permissive); Ibragimov and Mueller 2010, "t-Statistic Based Correlation and Heterogeneity Robust Inference"
(scenes as observations); Wilcoxon 1945; Holm 1979.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import numpy as np

Key = tuple[str, int, str]  # scene, seed, view

MIN_SCENES = 6  # scenes that are needed as observations where some have a single run
POWER = 0.8  # probability with which `seeds_needed` seeds find a difference such as the observed one
MAX_SEEDS = 1000  # per scene; a difference that needs more counts as impossible to find
ROUNDING = 1e-12  # a difference of at most this fraction of the largest value counts as 0


@dataclass(frozen=True)
class Comparison:
    """A comparison with the baseline; differences are variant - baseline, in the unit of the metric."""

    difference: float  # mean over scenes of the mean over runs of the mean over views
    low: float  # ends of the interval; infinite where there are too few runs
    high: float
    p: float  # two-sided, of the interval
    p_holm: float  # corrected for the number of variants; it decides the verdict
    p_wilcoxon: float  # of the signed-rank test on the same observations, which assumes symmetry only
    verdict: Literal["better", "worse", "within noise", "too few"]
    seeds_needed: int | None  # per scene, to find such a difference; None: found, impossible or unknown
    noise_std: float | None  # of the difference of a run, root mean square over scenes; None: unknown
    observation_unit: Literal["runs", "scenes"]
    num_pairs: int  # values that baseline and variant both have
    num_unpaired: int  # values that only one of them has
    scenes: int
    seeds: int  # runs of the scene with the fewest runs
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
    """Compare values of a metric by (scene, seed, view); the same `seed` gives the same bits."""
    alpha = _alpha(level, resamples)
    return _with_verdict(_measured(baseline, variant, alpha, resamples, seed), alpha, higher_is_better)


def verdicts(
    tables: Mapping[str, Mapping[Key, float]],
    baseline: str,
    *,
    higher_is_better: bool = True,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare every other table with that of the baseline, with Holm's correction for their number.

    `seeds_needed` is that of the strictest step of the correction, as if no other variant differed.
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
        name: _with_verdict(replace(comparison, p_holm=p), alpha, higher_is_better)
        for name, comparison, p in zip(names, measured, corrected, strict=True)
    }


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values corrected for their number, in the same order.

    The probability of one false positive among all of them is then at most the level of the test.

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


def _with_verdict(comparison: Comparison, alpha: float, higher_is_better: bool) -> Comparison:
    """Return the comparison with the verdict that follows from `p_holm`."""
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
    """Return a comparison without a verdict.

    step: the level at which `seeds_needed` seeds have to find the difference.
    """
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
    enough = seeds > 1 or len(runs) >= MIN_SCENES
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
        p_wilcoxon=_wilcoxon(np.concatenate(strata), rounding),
        verdict="within noise" if enough else "too few",
        seeds_needed=seeds_needed,
        noise_std=noise,
        observation_unit="runs" if seeds > 1 else "scenes",
        num_pairs=len(both),
        num_unpaired=len(baseline) + len(variant) - 2 * len(both),
        scenes=len(runs),
        seeds=seeds,
        per_scene=dict(zip(runs, means.tolist(), strict=True)),
    )


def _common(baseline: Mapping[Key, float], variant: Mapping[Key, float]) -> list[Key]:
    """Return the keys that both have, sorted."""
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
    """Return for each scene the differences [K] of its runs, each the mean over views."""
    views: dict[str, dict[int, list[float]]] = {}
    for (scene, seed, _), value in differences.items():
        views.setdefault(scene, {}).setdefault(seed, []).append(value)
    return {scene: np.array([np.mean(run) for run in runs.values()]) for scene, runs in views.items()}


def _variances(strata: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values.var(ddof=1) for values in strata])


def _deviations(strata: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return resampled distances [B] of the mean over strata from the truth, by the corrected bootstrap."""
    total = np.zeros(resamples)
    for values in strata:
        count = len(values)
        weights = rng.standard_exponential((resamples, count))
        drawn = weights @ (values - values.mean()) / weights.sum(1)
        total += drawn * math.sqrt((count + 1) / (count - 1)) / len(strata)
    freedom = _freedom(_variances(strata), np.array([len(values) for values in strata]))
    return np.abs(total) / np.sqrt(rng.chisquare(freedom, resamples) / freedom)


def _freedom(variances: np.ndarray, counts: np.ndarray) -> float:
    """Return the degrees of freedom of the variance of a mean over strata.

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
    """Return the two-sided p of the signed-rank test; ties share their mean rank, zeros are left out.

    Differs: exact with ties too, where scipy uses a normal approximation. Both signs are equally likely, so
    the distribution of the rank sum is that of sums over all subsets of the ranks.
    """
    moved = differences[np.abs(differences) > rounding]
    _, place, ties = np.unique(np.abs(moved), return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(ties) - ties + 1)[place]  # twice the mean rank: whole numbers
    probability = np.zeros(int(ranks.sum()) + 1)
    probability[0] = 1
    for rank in ranks:
        with_it = np.zeros_like(probability)
        with_it[rank:] = probability[:-rank]
        probability = (probability + with_it) / 2
    smaller = min(int(ranks[moved > 0].sum()), int(ranks[moved < 0].sum()))
    return min(1.0, 2 * float(probability[: smaller + 1].sum()))


def _seeds_needed(difference: float, variances: np.ndarray, seeds: int, alpha: float) -> int | None:
    """Return the least number of seeds per scene, above `seeds`, that finds the difference with `POWER`.

    It follows from the noncentral t distribution for the observed difference and noise. Both are estimates,
    so with a few seeds the answer is only an order of magnitude.
    """
    from scipy.special import nctdtr, stdtrit

    def suffices(count: int) -> bool:
        freedom = _freedom(variances, np.full(len(variances), count))
        error = math.sqrt(variances.sum() / count) / len(variances)
        if error == 0:
            return True
        return bool(nctdtr(freedom, abs(difference) / error, stdtrit(freedom, 1 - alpha / 2)) <= 1 - POWER)

    tried = range(seeds + 1, MAX_SEEDS + 1)
    place = bisect_left(tried, True, key=suffices)
    return tried[place] if place < len(tried) else None
