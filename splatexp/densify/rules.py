"""Rules of density control, each when x score x gate x select x budget x operate, and the opacity policy."""

import re
from dataclasses import dataclass, field
from functools import cache

import torch

from splatexp.choices import check_choice, check_range
from splatexp.densify.operate import OPERATORS, Shape
from splatexp.densify.score import SCORES
from splatexp.densify.select import SELECTORS, select
from splatexp.schedules import STEPS
from splatexp.splats import Edit, Overwrite, Splats


def due(step: int, every: int, start: int, stop: int) -> bool:
    """Whether an event follows a step (from 0): with so many steps done, start < done < stop.

    `every` 0 is never, `stop` 0 without an end. This is how the papers count: "500 < iteration < 15,000".
    """
    done = step + 1
    return every > 0 and done % every == 0 and start < done and (done < stop or not stop)


@dataclass
class Rule:
    """One way in which rows change at an event.

    gate: conditions that a row must meet besides, such as "age > 300" or "views >= 2"; the words are scores.
    """

    operate: str = "clone_or_split"  # one of OPERATORS
    score: str = "grad2d"  # one of SCORES
    select: str = "above"  # one of SELECTORS
    threshold: float = 2e-4
    gate: list[str] = field(default_factory=list)
    most: int = 0  # rows per event, best-scored first; 0: no limit
    every: int = 0  # steps between its events; 0: at every event of the strategy
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: with the strategy
    pause: int = 0  # no event within so many steps after an opacity reset
    dense: float = 0.01  # up to this size, in extents, clone_or_split clones
    shrink: float = 1.6  # a split's children are smaller by this

    def __post_init__(self) -> None:
        check_choice("rule.operate", self.operate, OPERATORS)
        check_choice("rule.score", self.score, SCORES)
        check_choice("rule.select", self.select, SELECTORS)
        for condition in self.gate:
            _condition(condition)
        for name in ("most", "every", "start", "stop", "pause", "dense"):
            check_range(f"rule.{name}", getattr(self, name), 0)
        check_range("rule.shrink", self.shrink, 1e-3)

    @property
    def births(self) -> int:
        """What each selected row adds to the count."""
        return OPERATORS[self.operate].births

    @property
    def needs(self) -> set[str]:
        """Statistics that its score and its gate read."""
        words = (self.score, *(_condition(condition)[0] for condition in self.gate))
        return {name for word in words for name in SCORES[word].needs}

    def fires(self, step: int) -> bool:
        """Whether it takes part in an event of its strategy after a step."""
        return due(step, self.every or 1, self.start, self.stop)

    def plan(
        self, step: int, splats: Splats, random: torch.Generator, *, least: int = 0, most: int | None = None
    ) -> Edit | None:
        """The edit of one event, or None where no row is selected."""
        scores = SCORES[self.score].value(splats, step)
        allowed = torch.ones_like(scores, dtype=torch.bool)
        for condition in self.gate:
            word, above, closed, bound = _condition(condition)
            value = SCORES[word].value(splats, step)
            value, edge = (value, bound) if above else (-value, -bound)
            allowed &= value >= edge if closed else value > edge
        limits = [limit for limit in (self.most or None, most) if limit is not None]
        rows = select(
            self.select,
            scores,
            self.threshold,
            allowed,
            splats.uid,
            least=least,
            most=min(limits, default=None),
        )
        if not len(rows):
            return None
        return OPERATORS[self.operate].plan(splats, rows, Shape(self.dense, self.shrink), step, random)


@cache
def _condition(text: str) -> tuple[str, bool, bool, float]:
    """`age >= 300` as (score, whether above, whether the bound itself will do, bound)."""
    found = re.fullmatch(r"\s*(\w+)\s*([<>])(=?)\s*(\S+)\s*", text)
    try:
        bound = float(found[4]) if found else None
    except ValueError:
        bound = None
    if found is None or bound is None:
        raise ValueError(f'rule.gate: expected such as "age > 300", got {text!r}')
    check_choice("rule.gate", found[1], SCORES)
    return found[1], found[2] == ">", bool(found[3]), bound


@dataclass
class Reset:
    """The opacity policy of 3DGS: now and then no opacity above `value`, and its moments 0."""

    every: int = 3000  # 0: never
    value: float = 0.01
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=15_000, metadata=STEPS)

    def __post_init__(self) -> None:
        check_range("reset.every", self.every, 0)
        check_range("reset.value", self.value, 1e-6, 1 - 1e-6)

    def due(self, step: int) -> bool:
        """Whether it follows a step."""
        return due(step, self.every, self.start, self.stop)

    def within(self, step: int, pause: int) -> bool:
        """Whether one came in the last `pause` steps before a step."""
        if not self.every:
            return False
        last = step // self.every * self.every  # steps done at the last multiple before this event
        return 0 < last and step + 1 - last <= pause and self.due(last - 1)

    def plan(self, splats: Splats) -> Overwrite:
        """The clamped logits."""
        top = torch.tensor(self.value).logit().item()
        return Overwrite("opacity_logits", splats.opacity_logits.detach().clamp_max(top))
