"""The verdict of a study: known effects, scipy's word where it has one, and how often it is right."""

import itertools
import math
import os
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.simulated_studies import Rates, Setting, simulate

from splatexp.study.statistics import Comparison, compare, holm, verdicts

STUDIES = int(os.environ.get("STUDIES", 300))  # 2000 for a closer look
SAME = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def arms(*scenes, views=2):
    """Baseline and variant whose runs differ by just these numbers, a list for each scene."""
    dice = np.random.default_rng(7)
    keys = [
        (f"scene{s}", k, f"v{v}")
        for s, runs in enumerate(scenes)
        for k in range(len(runs))
        for v in range(views)
    ]
    baseline = {key: float(dice.normal(25, 3)) for key in keys}
    return baseline, {key: value + scenes[int(key[0][5:])][key[1]] for key, value in baseline.items()}


def as_wanted(mean, deviation, count=3):
    """Numbers of this mean and sample deviation."""
    numbers = np.linspace(-1, 1, count)
    return (mean + deviation * numbers / numbers.std(ddof=1)).tolist()


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# What is measured


def test_a_mean_over_scenes_of_runs_of_views():
    baseline = {
        ("a", 0, "v"): 1.0,
        ("a", 0, "w"): 3.0,
        ("a", 1, "v"): 2.0,
        ("b", 0, "v"): 10.0,
        ("b", 5, "v"): 20.0,
    }
    variant = {
        ("a", 0, "v"): 2.0,
        ("a", 0, "w"): 6.0,
        ("a", 1, "v"): 1.0,
        ("b", 0, "v"): 13.0,
        ("b", 5, "v"): 18.0,
    }
    found = compare(baseline | {("c", 0, "v"): 4.0}, variant | {("b", 0, "z"): 4.0})
    assert found.per_scene == {"a": 0.5, "b": 0.5}  # ((1 + 3) / 2 - 1) / 2 and (3 - 2) / 2
    assert found.difference == 0.5
    assert (found.num_pairs, found.num_unpaired, found.scenes, found.seeds) == (5, 2, 2, 2)
    assert found.noise_std == pytest.approx(math.sqrt((4.5 + 12.5) / 2))


def test_a_scene_with_many_views_weighs_no_more():
    few, many = arms([0.0, 0.2]), arms([0.0, 0.2], views=50)
    other = {("z", k, "v"): 0.0 for k in (0, 1)}
    gain = {key: value + 1.0 for key, value in other.items()}
    assert compare(few[0] | other, few[1] | gain).difference == pytest.approx(0.55)
    assert compare(many[0] | other, many[1] | gain).difference == pytest.approx(0.55)


def test_more_views_are_not_more_observations():
    few, many = compare(*arms([0.1, 0.3, 0.5])), compare(*arms([0.1, 0.3, 0.5], views=200))
    assert (few.low, few.high, few.p) == pytest.approx((many.low, many.high, many.p))
    assert many.num_pairs == 600


@pytest.mark.parametrize(("sign", "verdict"), [(1, "better"), (-1, "worse")])
def test_a_clear_effect_is_found(sign, verdict):
    found = compare(*arms(*sign * (1 + 0.05 * normal(0, 2, 3))))
    assert found.verdict == verdict and found.seeds_needed is None
    assert 0 < sign * found.low < 3 and 0 < sign * found.high < 3


def test_lower_is_better_turns_the_verdict_and_nothing_else():
    both = arms([1.0, 1.1, 0.9])
    found, turned = compare(*both), compare(*both, higher_is_better=False)
    assert (found.verdict, turned.verdict) == ("better", "worse") and turned.difference > 0
    assert vars(turned) | {"verdict": "better"} == vars(found)


def test_identical_arms_are_within_noise():
    baseline, _ = arms([0.0] * 3, [0.0] * 3)
    found = compare(baseline, baseline)
    assert found.verdict == "within noise" and found.difference == 0 and found.p == found.p_wilcoxon == 1
    assert found.low <= 0 <= found.high and found.high < 1e-9 and found.seeds_needed is None


def test_rounding_is_no_difference():
    keys = [("a", k, f"v{v}") for k in range(3) for v in range(3)]
    baseline = dict(zip(keys, [0.1, 0.7, 0.3] * 3, strict=True))
    variant = dict(zip(keys, [0.7, 0.3, 0.1] * 3, strict=True))  # the same sum, but for the last digit
    found = compare(baseline, variant)
    assert found.difference != 0 and found.verdict == "within noise" and found.p == 1


def test_what_never_varies_is_settled():
    counts = arms([500.0] * 2, [500.0] * 2)  # such as a number of Gaussians under a cap
    found = compare(*counts, higher_is_better=False)
    assert found.verdict == "worse" and found.low == pytest.approx(500) == found.high
    assert found.p_wilcoxon == 0.125  # 2 / 2^4, all of one size


def test_one_seed_is_too_few():
    found = compare(*arms([5.0], [5.1], views=20))
    assert found.verdict == "too few" and found.observation_unit == "scenes"
    assert (found.low, found.high, found.p, found.noise_std) == (-math.inf, math.inf, 1, None)
    assert found.difference == pytest.approx(5.05) and found.seeds_needed is None
    assert compare(*arms([5.0], [5.1, 5.0, 5.2])).verdict == "too few"


def test_six_scenes_of_one_seed_stand_for_themselves():
    gains = [[1.0 + 0.1 * x] for x in normal(1, 6)]
    found, values = compare(*arms(*gains)), np.array(gains)[:, 0]
    assert found.verdict == "better" and found.observation_unit == "scenes" and found.seeds == 1
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low) / 2)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(values).pvalue)
    assert compare(*arms(*gains[:5])).verdict == "too few"


# scipy's word


@pytest.mark.parametrize("count", [3, 4, 5, 10, 30])
def test_the_interval_is_close_to_students_for_one_scene(count):
    values = 0.1 + 0.3 * normal(count, count)
    found, test = compare(*arms(values), resamples=200_000), stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low) / 2)
    assert found.p == pytest.approx(test.pvalue, abs=0.02)


def test_two_runs_are_judged_more_strictly_than_by_student():
    found, test = compare(*arms([0.1, 0.3]), resamples=200_000), stats.ttest_1samp([0.1, 0.3], 0)
    half, student = (found.high - found.low) / 2, np.ptp(test.confidence_interval()) / 2
    assert 1 < half / student < 1.15


def test_the_interval_is_close_to_welchs_for_two_scenes():
    a, b = 0.2 + 0.1 * normal(2, 12), 0.1 + 0.3 * normal(3, 12)
    found = compare(*arms(a, b), resamples=200_000)
    low, high = stats.ttest_ind(a, -b, equal_var=False).confidence_interval()  # of the sum of the means
    assert (found.low, found.high) == pytest.approx((low / 2, high / 2), abs=0.03 * (high - low) / 4)


def test_three_runs_of_two_scenes_count_for_less_than_satterthwaite_says():
    """4 degrees of freedom where the noise is equal, less a third of what they have above 2."""
    found = compare(*arms(as_wanted(0.1, 1.0), as_wanted(0.3, 1.0)), resamples=200_000)
    expected = stats.t.ppf(0.975, 4 - (4 - 2) / 3) * math.sqrt(2 / 3) / 2
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.03)


def test_with_many_runs_it_is_the_plain_cluster_bootstrap():
    values = normal(4, 200) ** 3
    found = compare(*arms(values))
    plain = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = plain.confidence_interval
    assert found.high - found.low == pytest.approx(high - low, rel=0.05)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 20, 40])
def test_the_ranks_are_scipys(count):
    values = 0.3 + normal(count, count)
    runs = arms(*np.array_split(values, max(1, count // 2)))
    assert compare(*runs).p_wilcoxon == pytest.approx(
        stats.wilcoxon(values, method="exact").pvalue, abs=1e-12
    )


@pytest.mark.parametrize("seed", range(8))
def test_ranks_with_ties_and_zeros_are_exact(seed):
    values = np.random.default_rng(seed).integers(-2, 5, 8).astype(float)
    zero = {("a", k, "v"): 0.0 for k in range(8)}
    moved = values[values != 0]
    ranks = stats.rankdata(abs(moved))
    sums = np.array(list(itertools.product([-1, 1], repeat=len(moved)))) @ ranks  # every sign as likely
    expected = np.mean(abs(sums) >= abs(ranks @ np.sign(moved)) - 1e-9)
    assert compare(zero, dict(zip(zero, values, strict=True))).p_wilcoxon == pytest.approx(expected)


@pytest.mark.parametrize(("size", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_the_textbooks_for_one_scene(size, expected):
    """Cohen's sizes for a paired t test, two-sided 5 %, power 80 %."""
    assert compare(*arms(as_wanted(size, 1.0))).seeds_needed == expected


def test_seeds_needed_would_settle_it():
    noise, effect = (0.1, 0.2), 0.12
    needed = compare(*arms(*(as_wanted(effect, math.sqrt(2) * n, 2) for n in noise), views=1)).seeds_needed
    assert needed is not None
    again = simulate(Setting(2, needed, 1, noise, effect, view_noise=0.0), max(STUDIES, 400))
    assert 0.72 < again.settled < 0.9


def test_hopeless_is_hopeless():
    assert compare(*arms(as_wanted(0.001, 1.0))).seeds_needed is None
    found = compare(*arms([1.0, -1.0]))
    assert found.difference == pytest.approx(0, abs=1e-12) and found.seeds_needed is None


# Several variants


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.2, 0.9]) == pytest.approx([1, 0.6, 1])
    assert holm([0.04]) == [0.04] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@SAME
def test_holm_lies_between_none_and_bonferroni(ps):
    corrected = holm(ps)
    assert all(p <= q <= min(1, len(ps) * p) + 1e-15 for p, q in zip(ps, corrected, strict=True))
    order = np.argsort(ps, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)
    steps = enumerate(sorted(ps))  # rejected one by one, as Holm wrote it
    rejected = next((rank for rank, p in steps if p > 0.05 / (len(ps) - rank)), len(ps))
    fewer, more = (sum(q <= 0.05 + margin for q in corrected) for margin in (-1e-12, 1e-12))
    assert fewer <= rejected <= more


def test_many_variants_need_a_clearer_difference():
    baseline, likely = arms(as_wanted(0.5, 0.13))
    assert compare(baseline, likely).p < 0.05
    still = {f"still{n}": arms(as_wanted(0.03, 0.2))[1] for n in range(9)}
    found = verdicts({"base": baseline, "likely": likely, **still}, "base")
    assert list(found) == ["likely", *still]
    assert found["likely"].p == compare(baseline, likely).p and found["likely"].low > 0
    assert found["likely"].p_holm == pytest.approx(10 * found["likely"].p)
    assert found["likely"].verdict == "within noise" and 3 < found["likely"].seeds_needed < 10
    assert found["still0"].seeds_needed > 1.2 * compare(baseline, still["still0"]).seeds_needed
    alone = verdicts({"likely": likely, "base": baseline}, "base")
    assert alone == {"likely": compare(baseline, likely)} and alone["likely"].verdict == "better"


def test_nothing_but_the_baseline():
    assert verdicts({"base": arms([0.0])[0]}, "base") == {}


# What is refused


@pytest.mark.parametrize("broken", [math.nan, math.inf, None, "30"])
@pytest.mark.parametrize("arm", ["baseline", "variant"])
def test_a_number_that_is_none_is_refused(arm, broken):
    both = dict(zip(["baseline", "variant"], arms([0.0, 0.1]), strict=True))
    both[arm][("scene0", 1, "v1")] = broken
    with pytest.raises(
        ValueError, match=rf"{arm} \('scene0', 1, 'v1'\): expected a finite number, got {broken}"
    ):
        compare(**both)


def test_nothing_in_common_is_refused():
    baseline, variant = arms([0.0, 0.1])
    strangers = {(scene, seed + 7, view): value for (scene, seed, view), value in variant.items()}
    with pytest.raises(ValueError, match="that both have, got none of 4 and 4"):
        compare(baseline, strangers)
    with pytest.raises(ValueError, match="odd: baseline, variant: expected"):
        verdicts({"base": baseline, "odd": strangers}, "base")
    with pytest.raises(ValueError, match="baseline: expected one of a, b, got 'c'"):
        verdicts({"a": baseline, "b": variant}, "c")


def test_too_few_resamples_for_the_level_are_refused():
    assert compare(*arms([0.1, 0.2]), resamples=19).verdict == "within noise"
    with pytest.raises(ValueError, match="resamples: expected 19 or more at level 0.95, got 18"):
        compare(*arms([0.1, 0.2]), resamples=18)
    with pytest.raises(ValueError, match="level: expected a share between 0 and 1, got 95"):
        compare(*arms([0.1, 0.2]), level=95)


# What holds for any study

gains = st.floats(-3, 3).map(lambda x: round(x, 3))
studies = st.lists(st.lists(gains, min_size=1, max_size=5), min_size=1, max_size=7).map(
    lambda runs: arms(*runs)
)


def quick(baseline, variant) -> Comparison:
    return compare(baseline, variant, resamples=199)


def close(*numbers):
    return pytest.approx(numbers, abs=1e-9)


@given(studies)
@SAME
def test_swapped_arms_give_the_opposite(both):
    there, back = quick(*both), quick(*reversed(both))
    assert (back.difference, back.low, back.high) == (-there.difference, -there.high, -there.low)
    assert (back.p, back.p_wilcoxon, back.seeds_needed, back.noise_std) == (
        *(there.p, there.p_wilcoxon, there.seeds_needed, there.noise_std),
    )
    swapped = {"better": "worse", "worse": "better"}
    assert back.verdict == swapped.get(there.verdict, there.verdict)


@given(studies, st.floats(-5, 5))
@SAME
def test_a_shift_of_the_variant_shifts_the_interval(both, shift):
    there = quick(*both)
    moved = quick(both[0], {key: value + shift for key, value in both[1].items()})
    ends = there.difference + shift, there.low + shift, there.high + shift
    assert (moved.difference, moved.low, moved.high) == close(*ends)
    assert (moved.noise_std or 0) == pytest.approx(there.noise_std or 0, abs=1e-9)


@given(studies, st.randoms(use_true_random=False))
@SAME
def test_the_order_of_the_values_is_nothing(both, dice):
    def shuffled(values):
        keys = list(values)
        dice.shuffle(keys)
        return {key: values[key] for key in keys}

    assert quick(*both) == quick(*map(shuffled, both))


@given(studies)
@SAME
def test_interval_p_and_verdict_agree(both):
    found = quick(*both)
    out = found.low > 0 or found.high < 0
    assert out == (found.p <= 0.05) == (found.verdict in ("better", "worse"))
    assert found.low <= found.difference <= found.high and 0 < found.p <= 1 and 0 < found.p_wilcoxon <= 1
    assert found.seeds_needed is None or found.seeds < found.seeds_needed <= 1000


@pytest.mark.parametrize("resamples", [19, 199, 1000])
def test_the_edge_of_the_interval_is_where_p_is_5_percent(resamples):
    baseline, variant = arms(as_wanted(0.0, 0.2), as_wanted(0.1, 0.3))
    low = compare(baseline, variant, resamples=resamples).low
    for beyond, verdict in ((-1e-6, "within noise"), (1e-6, "better")):
        moved = {key: value - low + beyond for key, value in variant.items()}
        found = compare(baseline, moved, resamples=resamples)
        assert found.verdict == verdict and (found.p <= 0.05) == (found.low > 0) == (verdict == "better")


def test_the_same_seed_the_same_result():
    both = arms(normal(5, 3), normal(6, 4))
    assert compare(*both) == compare(*both)
    other = compare(*both, seed=1)
    assert other != compare(*both) and other.high == pytest.approx(compare(*both).high, rel=0.1)


# How often it is right


@cache
def rates(setting: Setting) -> Rates:
    return simulate(setting, STUDIES)


def binomial_tails(count: float, share: float) -> tuple[float, float]:
    """How likely so few of the studies, and so many, are at this share."""
    count = round(count * STUDIES)
    law = stats.binom(STUDIES, share)
    return float(law.cdf(count)), float(law.sf(count - 1))


USUAL = [
    *(Setting(1, seeds, 10, noise) for seeds, noise in ((2, 0.2), (3, 0.05), (3, 0.5), (5, 0.2), (10, 0.2))),
    *(Setting(2, seeds, 5, None) for seeds in (3, 5)),
    *(Setting(3, seeds, 5, (0.05, 0.15, 0.5)) for seeds in (2, 3, 5)),
    Setting(3, 3, 20, 0.2),
    Setting(6, 1, 5, None),
]


@pytest.mark.parametrize("setting", USUAL, ids=str)
def test_the_interval_holds_the_truth_and_the_verdict_is_rarely_false(setting):
    found = rates(setting)
    too_bold, _ = binomial_tails(found.coverage, 0.94)
    _, too_often = binomial_tails(found.settled, 0.055)
    assert too_bold > 1e-3 and too_often > 1e-3, found
    if setting.seeds > 2:
        assert binomial_tails(found.coverage, 0.975)[1] > 1e-3, found


@pytest.mark.parametrize(
    ("setting", "least"), [(Setting(2, 3, 10, 0.1, 0.5), 0.75), (Setting(3, 5, 10, None, 0.5), 0.7)]
)
def test_an_effect_is_found(setting, least):
    found = rates(setting)
    assert found.settled > least and found.wrong < 0.01, found


def test_simpler_intervals_would_be_wrong():
    """Why a run is the observation: views alone hold the truth far too seldom, runs as if many too seldom."""
    plain = rates(Setting(1, 3, 10, 0.5)).plain
    assert plain["views"] < 0.75 and plain["runs, normal"] < 0.88


def test_the_number_of_resamples_does_not_matter_to_the_rates():
    setting, count = Setting(2, 3, 5), min(STUDIES, 300)
    few, many = simulate(setting, count, resamples=399), simulate(setting, count, resamples=9999)
    assert abs(few.coverage - many.coverage) <= 0.02
    assert few.width == pytest.approx(many.width, rel=0.03)
