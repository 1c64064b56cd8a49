"""A conformance check for strategies: `check_strategy` trains one on a small scene and verifies every edit.

    from splatexp.config.build import option
    from splatexp.testing.conformance import check_strategy

    check_strategy(option("densify", "adc"))

It verifies that rows, Adam moments, statistics and identity move together; that surviving rows keep their
bits; that uids are never used again and ages are right; that N <= cap after every step; that merging
conserves mass, mean and covariance, and relocation the integral along a line of sight; that a run follows
from its seed, and that a resumed run equals the uninterrupted one.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

from splatexp.cameras.pinhole import Camera
from splatexp.densify.rules import ALL_OPERATORS
from splatexp.densify.strategy import Context, Strategy
from splatexp.gaussians.splats import Edit, Overwrite, Splats
from splatexp.importance import Importance, NoImportance
from splatexp.raster.backends import CPU
from splatexp.raster.rasterizer import Render, SceneRasterizer
from splatexp.schedules.schedule import Schedule
from splatexp.testing import toy_scene
from splatexp.testing.invariants import (
    State,
    check_edit,
    check_equal,
    check_finite,
    check_merge,
    check_overwrite,
    check_relocation,
    check_unchanged,
    copy_state,
    require,
)
from splatexp.train.loop import train
from splatexp.train.optimizer import Adam
from splatexp.train.recipe import Recipe
from splatexp.train.smoothing import Smoothing

MIDDLE = 41  # steps after which a run is interrupted: between two events, with accumulated gradients


def check_strategy(
    strategy: Strategy,
    importance: Importance | None = None,
    *,
    steps: int = 30_000,
    raster: SceneRasterizer | None = None,
    seed: int = 0,
) -> Counter[str]:
    """Check that a strategy keeps what every strategy promises.

    Args:
        importance: learned during the check, for rules that read it; compressed in the same way.
        steps: length of the run that the strategy is written for. Its windows and intervals (`every`,
            `reset_cooldown`, `min_age`, `after_reset`) are compressed to 120 steps, and it gets a cap of at
            most 120 rows. 0: the strategy is checked as it is, for 120 steps.
        raster: the rasterizer; None: raster=cpu.

    Returns: how often each rule changed rows. A rule that is missing was not tested.

    Raises: AssertionError, one line that names the broken promise.
    """
    raster, learned = raster or CPU(), importance or NoImportance()
    if steps:
        strategy = toy_scene.compress_schedule(strategy, toy_scene.STEPS / steps)
        learned = toy_scene.compress_schedule(learned, toy_scene.STEPS / steps, every=1)
    if missing := strategy.attribution_fields - raster.attribution_fields:
        raise ValueError(
            f"raster: expected one that provides {', '.join(sorted(missing))}, got {raster.name}"
        )
    fit = partial(_fit, strategy, learned, raster, seed)
    watch = _CheckedStrategy(deepcopy(strategy))
    whole = fit(watch)
    again = fit(stop=MIDDLE)
    check_equal(again[MIDDLE], whole[MIDDLE], f"two runs of one seed differ after {MIDDLE} steps")
    resumed = fit(start=MIDDLE, state=again[MIDDLE])
    try:
        check_equal(
            resumed[toy_scene.STEPS], whole[toy_scene.STEPS], f"a run resumed after {MIDDLE} steps differs"
        )
    except AssertionError:
        check_equal(fit()[toy_scene.STEPS], whole[toy_scene.STEPS], "two runs of one seed differ")
        raise
    count, cap = len(whole[toy_scene.STEPS]["uid"]), strategy.max_gaussians
    require(not getattr(strategy, "exact", False) or count == cap, f"exact: expected {cap} rows, got {count}")
    return watch.edit_counts


def _fit(
    strategy: Strategy,
    importance: Importance,
    raster: SceneRasterizer,
    seed: int,
    watch: Strategy | None = None,
    start: int = 0,
    stop: int = toy_scene.STEPS,
    state: State | None = None,
) -> dict[int, State]:
    """Train once; return the state of the rows in the middle and at the end, by the number of steps done."""
    scene, splats, states = (
        toy_scene.toy_scene(raster, seed),
        toy_scene.toy_splats(toy_scene.EXTENT, seed),
        {},
    )
    if state is not None:
        splats.load_state_dict(state)

    def save_state(step: int, splats: Splats) -> None:
        if step + 1 in (MIDDLE, toy_scene.STEPS):
            states[step + 1] = copy_state(splats)
        if step + 1 == stop:
            raise _Interrupted

    try:
        recipe = Recipe(
            steps=toy_scene.STEPS,
            seed=seed,
            raster=raster,
            optimizer=Adam(opacity_logits=0.3, update_every=[2]),
            schedule=Schedule(sh_degree_interval=20),
            densify=watch or deepcopy(strategy),
            importance=deepcopy(importance),
            smoothing=Smoothing(variance=0.2, every=5),
        )
        train(splats, scene, recipe, start=start, progress=False, on_step=save_state)
    except _Interrupted:
        pass
    return states


class _CheckedStrategy(Strategy):
    """A strategy that delegates to another one and checks the rows before and after every call."""

    def __init__(self, strategy: Strategy):
        self.strategy, self.max_gaussians = strategy, strategy.max_gaussians
        self.edit_counts: Counter[str] = Counter()

    def render_requests(self, step: int) -> set[str]:
        return self.strategy.render_requests(step)

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        before = copy_state(splats)
        self.strategy.observe(step, splats, render, camera)
        check_unchanged(before, splats, f"observe at step {step}: expected only statistics to change")

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        where = f"plan at step {step}: expected only edits to change rows"
        before = copy_state(splats)
        for edit in self.strategy.plan(step, splats, context):
            check_unchanged(before, splats, where)
            before = copy_state(splats)  # with the statistics of a survey
            yield edit
            line = f"{edit.rule or type(edit).__name__.lower()} at step {step}"
            if isinstance(edit, Overwrite):
                check_overwrite(before, edit, splats, line)
            else:
                check_edit(before, edit, step, splats, line)
                self._check_conserved(before, edit, splats, line)
                self.edit_counts[edit.rule] += 1
            check_finite(splats, line)
            before = copy_state(splats)
        check_unchanged(before, splats, where)
        cap = self.max_gaussians
        require(
            not cap or len(splats) <= cap, f"cap: expected {cap} rows after step {step}, got {len(splats)}"
        )

    def _check_conserved(self, before: State, edit: Edit, splats: Splats, line: str) -> None:
        """Check what the operators merge, relocate and clone conserve."""
        rule = getattr(self.strategy, "rules", {}).get(edit.rule)
        if rule is None:
            return
        opacity = rule.opacity or ALL_OPERATORS[rule.operate].defaults.get("opacity")
        if rule.operate == "merge":
            check_merge(before, edit, splats, line)
        elif rule.operate in ("relocate", "clone") and opacity == "mcmc":
            check_relocation(before, edit, splats, line)


class _Interrupted(Exception):
    """Raised to end a run that is to be resumed."""
