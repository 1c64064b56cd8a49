"""Budgets, tags and opacity policies of strategies; their statistics and scores have tests of their own."""

from dataclasses import dataclass, field

import pytest
import torch
from support import tiny

from splatexp.densify import Context, OpacityDecay, OpacityReset, Rule, RuleStrategy
from splatexp.densify.growth import Growth
from splatexp.densify.noise import Noise
from splatexp.raster.backends import Reference

OFF = OpacityReset(every=0)


@dataclass
class One(RuleStrategy):
    """A strategy of one rule."""

    rule: Rule = field(default_factory=lambda: Rule("clone", "opacity", "above", 0.0))
    opacity_reset: OpacityReset = field(default_factory=lambda: OpacityReset(every=0))


def run(strategy, splats, done, **context):
    """Apply the edits after so many steps; who made them."""
    made = []
    for edit in strategy.plan(done - 1, splats, Context(**context)):
        splats.apply(edit)
        made.append(getattr(edit, "rule", ""))
    return made


def keep(**more):
    return Rule("prune", "opacity", "below", 0.0, **more)


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, 120),
        ({"max_births": 7}, 67),
        ({"max_gaussians": 70}, 70),
        ({"growth": Growth("compound", fraction=0.1)}, 66),
        ({"growth": Growth("linear"), "max_gaussians": 260}, 60 + round(200 * 100 / 900)),
        ({"growth": Growth("sqrt"), "max_gaussians": 300}, 100),
    ],
)
def test_budgets_of_births(settings, after):
    splats = tiny.splats()
    made = run(One(start=500, stop=1500, **settings), splats, 600)
    assert len(splats) == after and made == ["rule"]


def test_rows_per_birth_count_in_every_budget():
    splats = tiny.splats()
    run(One(rule=Rule("octree", "one", "above", 0.5), max_births=30), splats, 600)
    assert len(splats) == 60 + 4 * 7, "each row that is divided adds seven"


@pytest.mark.parametrize(
    ("limit", "after"), [({"max_rows": 4}, 56), ({"max_fraction": 0.1}, 54), ({"min_remaining": 55}, 55)]
)
def test_budgets_of_a_rule(limit, after):
    splats = tiny.splats()
    run(One(rule=Rule("prune", "opacity", "below", 2.0, **limit)), splats, 600)
    assert len(splats) == after


def test_budgets_of_prunes_and_merges():
    splats = tiny.splats()
    run(One(rule=Rule("prune", "opacity", "below", 2.0), max_prunes=9), splats, 600)
    assert len(splats) == 51
    splats = tiny.splats(init_scale=3.0)
    merge = Rule("merge", "one", "above", 0.5, max_distance=5.0, max_log_ratio=9.0)
    run(One(rule=merge, max_merges=6), splats, 600)
    assert len(splats) == 54


def test_last_event_leaves_the_exact_number():
    strategy = One(rule=keep(), start=500, stop=1000, max_gaussians=77, exact=True)
    splats = tiny.splats()
    assert run(strategy, splats, 800) == [] and len(splats) == 60
    assert run(strategy, splats, 900) == ["fill"] and len(splats) == 77
    splats = tiny.splats()
    open_end = One(rule=keep(), start=500, stop=0, max_gaussians=77, exact=True)
    assert run(open_end, splats, 900, steps=1050) == [] and run(open_end, splats, 1000, steps=1050) == [
        "fill"
    ]


def test_growth_reaches_its_end_with_the_last_event():
    strategy = One(start=500, stop=1500, growth=Growth("linear"), max_gaussians=100)
    splats = tiny.splats()
    for done in range(600, 1500, 100):
        run(strategy, splats, done)
    assert len(splats) == 100


def test_grace_keeps_the_young_and_may_lengthen():
    rule = Rule("prune", "opacity", "below", 2.0, min_age=300, min_age_end=500, start=500, stop=1500)
    assert (rule.min_age_at(499), rule.min_age_at(999), rule.min_age_at(1499)) == (300, 400, 500)
    splats = tiny.splats(3)
    splats.born.copy_(torch.tensor([0, 699, 700]))
    run(One(rule=rule, stop=0), splats, 1100)  # 420 steps of grace
    assert splats.uid.tolist() == [1, 2]


def test_what_was_just_born_has_no_statistic_to_be_judged_by():
    weak = Rule("prune", "weight_sum", "below", 1.0)
    grow = Rule("clone", "opacity", "top", 0.1)
    splats = tiny.splats(10)
    both = RuleStrategy(opacity_reset=OFF, grow=grow, weak=weak)
    run(both, splats, 600, scene=tiny.scene(), raster=Reference())
    assert splats.born.max() == 599, "a clone of this event is not pruned for what nobody has measured"


def test_cadences_of_rules_share_a_count_and_begin_anew_together():
    often = Rule("clone", "grad2d", "above", 9.0)
    seldom = Rule("prune", "absgrad", "above", 1.5, every=200)
    splats, strategy = tiny.splats(3), RuleStrategy(opacity_reset=OFF, often=often, seldom=seldom)
    for done in (600, 700, 800):
        splats.row_stat("grad2d.sum").add_(1.0)
        splats.row_stat("absgrad.sum").add_(1.0)  # a mean of 1, whoever reads it when
        splats.row_stat("views").add_(1.0)
        assert run(strategy, splats, done) == []
    assert not any(splats.stats[name].any() for name in ("grad2d.sum", "absgrad.sum", "views"))


def test_gradient_protects_what_is_weak():
    splats = tiny.splats(3)
    splats.row_stat("grad2d.sum").copy_(torch.tensor([1e-3, 1e-5, 1e-3]))
    splats.row_stat("views").fill_(1)
    run(One(rule=Rule("prune", "opacity", "below", 2.0, gate=["grad2d < 2e-4"])), splats, 600)
    assert splats.uid.tolist() == [0, 2]


def test_a_rule_may_wait_for_the_time_after_a_reset():
    strategy = One(rule=Rule("prune", "opacity", "below", 2.0, after_reset=300), opacity_reset=OpacityReset())
    assert run(strategy, tiny.splats(), 3200) == [] and run(strategy, tiny.splats(), 3400) == []
    assert run(strategy, tiny.splats(), 3300) == ["rule"]


def test_recentring_keeps_the_order_within_its_limits():
    splats = tiny.splats(5)
    with torch.no_grad():
        splats.opacity_logits.copy_(torch.tensor([-9.0, -2.0, 0.0, 2.0, 9.0]))
    splats.exp_avg["opacity_logits"].fill_(1.0)
    run(One(rule=keep(), opacity_reset=OpacityReset(kind="recentre", value=0.5, floor=0.1)), splats, 3000)
    opacities = splats.opacities.detach()
    torch.testing.assert_close(opacities, 0.1 + 0.4 * torch.tensor([-9.0, -2, 0, 2, 9]).sigmoid())
    assert not splats.exp_avg["opacity_logits"].any()


def test_clamping_has_a_floor_where_one_is_set():
    splats = tiny.splats(3)
    with torch.no_grad():
        splats.opacity_logits.copy_(torch.tensor([-9.0, -3.0, 9.0]))
    run(One(rule=keep(), opacity_reset=OpacityReset(value=0.1, floor=0.02)), splats, 3000)
    torch.testing.assert_close(splats.opacities.detach(), torch.tensor([0.02, 0.047425874, 0.1]))


@pytest.mark.parametrize(
    ("fade", "expected"),
    [
        (OpacityDecay("subtract"), [5e-5, 0.0005, 0.499, 0.969]),
        (OpacityDecay("subtract", amount=0.1, floor=0.01), [5e-5, 0.0015, 0.4, 0.87]),
        (OpacityDecay("odds"), [4.9502e-5, 0.00148502, 0.4974874, 0.9696907]),
        (OpacityDecay("clip"), [5e-5, 0.0015, 0.5, 0.8]),
        (OpacityDecay("none"), [5e-5, 0.0015, 0.5, 0.97]),
    ],
)
def test_fading(fade, expected):
    splats = tiny.splats(4)
    with torch.no_grad():
        splats.opacity_logits.copy_(torch.tensor([5e-5, 0.0015, 0.5, 0.97]).logit())
    splats.exp_avg["opacity_logits"].fill_(1.0)
    run(One(rule=keep(), opacity_decay=fade), splats, 600)
    torch.testing.assert_close(splats.opacities.detach(), torch.tensor(expected), rtol=2e-4, atol=1e-9)
    assert splats.exp_avg["opacity_logits"].all(), "it is gentle: moments stay"


def test_fading_has_its_own_cadence_or_that_of_the_events():
    fade = OpacityDecay("odds", every=10, stop=40)
    assert [d for d in range(1, 60) if fade.is_due(d - 1, False, 0)] == [10, 20, 30]
    fade = OpacityDecay("odds", stop=700)
    assert [d for d in (500, 600, 700) if fade.is_due(d - 1, d > 500, 0)] == [600]


def test_noise_moves_the_faint_and_leaves_moments():
    splats = tiny.splats()
    with torch.no_grad():
        splats.opacity_logits[:30] = -6.0
        splats.opacity_logits[30:] = 4.0
    before, moments = splats.means.detach().clone(), splats.exp_avg["means"].fill_(1.0)
    strategy = One(every=0, noise=Noise(lr=5e5, stop=5))
    run(strategy, splats, 3, means_lr=1e-4)
    moved = (splats.means.detach() != before).any(1)
    assert moved[:30].all() and not moved[30:].any() and torch.equal(splats.exp_avg["means"], moments)
    assert run(strategy, splats, 6, means_lr=1e-4) == [], "it has stopped"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: One(exact=True), "max_gaussians"),
        (lambda: One(growth=Growth("sqrt")), "growth.kind=sqrt"),
        (lambda: One(rule=Rule("prune", "opacity", "below", after_reset=300)), "rule.after_reset"),
        (
            lambda: One(
                rule=Rule("prune", "opacity", "below", after_reset=250), opacity_reset=OpacityReset()
            ),
            "multiple",
        ),
        (lambda: Rule("prune", shrink=2.0), "rule.shrink.*prune"),
        (lambda: Rule("clone", min_remaining=5), "rule.min_remaining"),
        (lambda: Rule("clone", min_age_end=5), "rule.min_age_end"),
        (lambda: Rule("clone", select="top", threshold=2.0), "rule.threshold"),
        (lambda: OpacityReset(floor=0.5), "reset.floor"),
        (lambda: OpacityReset(kind="halve"), "reset.kind"),
        (lambda: OpacityDecay("none", amount=0.1), "opacity_decay.amount"),
        (lambda: Noise(lr=-1), "noise.lr"),
    ],
)
def test_settings_are_held(make, line):
    with pytest.raises(ValueError, match=line):
        make()
