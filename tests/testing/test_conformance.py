"""Every strategy of conf/densify, and the one outside the package, keeps what every strategy promises."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import tiny  # noqa: F401  one thread
from support.command import python

from splatexp.config.build import build, compose, conf_dir, make_loader
from splatexp.densify import Context, OpacityDecay, OpacityReset, Rule, RuleStrategy, Strategy, operators
from splatexp.densify.merge import find_pairs
from splatexp.densify.noise import Noise
from splatexp.densify.operator import OperatorSettings, operator, replace_rows
from splatexp.gaussians.edit import Edit
from splatexp.gaussians.splats import Splats
from splatexp.raster.backends import Reference
from splatexp.testing.conformance import check_strategy

EXAMPLES = Path(__file__).parents[2] / "examples"
OF_IMAGES = {"image", "pursuit"}  # they work on Splats2D: see tests/image
FOLDER = conf_dir() / "densify"
OPTIONS = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml")}
NAMES = sorted(OPTIONS - OF_IMAGES)
TO_FIRE = {  # what a tiny scene must be told so that every rule changes rows
    "budgeted": [
        "densify.prune_small_footprint.threshold=20",
        "densify.prune_small_footprint.gate=['surveyed > 0']",
    ],
    "dash": ["densify.prune_large.threshold=0.05"],
    "quick": ["densify.prune_large.threshold=0.1"],
    "taming": ["densify.prune_large.threshold=0.05"],
    "fastgs": ["densify.clone.gate=['hits_sum >= 1']"],
    "error_tag": ["densify.prune_unimportant.threshold=0.99"],
    "ablation/error_tag_grad_03": ["densify.prune_unimportant.threshold=0.99"],
}


@pytest.mark.parametrize("name", NAMES)
def test_strategies_of_the_package_conform(name):
    run = build(compose(["preset=[]", f"densify={name}", *TO_FIRE.get(name, [])]))
    made = check_strategy(run.densify, run.importance)
    rules = set(getattr(run.densify, "rules", {}))
    assert set(made) - {"cap", "fill"} == rules, "every rule has to fire, or nothing is shown of it"


@pytest.mark.parametrize("importance", ["logit", "mask", "mlp"])
def test_importance_moves_with_the_rows(importance):
    run = build(compose(["preset=[]", "densify=mcmc", f"importance={importance}"]))
    assert check_strategy(run.densify, run.importance, raster=run.raster, seed=3)["grow"]


EVERYTHING = {
    "relocated": Rule("relocate", "opacity", "below", 0.05),
    "merged": Rule("merge", "one", max_distance=0.01, max_log_ratio=0.5),
    "cloned": Rule("clone", "random", "sample_with_replacement", 0.02),
    "revised": Rule("clone", "random", "sample", 0.02, opacity="mcmc"),
    "divided": Rule("split", "opacity", "top", 0.02, opacity="revised"),
    "jittered": Rule("jitter", "grad3d", "top", 0.02),
    "longest": Rule("long_axis", "weight_ema", "top", 0.02),
    "steepest": Rule("steep", "steepness", "bottom", 0.02),
    "eight": Rule("octree", "size", "top", 0.01),
    "pruned": Rule("prune", "removal_loss_sum", "bottom", 0.2),
}


@pytest.mark.parametrize("reset", ["clamp", "recentre"])
@pytest.mark.slow
def test_operators_conform_whatever_fades_or_wanders(reset):
    strategy = RuleStrategy(
        start=0,
        stop=0,
        opacity_decay=OpacityDecay("odds"),
        noise=Noise(1e4),
        opacity_reset=OpacityReset(reset),
        **EVERYTHING,
    )
    assert set(EVERYTHING) <= set(check_strategy(strategy))


@pytest.fixture
def outside(monkeypatch):
    """The folder of examples among those that Python searches."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield EXAMPLES
    sys.modules.pop("patient", None)


def test_the_example_conforms(outside):
    run = build(make_loader(str(outside)).compose_job("config", ["preset=[]", "densify=patient"]))
    assert set(check_strategy(run.densify)) >= {"grow", "prune_low_opacity"}
    assert run.densify.max_gaussians == 200_000


@pytest.mark.slow  # a process that imports all
def test_the_example_runs_from_an_empty_folder(tmp_path, monkeypatch):
    words = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
    words += [
        "data.cache=false",
        "evaluate.turntable=false",
        "evaluate.renders=false",
        "tracker=[csv]",
        "hydra.run.dir=run",
        "threads=1",
    ]
    words += ["steps=40", "densify.every=5", "densify.grow.threshold=1e-6"]
    monkeypatch.syspath_prepend(str(EXAMPLES))  # `python` hands it on as PYTHONPATH
    python("-m", "splatexp", "--config-dir", str(EXAMPLES), "densify=patient", *words, cwd=tmp_path)
    assert "rows_grow" in (tmp_path / "run" / "metrics.csv").read_text()


@dataclass
class Turning(Strategy):
    """Clones and prunes rows of its choice in turn; those below go wrong in one thing each."""

    def rows(self, step, splats):
        return torch.arange(len(splats))[step % 7 :: 9]

    def edit(self, step, splats):
        act = operators.prune if step % 8 == 7 else operators.clone
        return act(splats, self.rows(step, splats), OperatorSettings(), step, torch.Generator())

    def plan(self, step, splats, context=None):
        if step % 4 == 3:
            yield self.edit(step, splats)
        yield from super().plan(step, splats, context)


class Meddling(Turning):
    def plan(self, step, splats, context=None):
        with torch.no_grad():
            splats.means[step % len(splats)] += 1e-7
        yield from super().plan(step, splats, context)


class Overfull(Turning):
    def plan(self, step, splats, context=None):
        yield operators.clone(splats, self.rows(step, splats), OperatorSettings(), step, torch.Generator())


class Drawing(Turning):
    def rows(self, step, splats):
        return torch.randperm(len(splats))[:5]


class Late(Turning):
    def rows(self, step, splats):
        return torch.randperm(len(splats))[:5] if step > 60 else super().rows(step, splats)


class Remembering(Turning):
    calls = 0

    def rows(self, step, splats):
        self.calls += 1
        return super().rows(self.calls, splats)


class Watching(Turning):
    def observe(self, step, splats, render, camera):
        splats.exp_avg["means"] *= 0.5


class Ageless(Turning):
    def edit(self, step, splats):
        return super().edit(0, splats)


class Blinding(Turning):
    def edit(self, step, splats):
        edit = super().edit(step, splats)
        edit.values["opacity_logits"] = edit.values["opacity_logits"] / 0
        return edit


class Truncating(Turning):
    def plan(self, step, splats, context=None):
        splats.row_stat("mine").add_(1)
        splats.stats["mine"] = splats.stats["mine"][:50]
        yield from super().plan(step, splats, context)


class Renewing(Turning):
    def edit(self, step, splats):
        splats.next_uid = 0
        return super().edit(step, splats)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (Meddling, "plan at step 0: expected only edits to change rows: means"),
        (Overfull, r"cap: expected 120 rows after step \d+, got \d+"),
        (Drawing, "two runs of one seed differ after 41 steps: "),
        (Late, "two runs of one seed differ: "),
        (Remembering, "a run resumed after 41 steps differs: "),
        (Watching, r"observe at step \d: expected only statistics to change: exp_avg.means"),
        (Ageless, "edit at step 3: born of a fresh row is not 3"),
        (Blinding, "edit at step 3: opacity_logits is not finite"),
        (Truncating, "stats.mine has 50 rows of 72"),
        (Renewing, "plan at step 3: expected only edits to change rows: next_uid"),
    ],
)
def test_what_is_broken_is_found(broken, line):
    with pytest.raises(AssertionError) as caught:
        check_strategy(broken(), steps=3000)
    assert re.match(line, str(caught.value)) or str(caught.value).endswith(line)
    assert "\n" not in str(caught.value)


def test_what_the_broken_ones_are_derived_from_is_sound():
    assert check_strategy(Turning(), steps=3000)[""] == 30


def forget(splats, fresh):
    splats.exp_avg = {name: torch.zeros_like(row) for name, row in splats.exp_avg.items()}


def inherit(splats, fresh):
    splats.exp_avg_sq["sh0"][fresh] = 1.0


def leave(splats, fresh):
    splats.stats["grad2d.sum"] = torch.arange(len(splats)).float()


def reuse(splats, fresh):
    splats.uid[fresh] = torch.arange(int(fresh.sum()))


def swap(splats, fresh):
    splats.uid[:2] = splats.uid[:2].flip(0)


def shorten(splats, fresh):
    splats.exp_avg["quats"] = splats.exp_avg["quats"][:-1]


def widen(splats, fresh):
    splats.smoothing[fresh] += 1.0


def rise(splats, fresh):
    splats.generation += 1


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (forget, "grow at step 5: exp_avg.means of a survivor changed"),
        (inherit, "grow at step 5: exp_avg_sq.sh0 of a fresh row is not 0"),
        (leave, "grow at step 5: stats.grad2d.sum of a survivor changed"),
        (reuse, "grow at step 5: uid of a fresh row was used before"),
        (swap, "grow at step 5: uid of a survivor changed"),
        (shorten, "grow at step 5: exp_avg.quats has"),
        (widen, "grow at step 5: smoothing of a fresh row is neither given nor its parent's"),
        (rise, "grow at step 5: generation of a survivor changed"),
    ],
)
def test_what_does_not_move_with_its_row_is_found(harm, line, monkeypatch):
    whole = Splats.apply

    def apply(splats, edit):
        grown = whole(splats, edit)
        if isinstance(edit, Edit):
            harm(splats, edit.fresh)
        return grown

    monkeypatch.setattr(Splats, "apply", apply)
    with pytest.raises(AssertionError, match=re.escape(line)):
        grow = Rule("clone", "grad2d", "top", 0.1)
        check_strategy(RuleStrategy(start=3, stop=0, every=3, grow=grow), steps=0)


@operator(births=-1, max_distance=0.005, max_log_ratio=1.0, max_pairs=0)
def averaging(splats, rows, settings, step, generator):
    """Two rows' plain means, quaternions included."""
    pairs = find_pairs(splats, rows.unique(), settings.max_distance * splats.extent, settings.max_log_ratio)
    values = {name: splats.params[name].detach()[pairs].mean(1) for name in splats.params}
    return replace_rows(splats, pairs.flatten(), pairs[:, 0], values, step) if len(pairs) else None


@operator(births=0, opacity="mcmc", opacity_factor=0.6)
def doubling(splats, rows, shape, step, generator):
    """Relocated with the opacity of the row that is copied."""
    return operators.relocate(splats, rows, OperatorSettings(opacity="revised"), step, generator)


@pytest.mark.parametrize(
    ("name", "act", "line"),
    [("merge", averaging, "merging"), ("relocate", doubling, "the integral along a line changed")],
)
def test_operators_that_lose_something_are_found(name, act, line, monkeypatch):
    monkeypatch.setitem(operators.OPERATORS, name, act)
    rule = EVERYTHING["merged" if name == "merge" else "relocated"]
    with pytest.raises(AssertionError, match=line):
        check_strategy(RuleStrategy(start=0, stop=0, only=rule))


def test_the_strategy_given_stays_as_it_is():
    strategy = Remembering()
    with pytest.raises(AssertionError):
        check_strategy(strategy)
    assert strategy.calls == 0 and not strategy.max_gaussians


def test_scores_that_a_rasterizer_cannot_give_are_refused():
    class Poor(Reference):
        attribution_fields = frozenset()

    with pytest.raises(ValueError, match="raster: expected one that provides weighted"):
        check_strategy(RuleStrategy(grow=Rule(score="error")), raster=Poor())


def test_contexts_are_not_needed():
    assert [edit.rule for edit in Strategy(max_gaussians=9).plan(0, tiny.splats(), Context())] == ["cap"]
