"""Strategies: an ordered list of rules, then opacity policies, noise on the means, and a cap on the rows.

A strategy keeps no state: statistics are rows of the splats, and everything random follows from (seed, step).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import ClassVar

import torch

from splatexp.cameras.pinhole import Camera
from splatexp.densify.context import Context
from splatexp.densify.growth import Growth
from splatexp.densify.noise import Noise
from splatexp.densify.opacity_policy import OpacityDecay, OpacityReset, is_due
from splatexp.densify.operator import OperatorSettings
from splatexp.densify.operators import clone, prune
from splatexp.densify.rules import Rule
from splatexp.densify.scores import effective_opacity
from splatexp.densify.selectors import best_rows, select
from splatexp.densify.statistics import (
    CHANNELS,
    COUNTS,
    Observation,
    accumulate,
    survey_statistics,
    training_statistics,
)
from splatexp.densify.survey import Survey
from splatexp.gaussians.splats import Edit, Overwrite, Splats
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import STEPS, check_range
from splatexp.settings.named import Named
from splatexp.system.rng import generator

__all__ = ["Context", "NoDensification", "RuleStrategy", "Strategy"]

# The random numbers of a rule follow from its name. This one draws and was called otherwise in version 0.1,
# whose name stays its seed so that the results stay the same. (Other renamed rules draw nothing.)
SEED_NAMES = {"prune_low_score": "half"}


@dataclass
class Strategy:
    """The interface of density control to the training loop; by itself it only prunes down to the cap."""

    max_gaussians: int = 0  # most rows after any step, those with the lowest opacity go; 0: no limit

    def __post_init__(self) -> None:
        check_range("densify.max_gaussians", self.max_gaussians, 0)

    @property
    def score_names(self) -> set[str]:
        """Return the names of the scores that it may read."""
        return set()

    @property
    def attribution_fields(self) -> set[str]:
        """Return the fields of `Attribution` that its surveys need from the rasterizer."""
        return set()

    def render_requests(self, step: int) -> set[str]:
        """Return what the render of a step has to provide besides the image, such as "absgrad"."""
        return set()

    def changes_rows(self, step: int) -> bool:
        """Return whether rows may be added, removed or moved after a step, which takes extra memory."""
        return False

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add the rendered view of a step and its gradients to the statistics."""

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        """Yield the edits of a step; each must be applied before the next one is asked for."""
        yield from self.prune_to_cap(step, splats, context)

    def prune_to_cap(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit]:
        """Yield an edit that prunes the rows of lowest opacity where there are more than the cap allows."""
        cap = self._cap(context)
        if cap is not None and cap < len(splats):
            everything = torch.ones(len(splats), dtype=torch.bool, device=splats.uid.device)
            excess = len(splats) - cap
            rows = best_rows(everything, splats.contribution(), splats.uid, excess, lowest=True)
            yield from _labelled("cap", prune(splats, rows, OperatorSettings(), step, generator()), "prune")

    def _cap(self, context: Context | None) -> int | None:
        """Return the most rows that `max_gaussians` and the coding rate allow, or None without a limit."""
        caps = [self.max_gaussians or None, None if context is None else context.max_rows]
        return min((cap for cap in caps if cap is not None), default=None)

    def metrics(self, step: int, splats: Splats, context: Context) -> dict[str, float]:
        """Return the state of its budget and its policies after a step, by name, for the log."""
        return {"cap": self.max_gaussians} if self.max_gaussians else {}


@dataclass
class NoDensification(Strategy):
    """Keep the initial Gaussians, pruned down to `max_gaussians` where that is set."""


@dataclass
class RuleStrategy(Named, Strategy):
    """At regular events, apply rules in their order: every setting of type `Rule` is one.

    Each rule reads the rows that the rule before it left. After the rules come the opacity reset, the opacity
    decay, the noise and the cap.
    """

    every: int = 100  # steps between events; 0: no events
    start: int = field(default=500, metadata=STEPS)  # events come after more than this many steps
    stop: int = field(default=15_000, metadata=STEPS)  # and after fewer than this many; 0: until the end
    max_births: int = 0  # births per event at most, the best-scored first; 0: no limit
    min_births: int = 0  # births per event at least, below the threshold too, of rows with a score above 0
    max_prunes: int = 0  # rows pruned per event at most; 0: no limit
    max_merges: int = 0  # pairs merged per event at most; 0: no limit
    growth: Growth = field(default_factory=Growth)  # limit on the number of rows over time
    exact: bool = False  # the last event clones, by opacity, until there are max_gaussians
    survey: Survey = field(default_factory=Survey)
    opacity_reset: OpacityReset = field(default_factory=OpacityReset)
    opacity_decay: OpacityDecay = field(default_factory=OpacityDecay)
    noise: Noise = field(default_factory=Noise)

    entry_class: ClassVar[type] = Rule  # the class of the further settings of a strategy in YAML

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "start", "stop", "max_births", "min_births", "max_prunes", "max_merges"):
            check_range(f"densify.{name}", getattr(self, name), 0)
        if 0 < self.max_births < self.min_births:
            raise ValueError(
                f"densify.min_births: expected at most densify.max_births={self.max_births}, "
                f"got {self.min_births}"
            )
        if not self.max_gaussians and (self.exact or self.growth.kind not in ("none", "compound")):
            cause = "exact=true" if self.exact else f"growth.kind={self.growth.kind}"
            raise ValueError(f"densify.max_gaussians: expected a cap above 0 with densify.{cause}, got 0")
        for name, rule in self.rules.items():
            resets = self.opacity_reset.every
            if rule.after_reset and self.every and (not resets or rule.after_reset % self.every):
                raise ValueError(
                    f"densify.{name}.after_reset: expected a multiple of densify.every={self.every}, and "
                    f"opacity resets, got {rule.after_reset} with densify.opacity_reset.every={resets}"
                )

    @property
    def rules(self) -> dict[str, Rule]:
        """Return the rules by name, in the order in which they act."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Rule)}

    @property
    def score_names(self) -> set[str]:
        """Return the names of the scores that it may read."""
        return {name for rule in self.rules.values() for name in rule.score_names} if self.every else set()

    @property
    def attribution_fields(self) -> set[str]:
        """Return the fields of `Attribution` that its surveys need from the rasterizer."""
        names = (name for rule in self.rules.values() for name in rule.statistics)
        return _requirements(survey_statistics(names)) if self.every else set()

    def statistics(self, step: int) -> set[str]:
        """Return the statistics that training gathers at a step because a later event reads them."""
        remaining = [
            rule for rule in self.rules.values() if _before(step, self.stop) and _before(step, rule.stop)
        ]
        if not self.every:
            return set()
        return training_statistics(name for rule in remaining for name in rule.statistics)

    def changes_rows(self, step: int) -> bool:
        """Return whether an event follows a step."""
        return is_due(step, self.every, self.start, self.stop)

    def render_requests(self, step: int) -> set[str]:
        """Return what the render of a step has to provide besides the image, such as "absgrad"."""
        return _requirements(self.statistics(step))

    @torch.no_grad()
    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add the rendered view of a step and its gradients to the statistics."""
        accumulate(self.statistics(step), Observation(splats, camera, render, render.visible[0]))

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        """Yield the edits of a step; each must be applied before the next one is asked for."""
        context = context or Context()
        event = self.changes_rows(step)
        if event:
            yield from self._event(step, splats, context)
        if self.opacity_reset.is_due(step):
            yield self.opacity_reset.plan(splats)
        if self.opacity_decay.is_due(step, event, self.stop):
            yield self.opacity_decay.plan(splats)
        if self.noise.active(step):
            backend = context.raster.backend if context.raster is not None else "reference"
            yield self.noise.plan(splats, step, context.seed, context.means_lr, backend)
        yield from self.prune_to_cap(step, splats, context)
        if event and self.exact:
            another_follows = is_due(step + self.every, self.every, self.start, self._end(context))
            if not another_follows:
                yield from self._fill_to_cap(step, splats, context.seed)

    def metrics(self, step: int, splats: Splats, context: Context) -> dict[str, float]:
        """Return the state of its budget and its policies after a step, by name, for the log."""
        values = super().metrics(step, splats, context)
        limit = self._growth_limit(step, len(splats), splats.initial_count, context) if self.every else None
        if limit is not None:
            values["growth_limit"] = limit
        every = self.opacity_reset.every
        if every:
            resets = [done for done in range(every, step + 2, every) if self.opacity_reset.is_due(done - 1)]
            values["opacity_resets"] = len(resets)
            values["steps_since_reset"] = step + 1 - (resets[-1] if resets else 0)
        if self.opacity_decay.kind != "none":
            values["opacity_decay"] = self.opacity_decay.amount_at(step, self.stop)
        return values

    def _event(self, step: int, splats: Splats, context: Context) -> Iterator[Edit]:
        """Yield the edits of the rules that act in the event after a step."""
        acting = {name: rule for name, rule in self.rules.items() if self._acts(rule, step)}
        statistics = {name for rule in acting.values() for name in rule.statistics}
        if surveyed := survey_statistics(statistics):
            self.survey(surveyed, splats, step, context)
        begun = len(splats)
        born = pruned = merged = 0
        limit = self._growth_limit(step, begun, splats.initial_count, context)
        for name, rule in acting.items():
            min_rows, max_rows = 0, None
            if rule.births > 0:
                min_rows, max_rows = self._birth_budget(len(splats), born, limit, rule.births)
            elif rule.operate == "prune":
                max_rows = max(0, self.max_prunes - pruned) if self.max_prunes else None
            elif rule.operate == "merge":
                max_rows = max(0, self.max_merges - merged) if self.max_merges else None
            random = generator("densify", context.seed, step, SEED_NAMES.get(name, name))
            before = len(splats)
            edit = rule.plan(step, splats, random, min_rows=min_rows, max_rows=max_rows, context=context)
            yield from _labelled(name, edit, rule.operate)
            born += max(0, len(splats) - before)
            pruned += (before - len(splats)) if rule.operate == "prune" else 0
            merged += (before - len(splats)) if rule.operate == "merge" else 0
        if training_statistics(statistics):
            # All of them restart together with the views that count them, those of rarer rules too.
            for name in training_statistics(name for rule in self.rules.values() for name in rule.statistics):
                splats.row_stat(name).zero_()

    def _acts(self, rule: Rule, step: int) -> bool:
        """Return whether a rule acts in the event after a step."""
        if rule.after_reset and not self.opacity_reset.is_due(step - rule.after_reset):
            return False
        return rule.is_due(step) and not self.opacity_reset.in_cooldown(step, rule.reset_cooldown)

    def _end(self, context: Context) -> int:
        """Return the number of steps from which on there is no event: its own end or the run's; 0: never."""
        ends = [end for end in (self.stop, context.steps + 1 if context.steps else 0) if end]
        return min(ends, default=0)

    def _growth_limit(self, step: int, count: int, first: int, context: Context) -> int | None:
        """Return how many rows there may be after this event, by the cap and the growth curve."""
        stops = [rule.stop for rule in self.rules.values() if rule.births > 0]
        ends = [self._end(context), 0 if 0 in stops else max(stops, default=0)]
        end = min((end for end in ends if end), default=0)
        last = (end - 1) // self.every * self.every if end else 0  # steps done at the last event that grows
        x = min(1.0, (step + 1 - self.start) / max(1, last - self.start)) if last else 1.0
        curve = self.growth.limit(x, count, first, self.max_gaussians, context.downscale)
        limits = [limit for limit in (self._cap(context), curve) if limit is not None]
        return min(limits, default=None)

    def _birth_budget(self, count: int, born: int, limit: int | None, births: int) -> tuple[int, int | None]:
        """Return the least and the most rows that a rule may select.

        Args:
            count: rows now.
            born: births in this event so far.
            limit: how many rows there may be after the event.
            births: rows that each selected row adds.
        """
        limits = [self.max_births - born] if self.max_births else []
        limits += [limit - count] if limit is not None else []
        max_rows = max(0, min(limits)) // births if limits else None
        min_rows = -(-max(0, self.min_births - born) // births)
        return min_rows if max_rows is None else min(min_rows, max_rows), max_rows

    def _fill_to_cap(self, step: int, splats: Splats, seed: int) -> Iterator[Edit]:
        """Yield an edit that clones rows up to the cap; MCMC's opacities and scales preserve the image."""
        missing = self.max_gaussians - len(splats)
        if missing <= 0 or not len(splats):
            return
        random = generator("fill", seed, step)
        rows = select(
            "sample_with_replacement",
            effective_opacity(splats, step),
            0,
            torch.ones_like(splats.uid, dtype=torch.bool),
            splats.uid,
            min_rows=missing,
            max_rows=missing,
            random=random,
        )
        edit = clone(splats, rows, OperatorSettings(opacity="mcmc"), step, random)
        yield from _labelled("fill", edit, "clone")


def _labelled(rule: str, edit: Edit | None, operator: str) -> Iterator[Edit]:
    """Yield the edit, if there is one, marked with the rule and the operator that made it."""
    if edit is not None:
        edit.rule, edit.operator = rule, operator
        yield edit


def _requirements(statistics: set[str]) -> set[str]:
    """Return what the rasterizer has to compute for statistics."""
    bases = {name.partition(".")[0] for name in statistics - set(COUNTS)}
    return {required for base in bases for required in CHANNELS[base].requires}


def _before(step: int, stop: int) -> bool:
    """Return whether a step lies before an end; 0: there is none."""
    return step + 1 < stop or not stop
