"""Strategies: rules in their order, an opacity policy after them, noise, a cap over everything.

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
from splatexp.densify.opacity_policy import Fade, Reset, due
from splatexp.densify.operators import Shape, clone, prune
from splatexp.densify.rules import Rule
from splatexp.densify.scores import drawn_opacity
from splatexp.densify.selectors import best, select
from splatexp.densify.statistics import CHANNELS, COUNTS, Sight, add, along_training, surveyed
from splatexp.densify.survey import Survey
from splatexp.gaussians.splats import Edit, Overwrite, Splats
from splatexp.raster.rasterizer import Render
from splatexp.settings.checks import STEPS, check_range
from splatexp.settings.named import Named
from splatexp.system.rng import generator

__all__ = ["Context", "Fixed", "Ruled", "Strategy"]


@dataclass
class Strategy:
    """What the loop asks of density control; by itself it keeps the first rows, down to the cap."""

    max_gaussians: int = 0  # never more rows than this after any step, the faintest go; 0: no limit

    def __post_init__(self) -> None:
        check_range("densify.max_gaussians", self.max_gaussians, 0)

    @property
    def words(self) -> set[str]:
        """Scores that it may read."""
        return set()

    @property
    def wants(self) -> set[str]:
        """Fields of `Attribution` that its surveys take of the rasterizer."""
        return set()

    def channels(self, step: int) -> set[str]:
        """What it wants of the rasterizer besides the picture."""
        return set()

    def moves(self, step: int) -> bool:
        """Whether rows may come, go or move after a step, which takes memory for a while."""
        return False

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add what the step's backward pass left to the statistics."""

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        """Edits to apply one by one: each is made from the rows that the one before it left."""
        yield from self.trim(step, splats, context)

    def trim(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit]:
        """The edit that leaves no more rows than the cap, the faintest go."""
        cap = self._cap(context)
        if cap is not None and cap < len(splats):
            everyone = torch.ones(len(splats), dtype=torch.bool, device=splats.uid.device)
            gone = len(splats) - cap
            crowd = best(everyone, splats.strength(), splats.uid, gone, low=True)
            yield from _by("cap", prune(splats, crowd, Shape(), step, generator()), "prune")

    def _cap(self, context: Context | None) -> int | None:
        """Never more rows than this, by its own setting and by a rate; None: no limit."""
        caps = [self.max_gaussians or None, None if context is None else context.cap]
        return min((cap for cap in caps if cap is not None), default=None)

    def status(self, step: int, splats: Splats, context: Context) -> dict[str, float]:
        """Where its budget and its policies stand after a step, by name, for the record."""
        return {"cap": self.max_gaussians} if self.max_gaussians else {}


@dataclass
class Fixed(Strategy):
    """No density control."""


@dataclass
class Ruled(Named, Strategy):
    """Events every so many steps, in which the fields of type `Rule` fire in their order."""

    every: int = 100  # steps between events; 0: none
    start: int = field(default=500, metadata=STEPS)  # events come after more than so many steps
    stop: int = field(default=15_000, metadata=STEPS)  # and fewer than so many; 0: to the end
    clone_max: int = 0  # births per event, best-scored first; 0: no limit
    densify_add: int = (
        0  # at least so many births per event, below the threshold too, while a score is above 0
    )
    prune_max: int = 0  # rows pruned per event; 0: no limit
    merge_max: int = 0  # pairs merged per event; 0: no limit
    growth: Growth = field(default_factory=Growth)
    exact: bool = False  # the last event leaves max_gaussians: what is missing is cloned, drawn by opacity
    survey: Survey = field(default_factory=Survey)
    reset: Reset = field(default_factory=Reset)
    fade: Fade = field(default_factory=Fade)
    noise: Noise = field(default_factory=Noise)

    others: ClassVar[type] = Rule  # what further settings of a strategy in YAML are

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "start", "stop", "clone_max", "densify_add", "prune_max", "merge_max"):
            check_range(f"densify.{name}", getattr(self, name), 0)
        if 0 < self.clone_max < self.densify_add:
            raise ValueError(
                f"densify.densify_add: expected at most clone_max={self.clone_max}, got {self.densify_add}"
            )
        if not self.max_gaussians and (self.exact or self.growth.kind not in ("none", "compound")):
            wish = "exact=true" if self.exact else f"growth.kind={self.growth.kind}"
            raise ValueError(f"densify.max_gaussians: expected a cap with {wish}, got 0")
        for name, rule in self.rules.items():
            if rule.after_reset and self.every and (not self.reset.every or rule.after_reset % self.every):
                raise ValueError(
                    f"densify.{name}.after_reset: expected a multiple of every={self.every}, with resets, "
                    f"got {rule.after_reset} with reset.every={self.reset.every}"
                )

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by name, in order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Rule)}

    @property
    def words(self) -> set[str]:
        """Scores that it may read."""
        return {word for rule in self.rules.values() for word in rule.words} if self.every else set()

    @property
    def wants(self) -> set[str]:
        """Fields of `Attribution` that its surveys take of the rasterizer."""
        names = surveyed(name for rule in self.rules.values() for name in rule.needs) - set(COUNTS)
        bases = {name.partition(".")[0] for name in names} if self.every else set()
        return {want for base in bases for want in CHANNELS[base].wants}

    def statistics(self, step: int) -> set[str]:
        """Statistics that an event yet to come will read and that training gathers."""
        ahead = [
            rule for rule in self.rules.values() if _before(step, self.stop) and _before(step, rule.stop)
        ]
        return along_training(name for rule in ahead for name in rule.needs) if self.every else set()

    def moves(self, step: int) -> bool:
        """Whether an event follows a step."""
        return due(step, self.every, self.start, self.stop)

    def channels(self, step: int) -> set[str]:
        """What it wants of the rasterizer besides the picture."""
        bases = {name.partition(".")[0] for name in self.statistics(step) - set(COUNTS)}
        return {want for base in bases for want in CHANNELS[base].wants}

    @torch.no_grad()
    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add what the step's backward pass left to the statistics."""
        add(self.statistics(step), Sight(splats, camera, render, render.visible[0]))

    def plan(self, step: int, splats: Splats, context: Context | None = None) -> Iterator[Edit | Overwrite]:
        """Edits to apply one by one: each is made from the rows that the one before it left."""
        context = context or Context()
        event = self.moves(step)
        if event:
            yield from self._event(step, splats, context)
        if self.reset.due(step):
            yield self.reset.plan(splats)
        if self.fade.due(step, event, self.stop):
            yield self.fade.plan(splats)
        if self.noise.active(step):
            backend = context.raster.backend if context.raster is not None else "reference"
            yield self.noise.plan(splats, step, context.seed, context.rate, backend)
        yield from self.trim(step, splats, context)
        if event and self.exact and not due(step + self.every, self.every, self.start, self._end(context)):
            yield from self._fill(step, splats, context.seed)

    def status(self, step: int, splats: Splats, context: Context) -> dict[str, float]:
        """Where its budget and its policies stand after a step, by name, for the record."""
        values = super().status(step, splats, context)
        limit = self._limit(step, len(splats), splats.initial, context) if self.every else None
        if limit is not None:
            values["limit"] = limit
        if self.reset.every:
            past = [
                done
                for done in range(self.reset.every, step + 2, self.reset.every)
                if self.reset.due(done - 1)
            ]
            values |= {"resets": len(past), "since_reset": step + 1 - (past[-1] if past else 0)}
        if self.fade.kind != "none":
            values["fade"] = self.fade.strength(step, self.stop)
        return values

    def _event(self, step: int, splats: Splats, context: Context) -> Iterator[Edit]:
        firing = {name: rule for name, rule in self.rules.items() if self._fires(rule, step)}
        needs = {name for rule in firing.values() for name in rule.needs}
        if looks := surveyed(needs):
            self.survey(looks, splats, step, context)
        begun, born, pruned, merged = len(splats), 0, 0, 0
        limit = self._limit(step, begun, splats.initial, context)
        for name, rule in firing.items():
            least, most = 0, None
            if rule.births > 0:
                least, most = self._budget(len(splats), born, limit, rule.births)
            elif rule.operate == "prune":
                most = max(0, self.prune_max - pruned) if self.prune_max else None
            elif rule.operate == "merge":
                most = max(0, self.merge_max - merged) if self.merge_max else None
            random, before = generator("densify", context.seed, step, name), len(splats)
            edit = rule.plan(step, splats, random, least=least, most=most, context=context)
            yield from _by(name, edit, rule.operate)
            born += max(0, len(splats) - before)
            pruned += (before - len(splats)) if rule.operate == "prune" else 0
            merged += (before - len(splats)) if rule.operate == "merge" else 0
        if along_training(needs):  # all begin anew with the views that count them, also for other cadences
            for name in along_training(name for rule in self.rules.values() for name in rule.needs):
                splats.row_stat(name).zero_()

    def _fires(self, rule: Rule, step: int) -> bool:
        if rule.after_reset and not self.reset.due(step - rule.after_reset):
            return False
        return rule.fires(step) and not self.reset.within(step, rule.pause)

    def _end(self, context: Context) -> int:
        """The steps after which there is no event: its own end or the run's."""
        ends = [end for end in (self.stop, context.steps + 1 if context.steps else 0) if end]
        return min(ends, default=0)

    def _limit(self, step: int, count: int, first: int, context: Context) -> int | None:
        """How many rows there may be after this event, by the cap and the curve of growth."""
        growing = [rule.stop for rule in self.rules.values() if rule.births > 0]
        ends = [self._end(context), 0 if 0 in growing else max(growing, default=0)]
        end = min((end for end in ends if end), default=0)
        last = (end - 1) // self.every * self.every if end else 0  # steps done at the last event that grows
        x = min(1.0, (step + 1 - self.start) / max(1, last - self.start)) if last else 1.0
        curve = self.growth.limit(x, count, first, self.max_gaussians, context.factor)
        limits = [limit for limit in (self._cap(context), curve) if limit is not None]
        return min(limits, default=None)

    def _budget(self, count: int, born: int, limit: int | None, births: int) -> tuple[int, int | None]:
        """Least and most rows that a rule may take, after so many births in this event."""
        limits = [self.clone_max - born] if self.clone_max else []
        limits += [limit - count] if limit is not None else []
        most = max(0, min(limits)) // births if limits else None
        least = -(-max(0, self.densify_add - born) // births)
        return least if most is None else min(least, most), most

    def _fill(self, step: int, splats: Splats, seed: int) -> Iterator[Edit]:
        """Clone up to the cap, which changes the picture little: opacities and scales are MCMC's."""
        missing = self.max_gaussians - len(splats)
        if missing <= 0 or not len(splats):
            return
        random, everyone = generator("fill", seed, step), torch.ones_like(splats.uid, dtype=torch.bool)
        rows = select(
            "multinomial_repl", drawn_opacity(splats, step), 0, everyone, splats.uid,
            least=missing, most=missing, random=random,
        )  # fmt: skip
        yield from _by("fill", clone(splats, rows, Shape(opacity="mcmc"), step, random), "clone")


def _by(name: str, edit: Edit | None, kind: str) -> Iterator[Edit]:
    if edit is not None:
        edit.by, edit.kind = name, kind
        yield edit


def _before(step: int, stop: int) -> bool:
    return step + 1 < stop or not stop
