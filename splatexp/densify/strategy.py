"""Strategies: rules in their order, an opacity policy after them, a cap over everything.

A strategy keeps no state: statistics are rows of the splats, and everything random follows from (seed, step).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch

from splatexp.cameras import Camera
from splatexp.choices import check_range
from splatexp.densify.operate import Shape, prune
from splatexp.densify.rules import Reset, Rule, due
from splatexp.densify.score import opacity
from splatexp.densify.select import best
from splatexp.densify.stats import STATISTICS
from splatexp.raster import Render
from splatexp.schedules import STEPS
from splatexp.seeds import generator
from splatexp.splats import Edit, Overwrite, Splats


@dataclass
class Strategy:
    """What the loop asks of density control; by itself it keeps the first rows, down to the cap."""

    max_gaussians: int = 0  # never more rows than this after any step, the faintest go; 0: no limit

    def __post_init__(self) -> None:
        check_range("densify.max_gaussians", self.max_gaussians, 0)

    def channels(self, step: int) -> set[str]:
        """What it wants of the rasterizer besides the picture."""
        return set()

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add what the step's backward pass left to the statistics."""

    def plan(self, step: int, splats: Splats, seed: int = 0) -> Iterator[Edit | Overwrite]:
        """Edits to apply one by one: each is made from the rows that the one before it left."""
        if 0 < self.max_gaussians < len(splats):
            everyone = torch.ones(len(splats), dtype=torch.bool, device=splats.uid.device)
            crowd = best(
                everyone, opacity(splats, step), splats.uid, len(splats) - self.max_gaussians, low=True
            )
            yield prune(splats, crowd, Shape(0, 1), step, generator())


@dataclass
class Fixed(Strategy):
    """No density control."""


@dataclass
class Ruled(Strategy):
    """Events every so many steps, in which the fields of type `Rule` fire in their order."""

    every: int = 100  # steps between events; 0: none
    start: int = field(default=500, metadata=STEPS)  # events come after more than so many steps
    stop: int = field(default=15_000, metadata=STEPS)  # and fewer than so many; 0: to the end
    clone_max: int = 0  # births per event, best-scored first; 0: no limit
    densify_add: int = (
        0  # at least so many births per event, below the threshold too, while a score is above 0
    )
    reset: Reset = field(default_factory=Reset)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "start", "stop", "clone_max", "densify_add"):
            check_range(f"densify.{name}", getattr(self, name), 0)
        if 0 < self.clone_max < self.densify_add:
            raise ValueError(
                f"densify.densify_add: expected at most clone_max={self.clone_max}, got {self.densify_add}"
            )

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by name, in order."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Rule)}

    def statistics(self, step: int) -> set[str]:
        """Statistics that an event yet to come will read."""
        ahead = [
            rule for rule in self.rules.values() if _before(step, self.stop) and _before(step, rule.stop)
        ]
        return {name for rule in ahead for name in rule.needs} if self.every else set()

    def channels(self, step: int) -> set[str]:
        """What it wants of the rasterizer besides the picture."""
        return {STATISTICS[name].channel for name in self.statistics(step)} - {""}

    @torch.no_grad()
    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add what the step's backward pass left to the statistics."""
        for name in self.statistics(step):
            STATISTICS[name].add(splats.row_stat(name), render)

    def plan(self, step: int, splats: Splats, seed: int = 0) -> Iterator[Edit | Overwrite]:
        """Edits to apply one by one: each is made from the rows that the one before it left."""
        if due(step, self.every, self.start, self.stop):
            yield from self._event(step, splats, seed)
        if self.reset.due(step):
            yield self.reset.plan(splats)
        yield from super().plan(step, splats, seed)

    def _event(self, step: int, splats: Splats, seed: int) -> Iterator[Edit]:
        born, read = 0, set()
        for name, rule in self.rules.items():
            if not rule.fires(step) or self.reset.within(step, rule.pause):
                continue
            read |= rule.needs
            least, most = (0, None) if rule.births <= 0 else self._budget(len(splats), born)
            edit = rule.plan(step, splats, generator("densify", seed, step, name), least=least, most=most)
            if edit is not None:
                born += max(0, len(edit.parents) - len(splats))
                yield edit
        for name in read:
            splats.row_stat(name).zero_()

    def _budget(self, count: int, born: int) -> tuple[int, int | None]:
        """Least and most births that a rule has left, after so many in this event."""
        limits = [self.clone_max - born] if self.clone_max else []
        limits += [self.max_gaussians - count] if self.max_gaussians else []
        most = max(0, min(limits)) if limits else None
        least = max(0, self.densify_add - born)
        return least if most is None else min(least, most), most


def _before(step: int, stop: int) -> bool:
    return step + 1 < stop or not stop
