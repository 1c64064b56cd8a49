import pytest
import torch

from splatexp.densify.growth import Growth
from splatexp.densify.selectors import SELECTORS, select

SCORES = torch.tensor([0.0, 4.0, 1.0, 3.0, 2.0, float("nan")])
UID = torch.tensor([10, 11, 12, 13, 14, 15])
ALL = torch.ones(6, dtype=torch.bool)


def pick(how, threshold, scores=SCORES, **more):
    return select(how, scores, threshold, ALL[: len(scores)], UID[: len(scores)], **more).tolist()


@pytest.mark.parametrize(
    ("how", "threshold", "rows"),
    [
        ("above", 3.0, [1, 3]),
        ("below", 2.0, [0, 2]),
        ("top", 0.4, [1, 3]),
        ("top", 0.0, []),
        ("top", 1.0, [0, 1, 2, 3, 4]),
        ("bottom", 0.4, [0, 2]),
        ("quantile", 0.75, [1]),  # of 1 2 3 4: who scores nothing does not count
        ("quantile", 0.0, [1, 2, 3, 4]),
        ("below_quantile", 0.5, [0, 2, 4]),
        ("top_mass", 0.4, [1]),
        ("top_mass", 0.41, [1, 3]),
        ("top_mass", 1.0, [1, 2, 3, 4]),
        ("outside_top_mass", 0.9, [0, 2]),
    ],
)
def test_what_is_selected(how, threshold, rows):
    assert pick(how, threshold) == rows


@pytest.mark.parametrize("how", SELECTORS)
def test_no_rows_no_choice_and_one_row(how):
    random = torch.Generator().manual_seed(0)
    assert pick(how, 0.5, SCORES[:0], random=random) == []
    assert set(pick(how, 0.5, torch.tensor([float("nan")]), random=random)) == set()
    nothing = select(how, SCORES, 0.5, ~ALL, UID, random=random)
    assert nothing.dtype == torch.int64 and not len(nothing)
    assert set(pick(how, 0.6, torch.tensor([0.7]), random=random)) <= {0}


@pytest.mark.parametrize("how", SELECTORS)
def test_a_budget_holds_and_takes_the_best(how):
    scores, uid = torch.rand(500, generator=torch.Generator().manual_seed(1)) + 0.1, torch.arange(500)
    threshold = 1.0 if SELECTORS[how].fraction else 0.5
    threshold = {"quantile": 0.2, "below_quantile": 0.8, "outside_top_mass": 0.5}.get(how, threshold)
    rows = select(
        how, scores, threshold, scores > 0, uid, max_rows=40, random=torch.Generator().manual_seed(0)
    )
    assert len(rows) == 40 and (rows.diff() >= 0).all()
    if not SELECTORS[how].probability:
        best = scores.argsort(descending=not SELECTORS[how].lowest)[:40]
        assert set(rows.tolist()) == set(best.tolist())


def test_draws_follow_the_score_and_the_generator_alone():
    scores, uid = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.arange(4)
    allowed = torch.ones(4, dtype=torch.bool)
    counts = torch.zeros(4)
    for seed in range(2000):
        random = torch.Generator().manual_seed(seed)
        counts[select("sample", scores, 0, allowed, uid, min_rows=1, random=random)] += 1
    # 2,000 draws of chances 1/8, 2/8, 0, 5/8: a standard error of 0.011
    torch.testing.assert_close(counts / 2000, torch.tensor([0.125, 0.25, 0, 0.625]), atol=0.04, rtol=0)
    again = torch.Generator().manual_seed(7)
    rows = select("sample_with_replacement", scores, 0, allowed, uid, min_rows=8000, random=again)
    shares = rows.bincount(minlength=4) / 8000
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.25, 0, 0.625]), atol=0.02, rtol=0)


def test_a_draw_does_not_depend_on_the_order_of_rows():
    scores, uid = torch.rand(50), torch.arange(50)
    order = torch.randperm(50)
    allowed = torch.ones(50, dtype=torch.bool)
    for how in ("sample", "sample_inverse", "sample_with_replacement"):
        first = select(how, scores, 0.3, allowed, uid, random=torch.Generator().manual_seed(3))
        second = select(how, scores[order], 0.3, allowed, uid[order], random=torch.Generator().manual_seed(3))
        assert sorted(uid[first].tolist()) == sorted(uid[order][second].tolist())


def test_inverse_draws_take_the_low():
    scores, uid = torch.tensor([1e-3] * 50 + [10.0] * 50), torch.arange(100)
    rows = select("sample_inverse", scores, 0.5, scores > 0, uid, random=torch.Generator().manual_seed(0))
    assert len(rows) == 50 and (rows < 50).sum() >= 48


@pytest.mark.parametrize("kind", ["linear", "quadratic", "sqrt", "dash"])
def test_growth_rises_to_the_cap_and_no_further(kind):
    growth = Growth(kind, fraction=1e9 if kind == "dash" else 0.0)
    curve = [growth.limit(x / 10, 500, 100, 1000, 1) for x in range(11)]
    assert curve == sorted(curve) and curve[-1] == 1000
    assert kind == "sqrt" or curve[0] == 100 or kind == "dash"


def test_growth_by_the_numbers():
    assert Growth("quadratic").limit(0.5, 0, 100, 1000, 1) == 100 + round(900 * 0.75)
    assert Growth("sqrt").limit(0.25, 0, 100, 1000, 1) == 500
    assert Growth("compound").limit(0.5, 101, 0, 0, 1) == 107  # 106.05, up
    assert Growth("compound", fraction=0.5).limit(0.5, 100, 0, 0, 1) == 150
    assert Growth("dash").limit(0.5, 10_000, 100, 1000, 4) == round(100 + 900 / 8)
    assert Growth("dash").limit(1.0, 100, 100, 1000, 1) == 120, "no more than a fifth an event"
    assert Growth().limit(0.5, 10, 10, 100, 1) is None


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Growth("cubic"), "growth.kind"),
        (lambda: Growth("sqrt", fraction=0.1), "growth.fraction"),
        (lambda: Growth("compound", fraction=-0.1), "growth.fraction"),
    ],
)
def test_settings_are_held(make, line):
    with pytest.raises(ValueError, match=line):
        make()
