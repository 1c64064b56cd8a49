"""Rules of density control: each is when x score x gate x select x budget x operate."""

import math
import re
from collections import ChainMap
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from splatexp.densify import births
from splatexp.densify.context import Context
from splatexp.densify.opacity_policy import due
from splatexp.densify.operators import OPERATORS, Shape
from splatexp.densify.scores import evaluate, needs, parse
from splatexp.densify.selectors import SELECTORS, select
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import STEPS, check_choice, check_range

# of rows, and the one of pixels, which has no plan from rows
CHOICES = ChainMap(OPERATORS, {"birth": births.BIRTH})


@dataclass
class Rule:
    """One way in which rows change at an event.

    gate: conditions that a row must meet besides, such as "age > 300" or "edge / weight >= 2", of scores.
    With operate=birth, of pictures alone, it is pixels that are scored and selected: see births.py.
    The last seven are the operator's: one that it does not read is refused, 0 or "" is its own default.
    """

    operate: str = "clone_or_split"  # one of CHOICES
    score: str = "grad2d"  # a word or a product of words, see score.py
    select: str = "above"  # one of SELECTORS
    threshold: float = 2e-4  # a score, or a share of the rows that pass the gate, as the selector has it
    gate: list[str] = field(default_factory=list)
    most: int = 0  # rows per event, best-scored first; 0: no limit
    share: float = 0.0  # of all rows, likewise
    keep: int = 0  # pruning leaves so many rows at least
    every: int = 0  # steps between its events; 0: at every event of the strategy
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # 0: with the strategy
    pause: int = 0  # no event within so many steps after an opacity reset
    after_reset: int = 0  # only at the event so many steps after an opacity reset; 0: at any
    grace: int = 0  # no row younger than so many steps
    grace_end: int = 0  # the grace at `stop`, on a straight line from that at `start`; 0: it stays
    dense: float = 0.0  # up to this size, in extents, clone_or_split clones
    shrink: float = 0.0  # children are smaller by this
    opacity: str = ""  # of children: copy, revised, mcmc, scaled
    dim: float = 0.0  # scaled: the factor
    offset: float = 0.0  # how far children are from their parent
    distance: float = 0.0  # up to this, in extents, two rows may merge
    similarity: float = 0.0  # up to this difference of shape

    def __post_init__(self) -> None:
        check_choice("rule.operate", self.operate, CHOICES)
        check_choice("rule.select", self.select, SELECTORS)
        if self.operate != "birth":
            parse(self.score)
        for condition in self.gate:
            _condition(condition)
        for name in ("most", "keep", "every", "start", "stop", "pause", "after_reset", "grace", "grace_end"):
            check_range(f"rule.{name}", getattr(self, name), 0)
        check_range("rule.share", self.share, 0, 1)
        if SELECTORS[self.select].share:
            check_range("rule.threshold", self.threshold, 0, 1)
        if self.grace_end and not self.stop:
            raise ValueError(f"rule.grace_end: expected a rule with a stop, got {self.grace_end} without")
        if self.keep and self.operate != "prune":
            raise ValueError(f"rule.keep: expected 0 with operate={self.operate}, got {self.keep}")
        if self.operate == "birth":
            check_choice("rule.score", self.score, births.SCORES)
            if self.score == "gain" and self.select != "above":
                raise ValueError(f"rule.select: expected above with score=gain, got {self.select}")
            if self.gate or self.grace:
                raise ValueError("rule.gate, rule.grace: expected none with operate=birth, which has no rows")
        CHOICES[self.operate].check(self.shape())

    def shape(self, most: int = 0) -> Shape:
        """What the operator reads; `most` pairs merge."""
        return Shape(
            self.dense, self.shrink, self.opacity, self.dim, self.offset, self.distance, self.similarity, most
        )

    @property
    def births(self) -> int:
        """What each selected row adds to the count."""
        return CHOICES[self.operate].births

    @property
    def words(self) -> set[str]:
        """Words of its score and its gate, as far as they are of rows."""
        if self.operate == "birth":
            return set()
        texts = (self.score, *(_condition(condition)[0] for condition in self.gate))
        return {word for text in texts for _, word in parse(text)}

    @property
    def needs(self) -> set[str]:
        """Statistics that its score and its gate read."""
        return {name for word in self.words for name in needs(word)}

    def fires(self, step: int) -> bool:
        """Whether it takes part in an event of its strategy after a step."""
        return due(step, self.every or 1, self.start, self.stop)

    def graced(self, step: int) -> float:
        """The age from which it touches a row."""
        if not self.grace_end:
            return self.grace
        share = (step + 1 - self.start) / max(1, self.stop - self.start)
        return self.grace + (self.grace_end - self.grace) * min(1.0, max(0.0, share))

    def plan(
        self,
        step: int,
        splats: Splats,
        random: torch.Generator,
        *,
        least: int = 0,
        most: int | None = None,
        context: Context | None = None,
    ) -> Edit | None:
        """The edit of one event, or None where no row is selected.

        Args:
            least, most: rows, as for `select`; of a merge `most` are pairs.
            context: what births look at.
        """
        limits = [self.most or None, math.ceil(self.share * len(splats)) if self.share else None, most]
        limits += [max(0, len(splats) - self.keep)] if self.keep else []
        limit = min((limit for limit in limits if limit is not None), default=None)
        if self.operate == "birth":
            return births.plan(
                splats, step, context or Context(), random, score=self.score, how=self.select,
                threshold=self.threshold, shape=self.shape(), least=least, most=limit,
            )  # fmt: skip
        scores = evaluate(self.score, splats, step, random)
        allowed = self._allowed(step, splats, random)
        pairs = self.operate == "merge"
        rows = select(
            self.select, scores, self.threshold, allowed, splats.uid,
            least=least, most=None if pairs else limit, random=random,
        )  # fmt: skip
        if not len(rows) or limit == 0:
            return None
        shape = self.shape((limit or 0) if pairs else 0)
        return CHOICES[self.operate].plan(splats, rows, shape, step, random)

    def _allowed(self, step: int, splats: Splats, random: torch.Generator) -> Tensor:
        """Rows [N] that pass the gate and have outlived their grace."""
        allowed = step - splats.born >= self.graced(step)
        if self.needs:  # of what an earlier rule of this event made, no statistic is known yet
            allowed &= (splats.born < step) | (splats.generation == 0)
        for condition in self.gate:
            word, above, closed, bound = _condition(condition)
            value = evaluate(word, splats, step, random)
            value, edge = (value, bound) if above else (-value, -bound)
            allowed &= value >= edge if closed else value > edge
        return allowed


@cache
def _condition(text: str) -> tuple[str, bool, bool, float]:
    """`age >= 300` as (score, whether above, whether the bound itself will do, bound)."""
    found = re.fullmatch(r"\s*([\w\s*/]+?)\s*([<>])(=?)\s*(\S+)\s*", text)
    try:
        bound = float(found[4]) if found else None
    except ValueError:
        bound = None
    if found is None or bound is None:
        raise ValueError(f'rule.gate: expected such as "age > 300", got {text!r}')
    parse(found[1], "rule.gate")
    return found[1], found[2] == ">", bool(found[3]), bound
