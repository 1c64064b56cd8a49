import pytest
import torch
from support import tiny

from splatexp.densify import Context, Rule, RuleStrategy, Survey
from splatexp.densify.scores import REDUCTIONS, evaluate_score, parse_score, required_statistics, score_names
from splatexp.densify.statistics import (
    ACCUMULATORS,
    CHANNELS,
    check_statistic,
    survey_statistics,
    training_statistics,
)
from splatexp.densify.survey import edge_map
from splatexp.gaussians.geometry import footprint
from splatexp.losses.photometric import error_map
from splatexp.raster.backends import Reference

RANDOM = torch.Generator()


def looked(names, splats=None, step=0, seed=0, **settings):
    splats = splats or tiny.splats()
    context = Context(seed=seed, steps=100, scene=tiny.scene(), raster=Reference())
    Survey(**{"views": 0, **settings})(names, splats, step, context)
    return splats


def shares(splats, index, want, maps=None, factor=1):
    """One training view by hand."""
    view, raster = tiny.scene().train[index], Reference()
    target, _, camera = view.target(factor)
    with torch.no_grad():
        render = raster(splats, camera, sh_degree=0, background=torch.zeros(1, 3))
        maps = render.image[..., :0] if maps is None else maps(render.image, target)
        return render, raster.attribute(render, maps, target=target, want=want)


@pytest.mark.parametrize("kind", ["l1", "l2", "ssim"])
def test_error_is_weight_times_error_over_all_views(kind):
    splats = looked(["error.sum", "error.max", "error.square"], error=kind)
    each = []
    for index in range(5):

        def maps(image, target):
            return error_map(image, target, kind, backend="reference")[..., None]

        each.append(shares(splats, index, ["weighted"], maps)[1].weighted[0, :, 0])
    each = torch.stack(each)
    torch.testing.assert_close(splats.row_stat("error.sum"), each.sum(0))
    torch.testing.assert_close(splats.row_stat("error.max"), each.amax(0))
    torch.testing.assert_close(splats.row_stat("error.square"), each.square().sum(0))


def test_reductions_over_the_views_that_saw_a_row():
    splats = looked(
        required_statistics("weight_var")
        | required_statistics("weight_mean")
        | required_statistics("weight_max")
    )
    values, seen = [], []
    for index in range(5):
        _, part = shares(splats, index, ["weight_sum", "pixels"])
        values.append(part.weight_sum[0])
        seen.append(part.pixels[0] > 0)
    values, seen = torch.stack(values), torch.stack(seen)
    count = seen.sum(0).clamp_min(1)
    torch.testing.assert_close(evaluate_score("weight", splats, 0, RANDOM), values.sum(0) / count)
    torch.testing.assert_close(evaluate_score("weight_max", splats, 0, RANDOM), values.amax(0))
    mean = values.sum(0) / count
    variance = ((values - mean).square() * seen).sum(0) / count
    torch.testing.assert_close(
        evaluate_score("weight_var", splats, 0, RANDOM), variance, atol=1e-3, rtol=1e-3
    )
    assert splats.row_stat("surveyed").max() == 5


def test_moving_average_starts_at_the_first_survey_and_survives_the_next():
    splats = looked(["error.ema"])
    first = splats.row_stat("error.ema").clone()
    mean = splats.row_stat("error.sum") / splats.row_stat("surveyed").clamp_min(1)
    torch.testing.assert_close(first, mean)
    with torch.no_grad():
        splats.sh0 += 0.5
    looked(["error.ema"], splats)
    mean = splats.row_stat("error.sum") / splats.row_stat("surveyed").clamp_min(1)
    torch.testing.assert_close(splats.row_stat("error.ema"), 0.9 * first + 0.1 * mean)


def test_views_are_drawn_from_seed_and_step():
    runs = [
        looked(["weight.sum"], step=s, seed=seed, views=2).row_stat("weight.sum")
        for s, seed in ((0, 0), (0, 0), (0, 1), (7, 0), (8, 0), (9, 0))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not all(torch.equal(runs[0], other) for other in runs[2:])


def test_sums_over_pixels_keep_their_size_on_a_smaller_picture():
    full, half = looked(["weight.sum", "pixels.sum"]), looked(["weight.sum", "pixels.sum"], downscale=2)
    ratio = half.row_stat("weight.sum").sum() / full.row_stat("weight.sum").sum()
    assert 0.8 < ratio < 1.3


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_footprints_are_those_of_the_geometry_within_their_limits(method):
    splats = looked(["footprint.max"], footprint=method)
    camera = tiny.cameras()[:5]
    radii = footprint(
        splats.means,
        splats.quats,
        splats.scales,
        camera.viewmats,
        camera.Ks,
        20,
        16,
        method=method,
        eps2d=0.0,
    ).detach()
    for index in range(5):
        radii[index] *= shares(splats, index, ["pixels"])[1].pixels[0] > 0
    torch.testing.assert_close(splats.row_stat("footprint.max"), radii.amax(0))
    clamped = looked(["footprint.max"], footprint=method, r_min=2.0, r_max=3.0).row_stat("footprint.max")
    assert set(clamped[clamped > 0].clamp(2.0, 3.0).tolist()) == set(clamped[clamped > 0].tolist())


def test_exact_and_fast_footprints_differ():
    exact, fast = (
        looked(["footprint.max"], footprint=m).row_stat("footprint.max") for m in ("exact", "fast")
    )
    assert not torch.equal(exact, fast)


def test_every_channel_has_numbers_and_every_word_a_value():
    splats, strategy, camera = tiny.splats(), RuleStrategy(), tiny.cameras()[0]
    names = {f"{base}.{how}" for base in CHANNELS for how in ACCUMULATORS} | {"views", "surveyed"}
    names |= {f"{base}.ema" for base, channel in CHANNELS.items() if channel.survey}
    for name in names:
        check_statistic(name)
    render = Reference()(splats, camera, sh_degree=0, absgrad=True)
    (render.image - 0.5).square().mean().backward()
    rule = Rule(score="*".join(word for word in score_names() if word != "importance" and "_ema" not in word))
    strategy = type("All", (RuleStrategy,), {"rules": property(lambda self: {"all": rule})})()
    strategy.observe(0, splats, render, camera)
    looked(survey_statistics(names), splats)
    for name in training_statistics(names) | survey_statistics(names):
        row = splats.row_stat(name)
        assert row.isfinite().all(), name
        if name.startswith(("opacity_pull", "removal_loss")) or name.endswith((".ema", "near.max")):
            continue
        assert row.any(), f"{name} is 0 for everyone"
    for word in score_names():
        if word == "importance":
            with pytest.raises(ValueError, match="importance"):
                evaluate_score(word, splats, 0, RANDOM)
            continue
        value = evaluate_score(word, splats, 0, RANDOM)
        assert value.shape == (60,) and value.isfinite().all(), word


def test_products_and_quotients():
    splats = tiny.splats(3)
    splats.row_stat("weight.sum").copy_(torch.tensor([2.0, 4.0, 0.0]))
    splats.row_stat("error.max").copy_(torch.tensor([1.0, 3.0, 5.0]))
    splats.row_stat("surveyed").fill_(2)
    assert evaluate_score("error_max*weight", splats, 0, RANDOM).tolist() == [1.0, 6.0, 0.0]
    assert evaluate_score("error_max / weight_sum", splats, 0, RANDOM).tolist() == [0.5, 0.75, 0.0]
    assert required_statistics("error_max / weight_sum") == {"error.max", "weight.sum", "surveyed"}
    assert set(REDUCTIONS) == {"mean", "max", "sum", "var", "ema"}


@pytest.mark.parametrize(("text", "line"), [("eror", "did you mean"), ("error *", "score"), ("a b", "score")])
def test_what_is_no_score_is_refused(text, line):
    with pytest.raises(ValueError, match=line):
        parse_score(text)


def test_random_scores_follow_the_generator():
    splats = tiny.splats(5)
    one, two = (evaluate_score("random", splats, 0, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(one, two) and len(one.unique()) == 5


def test_what_is_masked_out_is_no_error():
    splats, scene = tiny.splats(), tiny.scene()
    for view in scene.train:
        view.mask = torch.arange(20).expand(16, 20) < 10
    spoilt = tiny.scene()
    for view, other in zip(spoilt.train, scene.train, strict=True):
        view.mask = other.mask
        view.image = torch.where(view.mask[..., None], view.image, 255 - view.image)
    names, found = ["error.sum", "hits.sum", "taming.sum", "removal_loss.sum"], []
    for where in (scene, spoilt):
        context = Context(steps=100, scene=where, raster=Reference())
        Survey(views=0, error="ssim")(names, splats, 0, context)
        found.append([splats.row_stat(name).clone() for name in names])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_score_asks_for_all_that_it_reads():
    assert required_statistics("taming") == {"taming.sum", "grad2d.sum", "views"}
    assert required_statistics("taming_max") >= {"taming.max", "grad2d.sum", "views"}


def test_edges_of_a_step_and_of_nothing():
    image = torch.zeros(1, 6, 8, 3)
    image[:, :, 4:] = 1
    found = edge_map(image)
    assert found[0, :, 3:5].eq(1).all() and not found[0, :, :3].any() and not found[0, :, 5:].any()


def test_an_event_that_must_look_says_so_without_a_scene():
    strategy = type(
        "Looks", (RuleStrategy,), {"rules": property(lambda self: {"grow": Rule(score="error")})}
    )()
    with pytest.raises(ValueError, match=r"a scene to survey for error\.sum"):
        list(strategy.plan(599, tiny.splats()))
    assert strategy.attribution_fields == {"weighted"} and strategy.score_names == {"error"}
