from dataclasses import dataclass, field

import pytest
import torch
from support import tiny

from splatexp.config.build import option
from splatexp.densify import Context, NoDensification, OpacityReset, Rule, RuleStrategy
from splatexp.densify.opacity_policy import is_due
from splatexp.densify.operators import clone_or_split
from splatexp.densify.scores import evaluate_score
from splatexp.densify.selectors import select
from splatexp.gaussians.splats import PARAMS, Edit, Overwrite
from splatexp.raster.backends import Reference


def strategy(**settings):
    """The original density control."""
    return option("densify", "adc", **settings)


def scored(values, views=1.0):
    """Splats with given mean gradients."""
    splats = tiny.splats(len(values))
    splats.row_stat("grad2d.sum").copy_(torch.tensor(values) * views)
    splats.row_stat("views").fill_(views)
    return splats


def run(control, splats, step, seed=0):
    """Apply a step's edits; their kinds."""
    kinds = []
    for edit in control.plan(step, splats, Context(seed=seed)):
        splats.apply(edit)
        kinds.append(edit)
    return kinds


def test_events_fall_where_the_paper_has_them():
    adc = strategy()
    at = [step + 1 for step in range(30_000) if is_due(step, adc.every, adc.start, adc.stop)]
    assert at == list(range(600, 15_000, 100))
    assert [step + 1 for step in range(30_000) if adc.opacity_reset.is_due(step)] == [
        3000,
        6000,
        9000,
        12_000,
    ]
    assert [n for n in at if adc.prune_large.is_due(n - 1)] == list(range(3100, 15_000, 100))


def test_defaults_are_those_of_3dgs():
    adc = strategy()
    assert adc.grow.threshold == 2e-4 and (
        clone_or_split.defaults["size_threshold"],
        clone_or_split.defaults["shrink"],
    ) == (
        0.01,
        1.6,
    )
    assert (
        adc.prune_low_opacity.threshold,
        adc.prune_large.threshold,
        adc.opacity_reset.value,
        adc.opacity_reset.every,
    ) == (
        0.005,
        0.1,
        0.01,
        3000,
    )
    assert (adc.max_gaussians, adc.max_births, adc.min_births, adc.prune_low_opacity.reset_cooldown) == (
        0,
        0,
        0,
        0,
    )


def test_statistics_are_means_over_the_views_that_saw_a_row():
    splats, adc, raster = tiny.splats(), strategy(), Reference()
    total, seen = torch.zeros(60), torch.zeros(60)
    for step in range(3):
        camera = tiny.cameras()[step]
        render = raster(splats, camera, sh_degree=0)
        (render.image - 0.5).square().mean().backward()
        adc.observe(step, splats, render, camera)
        grad = render.means2d.grad[0] * torch.tensor([10.0, 8.0])  # W/2, H/2
        total += grad.norm(dim=1)
        seen += (render.radii[0] > 0).any(1)
    torch.testing.assert_close(
        evaluate_score("grad2d", splats, 3, torch.Generator()), total / seen.clamp_min(1)
    )
    assert set(splats.stats) == {"grad2d.sum", "views"}


def test_statistics_stop_with_the_last_event():
    adc = strategy()
    assert adc.statistics(14_997) == {"grad2d.sum", "views"}
    assert not adc.statistics(14_999) and not strategy(every=0).statistics(0)
    assert strategy(grow=Rule(score="absgrad")).render_requests(0) == {"absgrad"} and not adc.render_requests(
        0
    )


def test_small_rows_are_cloned_and_large_ones_split():
    splats = scored([1.0, 1.0, 0.0])
    with torch.no_grad():
        splats.log_scales[0] = torch.tensor([0.01, 0.001, 0.001]).log()  # extent 2: 0.01 of it is 0.02
        splats.log_scales[1] = torch.tensor([0.03, 0.02, 0.01]).log()
    before = {name: splats.params[name].detach().clone() for name in PARAMS}
    run(strategy(prune_low_opacity=Rule("prune", "opacity", "below", 0.0)), splats, 599)
    assert splats.uid.tolist() == [0, 2, 3, 4, 5]  # 0 stays beside its clone 3; 1 gave way to 4 and 5
    assert all(torch.equal(splats.params[name][2], before[name][0]) for name in PARAMS)
    children = splats.scales[3:].detach()
    torch.testing.assert_close(children, (before["log_scales"][1].exp() / 1.6).expand(2, 3))
    offsets = (splats.means[3:].detach() - before["means"][1]) / before["log_scales"][1].exp()
    assert (offsets.abs() < 5).all() and not torch.equal(*offsets)
    assert splats.generation.tolist() == [0, 0, 1, 1, 1] and splats.born.tolist() == [0, 0, 599, 599, 599]
    assert not splats.row_stat("grad2d.sum").any() and not splats.row_stat("views").any()


def test_children_of_a_split_follow_their_parent():
    from splatexp.densify.operators import OperatorSettings, split

    splats = tiny.splats(2)
    with torch.no_grad():
        splats.quats[0] = torch.tensor([0.9, 0.1, -0.3, 0.5])
        splats.log_scales[0] = torch.tensor([0.3, 0.1, 0.02]).log()
    rows = torch.zeros(20_000, dtype=torch.int64)
    edit = split(splats, rows, OperatorSettings(0.01, 1.6), 0, torch.Generator().manual_seed(0))
    cloud = (edit.values["means"] - splats.means[0]).detach()
    w, x, y, z = torch.nn.functional.normalize(splats.quats[0].detach(), dim=0)
    R = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    expected = R @ torch.diag(splats.scales[0].detach() ** 2) @ R.T
    # 40,000 draws: the error of a covariance is about 1 % of its largest entry
    torch.testing.assert_close(
        cloud.T @ cloud / len(cloud), expected, atol=0.03 * expected.max().item(), rtol=0
    )


def test_faint_and_huge_rows_go():
    splats = tiny.splats(4)
    with torch.no_grad():
        splats.log_scales.fill_(-3.0)
        splats.opacity_logits[1] = -6.0  # 0.0025
        splats.log_scales[2, 1] = -1.0  # 0.37 of an extent of 2
    run(strategy(), splats, 2999)
    assert splats.uid.tolist() == [0, 2, 3], "before the first reset size does not matter"
    with torch.no_grad():
        splats.opacity_logits.fill_(0.0)
    run(strategy(), splats, 3099)
    assert splats.uid.tolist() == [0, 3]


def test_reset_clamps_and_forgets():
    splats = tiny.splats(3)
    with torch.no_grad():
        splats.opacity_logits[0] = -5.0  # 0.0067: below the clamp, above the prune
    splats.exp_avg["opacity_logits"].fill_(1.0)
    splats.exp_avg["means"].fill_(1.0)
    edits = run(strategy(), splats, 2999)
    assert isinstance(edits[-1], Overwrite)
    assert splats.opacities.tolist() == pytest.approx([0.0066929, 0.01, 0.01], rel=1e-4)
    assert not splats.exp_avg["opacity_logits"].any() and splats.exp_avg["means"].all()
    assert not run(strategy(opacity_reset=OpacityReset(every=0)), tiny.splats(3), 2999)


def test_pause_keeps_a_rule_off_after_a_reset():
    reset = strategy().opacity_reset
    assert reset.in_cooldown(3099, 300) and reset.in_cooldown(3299, 300) and not reset.in_cooldown(3399, 300)
    assert not reset.in_cooldown(2999, 300), "the reset comes after the rules"
    assert not reset.in_cooldown(599, 700) and not reset.in_cooldown(15_099, 300)
    splats = tiny.splats(2, init_opacity=0.002, init_scale=0.01)
    patient = strategy(prune_low_opacity=Rule("prune", "opacity", "below", 0.005, reset_cooldown=300))
    assert not run(patient, splats, 3099)
    assert run(patient, splats, 3399)


@pytest.mark.parametrize("control", [strategy(max_gaussians=50), NoDensification(max_gaussians=50)])
def test_cap_holds_after_every_step(control):
    splats = tiny.splats(60)
    with torch.no_grad():
        splats.opacity_logits[7] = -1.0
    run(control, splats, 0)
    assert len(splats) == 50 and 7 not in splats.uid
    splats.row_stat("grad2d.sum").fill_(1)
    splats.row_stat("views").fill_(1)
    run(control, splats, 599)
    assert len(splats) == 50


def test_budgets_take_the_best_scored():
    splats = scored([0.3, 0.1, 0.5, 0.2, 0.4])
    run(strategy(max_births=2, prune_low_opacity=Rule("prune", "opacity", "below", 0.0)), splats, 599)
    assert len(splats) == 7
    assert {0, 1, 3} <= set(splats.uid.tolist()) and not {2, 4} & set(splats.uid.tolist())
    splats = scored([0.3, 0.1, 0.5, 0.2, 0.4])
    run(strategy(max_gaussians=6), splats, 599)
    assert len(splats) == 6 and 2 not in splats.uid


def test_densify_add_takes_some_from_below_the_threshold():
    values = [1e-5, 3e-5, 0.0, 2e-5, 5e-4]
    splats = scored(values)
    run(strategy(min_births=3), splats, 599)
    assert len(splats) == 8 and not {4, 1, 3} & set(splats.uid.tolist())
    splats = scored(values)
    run(strategy(min_births=5), splats, 599)
    assert len(splats) == 9, "a row that scores 0 is no candidate"
    splats = scored(values)
    run(strategy(min_births=3, max_gaussians=6), splats, 599)
    assert len(splats) == 6


def test_ties_go_to_the_older_row():
    scores, uid = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([9, 8, 3, 5])
    allowed = torch.ones(4, dtype=torch.bool)
    assert select("above", scores, 0.5, allowed, uid, max_rows=3).tolist() == [1, 2, 3]
    assert select("below", scores, 5.0, allowed, uid, max_rows=2).tolist() == [2, 3]
    scores[2] = float("nan")
    assert select("above", scores, 0.5, allowed, uid).tolist() == [0, 1, 3]


def test_gate_narrows_the_choice():
    splats = scored([1.0, 1.0, 1.0])
    splats.born.copy_(torch.tensor([0, 590, 300]))
    run(strategy(grow=Rule("clone", gate=["age > 100", "opacity >= 0.5"])), splats, 599)
    assert splats.generation.tolist() == [0, 0, 0, 1, 1]


def test_plan_follows_from_seed_and_step():
    outcomes = []
    for seed in (0, 0, 1):
        splats = scored([1.0] * 8)
        run(strategy(), splats, 599, seed)
        outcomes.append(splats.means.detach())
    assert torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[0], outcomes[2])


def test_a_strategy_of_ones_own_is_its_fields():
    @dataclass
    class Mine(RuleStrategy):
        tidy: Rule = field(default_factory=lambda: Rule("prune", "age", "above", 500))
        grow: Rule = field(default_factory=lambda: Rule("clone", "opacity", "above", 0.5, max_rows=1))

    splats = tiny.splats(3)
    splats.born.copy_(torch.tensor([0, 500, 500]))
    kinds = run(Mine(), splats, 599)
    assert [type(kind) for kind in kinds] == [Edit, Edit] and splats.uid.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Rule(operate="clon"), "did you mean 'clone'"),
        (lambda: Rule(score="grad2D"), "did you mean 'grad2d'"),
        (lambda: Rule(select="over"), "rule.select"),
        (lambda: Rule(gate=["age is 3"]), "age > 300"),
        (lambda: Rule(gate=["aeg > 3"]), "did you mean 'age'"),
        (lambda: strategy(max_gaussians=-1), "max_gaussians"),
        (lambda: strategy(max_births=5, min_births=6), "min_births"),
        (lambda: OpacityReset(value=0.0), "reset.value"),
    ],
)
def test_settings_are_held(make, line):
    with pytest.raises(ValueError, match=line):
        make()
