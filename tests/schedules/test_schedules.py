from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from support import tiny

from splatexp.gaussians.splats import PARAMS
from splatexp.raster.backends import Reference
from splatexp.schedules.curve import Curve
from splatexp.schedules.schedule import Dash, Schedule
from splatexp.train.optimizer import Adam


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


def test_poly_is_the_curve_of_its_power():
    curve = Curve("poly", end=3.0, power=2.0)  # x to x + 2 (B - x) t - (B - x) t^2 with B = 3 x
    assert [curve(step, 10) for step in (0, 5, 10)] == pytest.approx([1, 1 + 4 * 0.5 - 2 * 0.25, 3])
    assert Curve("poly", end=0.2, power=1)(3, 10) == pytest.approx(Curve("linear", end=0.2)(3, 10))


def test_curves_may_start_late():
    for kind in ("linear", "cosine", "exponential", "poly"):
        curve = Curve(kind, end=0.1, start=20, stop=60)
        assert [curve(step, 100) for step in (0, 20)] == [1, 1]
        assert curve(40, 100) == pytest.approx(Curve(kind, end=0.1)(50, 100))
        assert [curve(step, 100) for step in (60, 99)] == pytest.approx([0.1, 0.1])
    assert Curve("linear", end=0.5, start=1, stop=1)(5, 10) == 0.5, "a window that a short run has closed"


def test_piecewise_goes_from_point_to_point():
    curve = Curve("piecewise", milestones=[10, 20, 20, 40], values=[3.0, 1.0, 0.5, 0.0])
    values = [curve(step, 50) for step in (0, 5, 10, 15, 19, 20, 30, 40, 49)]
    assert values == pytest.approx([1, 2, 3, 2, 1.2, 0.5, 0.25, 0, 0])


def test_step_drops_at_its_milestones():
    curve = Curve("step", milestones=[10, 20], gamma=0.5)
    assert [curve(step, 30) for step in (0, 9, 10, 19, 20)] == [1, 1, 0.5, 0.5, 0.25]


def test_warm_up_rises_to_the_curve():
    curve = Curve(warmup_steps=10, warmup_from=0.1)
    values = [curve(step, 100) for step in range(12)]
    assert values[0] == pytest.approx(0.1) and values[10] == values[11] == 1 and sorted(values) == values


def test_sh_ramp_is_that_of_3dgs():
    schedule = Schedule()
    assert [schedule.sh_degree(step, 3) for step in (0, 999, 1000, 2999, 3000, 29999)] == [0, 0, 1, 2, 3, 3]
    assert Schedule(sh_degree_interval=0).sh_degree(0, 3) == 3
    assert [
        Schedule(sh_degree_start=500, sh_degree_interval=0).sh_degree(step, 2) for step in (499, 500)
    ] == [0, 2]


def test_new_bands_are_zero_and_rest_until_their_degree():
    splats, schedule = tiny.splats(sh_degree=4), Schedule(sh_degree_interval=2)
    camera = tiny.cameras(1)
    for step in range(10):
        degree = schedule.sh_degree(step, splats.sh_degree)
        assert degree == min(4, step // 2)
        render = Reference()(splats, camera, sh_degree=degree)
        (render.image - 0.3).square().mean().backward()
        rates = schedule.lr_factors(step, 10, len(splats), splats.initial_count, splats.sh_degree)
        Adam().step(splats, step, lr_factors=rates, visible=render.visible, backend="reference")
        bands = (degree + 1) ** 2 - 1
        assert not splats.shN[:, bands:].any() and not splats.exp_avg_sq["shN"][:, bands:].any()
        new = splats.shN[:, degree**2 - 1 : bands] if degree else splats.sh0
        assert (new != 0).any(), "what is in use learns"


def test_rates_are_the_curves_of_their_parameters():
    rates = Schedule().lr_factors(15_000, 30_000, 5, 5)
    assert rates == pytest.approx({name: 0.1 if name == "means" else 1.0 for name in PARAMS})
    halves = {name: Curve("step", milestones=[5], gamma=1 / 2**i) for i, name in enumerate(PARAMS[1:], 1)}
    schedule = Schedule(means=Curve(), others=Curve("step", milestones=[5], gamma=3.0), **halves)
    assert set(schedule.lr_factors(4, 10, 1, 1).values()) == {1.0}
    expected = {name: 3 / 2**i if i else 1.0 for i, name in enumerate(PARAMS)}
    assert schedule.lr_factors(5, 10, 1, 1) == pytest.approx(expected)


def test_more_gaussians_take_smaller_steps_in_space():
    schedule = Schedule(lr_count_power=0.5, means=Curve())
    rates = schedule.lr_factors(0, 10, 400, 100)
    expected = {name: 0.5 if name in ("means", "log_scales") else 1.0 for name in PARAMS}
    assert rates == pytest.approx(expected)
    assert schedule.lr_factors(0, 10, 0, 100)["means"] == 10, "no rows are no division"
    assert Schedule(means=Curve()).lr_factors(0, 10, 400, 100)["means"] == 1


def test_rates_drop_where_a_degree_comes_in():
    schedule = Schedule(
        sh_degree_start=10, sh_degree_interval=20, sh_warmup_from=0.2, sh_warmup_steps=8, means=Curve()
    )

    def rate(step, most=4):
        (value,) = set(schedule.lr_factors(step, 100, 1, 1, most).values())
        return value

    assert [rate(step) for step in (0, 10, 29)] == [1, 1, 1], "degree 0 is nothing new"
    assert [rate(step) for step in (30, 34, 38, 49, 50)] == pytest.approx([0.2, 0.6, 1, 1, 0.2])
    assert rate(50, most=1) == 1 and rate(30, most=0) == 1, "the model has no room for that degree"
    schedule = Schedule(sh_degree_interval=0, sh_warmup_from=0.2, means=Curve())
    assert rate(0) == 1
    schedule = Schedule(sh_degree_start=10, sh_degree_interval=0, sh_warmup_from=0.2, means=Curve())
    assert rate(10) == pytest.approx(0.2)


def test_dash_is_coarse_while_nothing_finer_is_there():
    def schedule(*images, **settings):
        return Dash(full_resolution_at=1_000, **settings).fitted(
            [SimpleNamespace(image=image) for image in images]
        )

    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (48, 64, 3), generator=random, dtype=torch.uint8)
    flat = torch.full((48, 64, 3), 99, dtype=torch.uint8)
    smooth = schedule(flat)
    assert type(smooth) is Schedule and smooth.downscale_factors == [8, 7, 6, 5, 4, 3, 2, 1]
    assert set(smooth.downscale_until) == {0}, "nothing is lost, so nothing waits"
    rough = schedule(noise)
    assert (
        rough.downscale_factors == list(range(rough.downscale_factors[0], 0, -1))
        and sorted(rough.downscale_until) == rough.downscale_until
    )
    assert 1 < rough.downscale_factors[0] < 8, "white noise loses more than three quarters before r = 8"
    assert rough.downscale(0) == rough.downscale_factors[0] and rough.downscale(1_000) == 1
    assert rough.means.start == rough.downscale_until[-1] and rough.means.end == 0.01
    assert schedule(noise, means=Curve("exponential", end=0.1, start=7)).means.start == 7
    assert schedule(noise, means=Curve()).means == Curve()
    assert schedule(noise, min_spectrum_fraction=1.0).downscale_factors == [1] and schedule(
        noise, max_downscale=1
    ).downscale_factors == [1]
    blurred = torch.nn.functional.avg_pool2d(noise.float().permute(2, 0, 1), 5, 1, 2).permute(1, 2, 0)
    assert schedule(blurred.to(torch.uint8)).downscale_until[-1] > 2 * rough.downscale_until[-1], (
        "what is coarse can wait"
    )
    both = schedule(noise, blurred.to(torch.uint8)).downscale_until[-1]
    assert rough.downscale_until[-1] < both < schedule(blurred.to(torch.uint8)).downscale_until[-1]

    spectrum = torch.fft.fftshift(torch.fft.fft2(noise.float().mean(2)).abs())
    half = spectrum[24 - 12 : 24 + 13, 32 - 16 : 32 + 17].sum() / spectrum.sum()
    assert rough.downscale_until[-1] == pytest.approx(
        1_000 * (half * 4).log().item() / torch.tensor(4.0).log().item(), abs=1
    )
    plain = Schedule()
    assert plain.fitted([]) is plain
    with pytest.raises(RuntimeError, match="fitted"):
        Dash().downscale(0)


def test_resolution_goes_by_its_milestones():
    schedule = Schedule(downscale_factors=[4, 2, 1], downscale_until=[250, 500])
    assert [schedule.downscale(step) for step in (0, 249, 250, 499, 500, 9999)] == [4, 4, 2, 2, 1, 1]


def test_windows_say_that_they_are_steps():
    scaled = {f.name for cls in (Curve, Dash) for f in fields(cls) if f.metadata.get("unit") == "steps"}
    assert scaled == {
        "start", "stop", "milestones", "warmup_steps",
        "sh_degree_start", "sh_degree_interval", "sh_warmup_steps", "downscale_until", "full_resolution_at",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Curve("exponental"), "did you mean 'exponential'"),
        (lambda: Curve(end=0.1), "curve.end"),
        (lambda: Curve("step"), "curve.milestones"),
        (lambda: Curve("linear", milestones=[3]), "curve.milestones"),
        (lambda: Curve("exponential", end=0.0), "curve.end"),
        (lambda: Curve(start=5), "curve.end"),
        (lambda: Curve("linear", start=5, stop=4), "curve.stop"),
        (lambda: Curve("step", milestones=[5, 4]), "curve.milestones"),
        (lambda: Curve("piecewise", milestones=[5]), "curve.values"),
        (lambda: Curve("linear", values=[5.0]), "curve.values"),
        (lambda: Schedule(lr_count_power=-1), "schedule.lr_count_power"),
        (lambda: Schedule(sh_warmup_steps=0), "schedule.sh_warmup_steps"),
        (lambda: Dash(downscale_factors=[2, 1], downscale_until=[9]), "schedule.downscale_factors"),
        (lambda: Dash(min_spectrum_fraction=0), "schedule.min_spectrum_fraction"),
        (lambda: Schedule(downscale_factors=[2, 1]), "schedule.downscale_factors"),
        (
            lambda: Schedule(downscale_factors=[4, 2, 1], downscale_until=[500, 250]),
            "schedule.downscale_until",
        ),
    ],
)
def test_schedules_refuse(make, line):
    with pytest.raises(ValueError, match=line):
        make()
