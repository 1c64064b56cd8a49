from dataclasses import fields

import pytest

from splatexp.schedules import Curve, Schedule


def test_curves_start_at_one_and_end_where_they_should():
    for kind in ("linear", "cosine", "exponential"):
        curve = Curve(kind, end=0.01)
        assert curve(0, 100) == 1 and curve(100, 100) == pytest.approx(0.01)
        assert (
            Curve(kind, end=0.01, stop=50)(50, 100)
            == Curve(kind, end=0.01, stop=50)(99, 100)
            == pytest.approx(0.01)
        )
    assert Curve("exponential", end=0.01)(50, 100) == pytest.approx(0.1)
    assert Curve("linear", end=0.5)(50, 100) == Curve("cosine", end=0.5)(50, 100) == pytest.approx(0.75)
    assert Curve()(7, 100) == 1


def test_step_drops_at_its_milestones():
    curve = Curve("step", milestones=[10, 20], drop=0.5)
    assert [curve(step, 30) for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]


def test_warm_up_rises_to_the_curve():
    curve = Curve(warmup=10, warmup_from=0.1)
    values = [curve(step, 100) for step in range(12)]
    assert values[0] == pytest.approx(0.1) and values[10] == values[11] == 1 and sorted(values) == values


def test_sh_ramp_is_that_of_3dgs():
    schedule = Schedule()
    assert [schedule.sh_degree(step, 3) for step in (0, 999, 1000, 2999, 3000, 29999)] == [0, 0, 1, 2, 3, 3]
    assert Schedule(sh_every=0).sh_degree(0, 3) == 3
    assert [Schedule(sh_start=500, sh_every=0).sh_degree(step, 2) for step in (499, 500)] == [0, 2]


def test_resolution_goes_by_its_milestones():
    schedule = Schedule(factors=[4, 2, 1], until=[250, 500])
    assert [schedule.factor(step) for step in (0, 249, 250, 499, 500, 9999)] == [4, 4, 2, 2, 1, 1]


def test_windows_say_that_they_are_steps():
    scaled = {f.name for cls in (Curve, Schedule) for f in fields(cls) if f.metadata.get("unit") == "steps"}
    assert scaled == {"stop", "milestones", "warmup", "sh_start", "sh_every", "until"}


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Curve("exponental"), "did you mean 'exponential'"),
        (lambda: Curve(end=0.1), "curve.end"),
        (lambda: Curve("step"), "curve.milestones"),
        (lambda: Curve("linear", milestones=[3]), "curve.milestones"),
        (lambda: Curve("exponential", end=0.0), "curve.end"),
        (lambda: Schedule(factors=[2, 1]), "schedule.factors"),
        (lambda: Schedule(factors=[4, 2, 1], until=[500, 250]), "schedule.until"),
    ],
)
def test_schedules_refuse(make, line):
    with pytest.raises(ValueError, match=line):
        make()
