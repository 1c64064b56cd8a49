"""What every strategy promises, as a test: `check` trains one on a tiny scene and watches every edit.

    from splatexp.config.build import option
    from splatexp.testing.conformance import check

    check(option("densify", "adc"))

Rows, moments, statistics and identity move together; survivors keep their bits; uids are never used again
and ages are right; N <= cap after every step; merging conserves mass, mean and covariance, relocation the
integral along a line of sight; a run follows from its seed, and a resumed one is the uninterrupted one.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

from splatexp.cameras.pinhole import Camera
from splatexp.densify.rules import CHOICES
from splatexp.densify.strategy import Context, Strategy
from splatexp.gaussians.splats import Edit, Overwrite, Splats
from splatexp.importance import NONE, Importance
from splatexp.raster.backends import CPU
from splatexp.raster.rasterizer import Rasterizer, Render
from splatexp.schedules.schedule import Schedule
from splatexp.testing import toy_scene
from splatexp.testing.invariants import (
    State,
    alike,
    expect,
    finite,
    merged,
    moved,
    overwritten,
    relocated,
    state_of,
    still,
)
from splatexp.train.loop import train
from splatexp.train.optimizer import Adam
from splatexp.train.recipe import Recipe
from splatexp.train.smoothing import Smoothing

MIDDLE = 41  # steps done where a run is interrupted: between two events, with gradients that wait


def check(
    strategy: Strategy,
    importance: Importance | None = None,
    *,
    steps: int = 30_000,
    raster: Rasterizer | None = None,
    seed: int = 0,
) -> Counter[str]:
    """Hold a strategy against what every strategy promises.

    Args:
        steps: of the run that it is written for. Its windows and cadences (`every`, `pause`, `grace`,
            `after_reset`) are compressed to 120 steps, and it gets a cap of at most 120 rows.
            0: the strategy is taken as it is, for 120 steps.
        importance: learned beside it, where a rule reads it; compressed likewise.

    Returns: how often each rule changed rows. One that is not there has not been put to the test.
    Raises: AssertionError, one line that names the broken promise.
    """
    raster, learned = raster or CPU(), importance or NONE()
    if steps:
        strategy = toy_scene.compressed(strategy, toy_scene.STEPS / steps)
        learned = toy_scene.compressed(learned, toy_scene.STEPS / steps, every=1)
    if missing := strategy.wants - raster.offers:
        raise ValueError(f"raster: expected one that gives {', '.join(sorted(missing))}, got {raster.name}")
    fit = partial(_fit, strategy, learned, raster, seed)
    watch = _Watch(deepcopy(strategy))
    whole = fit(watch)
    again = fit(stop=MIDDLE)
    alike(again[MIDDLE], whole[MIDDLE], f"two runs of one seed differ after {MIDDLE} steps")
    resumed = fit(start=MIDDLE, state=again[MIDDLE])
    try:
        alike(resumed[toy_scene.STEPS], whole[toy_scene.STEPS], f"a run resumed after {MIDDLE} steps differs")
    except AssertionError:
        alike(fit()[toy_scene.STEPS], whole[toy_scene.STEPS], "two runs of one seed differ")
        raise
    count, cap = len(whole[toy_scene.STEPS]["uid"]), strategy.max_gaussians
    expect(not getattr(strategy, "exact", False) or count == cap, f"exact: expected {cap} rows, got {count}")
    return watch.made


def _fit(
    strategy: Strategy,
    importance: Importance,
    raster: Rasterizer,
    seed: int,
    watch: Strategy | None = None,
    start: int = 0,
    stop: int = toy_scene.STEPS,
    state: State | None = None,
) -> dict[int, State]:
    """One run; what the rows are at its middle and at its end, by the steps that are done."""
    scene, splats, states = toy_scene.scene(raster, seed), toy_scene.rows(toy_scene.EXTENT, seed), {}
    if state is not None:
        splats.load_state_dict(state)

    def keep(step: int, splats: Splats) -> None:
        if step + 1 in (MIDDLE, toy_scene.STEPS):
            states[step + 1] = state_of(splats)
        if step + 1 == stop:
            raise _Interrupted

    try:
        recipe = Recipe(
            steps=toy_scene.STEPS,
            seed=seed,
            raster=raster,
            optimizer=Adam(opacity_logits=0.3, update_every=[2]),
            schedule=Schedule(sh_every=20),
            densify=watch or deepcopy(strategy),
            importance=deepcopy(importance),
            smoothing=Smoothing(amount=0.2, every=5),
        )
        train(splats, scene, recipe, start=start, progress=False, on_step=keep)
    except _Interrupted:
        pass
    return states


class _Watch(Strategy):
    """Does what a strategy does, and looks at the rows before and after everything."""

    def __init__(self, strategy: Strategy):
        self.strategy, self.max_gaussians = strategy, strategy.max_gaussians
        self.made: Counter[str] = Counter()

    def channels(self, step: int) -> set[str]:
        return self.strategy.channels(step)

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        before = state_of(splats)
        self.strategy.observe(step, splats, render, camera)
        still(before, splats, f"observe at step {step}: expected to write statistics alone")

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        where = f"plan at step {step}: expected edits alone to change rows"
        before = state_of(splats)
        for edit in self.strategy.plan(step, splats, context):
            still(before, splats, where)
            before = state_of(splats)  # with the statistics of a survey
            yield edit
            line = f"{edit.by or type(edit).__name__.lower()} at step {step}"
            if isinstance(edit, Overwrite):
                overwritten(before, edit, splats, line)
            else:
                moved(before, edit, step, splats, line)
                self._conserved(before, edit, splats, line)
                self.made[edit.by] += 1
            finite(splats, line)
            before = state_of(splats)
        still(before, splats, where)
        cap = self.max_gaussians
        expect(
            not cap or len(splats) <= cap, f"cap: expected {cap} rows after step {step}, got {len(splats)}"
        )

    def _conserved(self, before: State, edit: Edit, splats: Splats, line: str) -> None:
        """What rules of known operators keep."""
        rule = getattr(self.strategy, "rules", {}).get(edit.by)
        if rule is None:
            return
        opacity = rule.opacity or CHOICES[rule.operate].own.get("opacity")
        if rule.operate == "merge":
            merged(before, edit, splats, line)
        elif rule.operate in ("relocate", "clone") and opacity == "mcmc":
            relocated(before, edit, splats, line)


class _Interrupted(Exception):
    """The end of a run that is to be resumed."""
