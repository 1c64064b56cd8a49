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
from splatexp.densify.opacity_policy import is_due
from splatexp.densify.operator import OperatorSettings
from splatexp.densify.operators import OPERATORS
from splatexp.densify.scores import evaluate_score, parse_score, required_statistics
from splatexp.densify.selectors import SELECTORS, select
from splatexp.gaussians.splats import Edit, Splats
from splatexp.settings.checks import STEPS, check_choice, check_range

# The operators on rows, and `birth`, which selects pixels of an image instead.
ALL_OPERATORS = ChainMap(OPERATORS, {"birth": births.BIRTH})


@dataclass
class Rule:
    """Select rows by a score at an event, and let an operator change them.

    The settings from `size_threshold` on belong to the operator: 0 or "" stands for its own default, and a
    setting that it does not read is refused. With operate=birth, which exists for images only, pixels are
    scored and selected instead of rows; see `births.py`.
    """

    operate: str = "clone_or_split"  # the operator, one of ALL_OPERATORS
    score: str = "grad2d"  # a name or a product of names, see scores.py
    select: str = "above"  # the selector, one of SELECTORS
    threshold: float = 2e-4  # a score, or a fraction of the rows that pass the gate, as the selector has it
    gate: list[str] = field(default_factory=list)  # further conditions: ["age > 300", "edge / weight >= 2"]
    max_rows: int = 0  # rows per event at most, the best-scored first; 0: no limit
    max_fraction: float = 0.0  # the same as a fraction of all rows; 0: no limit
    min_remaining: int = 0  # pruning leaves at least this many rows
    every: int = 0  # steps between its events; 0: at every event of the strategy
    start: int = field(default=0, metadata=STEPS)  # it acts after more than this many steps
    stop: int = field(default=0, metadata=STEPS)  # and after fewer than this many; 0: as the strategy
    reset_cooldown: int = 0  # it does not act within this many steps after an opacity reset
    after_reset: int = 0  # it acts only this many steps after an opacity reset; 0: at any time
    min_age: int = 0  # steps; younger rows are left alone
    min_age_end: int = 0  # min_age at `stop`, changing linearly from `start`; 0: it stays the same
    size_threshold: float = 0.0  # scene extents: clone_or_split clones rows up to it and splits larger ones
    shrink: float = 0.0  # the children's scales are divided by this
    opacity: str = ""  # opacity of the children: copy, revised, mcmc or scaled
    opacity_factor: float = 0.0  # with opacity=scaled: multiplies the parent's opacity
    offset: float = 0.0  # distance of the children from their parent; the operator defines the unit
    max_distance: float = 0.0  # merge: largest distance between two rows, scene extents
    max_log_ratio: float = 0.0  # merge: largest |log| of the ratio between the widths of two rows

    def __post_init__(self) -> None:
        check_choice("rule.operate", self.operate, ALL_OPERATORS)
        check_choice("rule.select", self.select, SELECTORS)
        if self.operate != "birth":
            parse_score(self.score)
        for condition in self.gate:
            _parse_condition(condition)
        for name in (
            "max_rows",
            "min_remaining",
            "every",
            "start",
            "stop",
            "reset_cooldown",
            "after_reset",
            "min_age",
            "min_age_end",
        ):
            check_range(f"rule.{name}", getattr(self, name), 0)
        check_range("rule.max_fraction", self.max_fraction, 0, 1)
        if SELECTORS[self.select].fraction:
            check_range("rule.threshold", self.threshold, 0, 1)
        if self.min_age_end and not self.stop:
            raise ValueError(f"rule.min_age_end: expected rule.stop to be set too, got {self.min_age_end}")
        if self.min_remaining and self.operate != "prune":
            raise ValueError(
                f"rule.min_remaining: expected 0 with operate={self.operate}, got {self.min_remaining}"
            )
        if self.operate == "birth":
            check_choice("rule.score", self.score, births.BIRTH_SCORES)
            if self.score == "gain" and self.select != "above":
                raise ValueError(f"rule.select: expected above with score=gain, got {self.select}")
            if self.gate or self.min_age:
                name = "gate" if self.gate else "min_age"
                raise ValueError(
                    f"rule.{name}: expected it unset with operate=birth, which selects pixels, "
                    f"got {getattr(self, name)}"
                )
        ALL_OPERATORS[self.operate].check(self.operator_settings())

    def operator_settings(self, max_pairs: int = 0) -> OperatorSettings:
        """Return the settings that the operator reads; `max_pairs` limits a merge."""
        return OperatorSettings(
            self.size_threshold,
            self.shrink,
            self.opacity,
            self.opacity_factor,
            self.offset,
            self.max_distance,
            self.max_log_ratio,
            max_pairs,
        )

    @property
    def births(self) -> int:
        """Return how many rows each selected row adds to the count."""
        return ALL_OPERATORS[self.operate].births

    @property
    def score_names(self) -> set[str]:
        """Return the names in its score and its gate; none with operate=birth, which scores pixels."""
        if self.operate == "birth":
            return set()
        texts = (self.score, *(_parse_condition(condition)[0] for condition in self.gate))
        return {name for text in texts for _, name in parse_score(text)}

    @property
    def statistics(self) -> set[str]:
        """Return the names of the statistics that its score and its gate read."""
        return {statistic for name in self.score_names for statistic in required_statistics(name)}

    def is_due(self, step: int) -> bool:
        """Return whether it takes part in an event of its strategy after a step."""
        return is_due(step, self.every or 1, self.start, self.stop)

    def min_age_at(self, step: int) -> float:
        """Return the age in steps from which it may change a row, at an event after a step."""
        if not self.min_age_end:
            return self.min_age
        progress = (step + 1 - self.start) / max(1, self.stop - self.start)
        return self.min_age + (self.min_age_end - self.min_age) * min(1.0, max(0.0, progress))

    def plan(
        self,
        step: int,
        splats: Splats,
        random: torch.Generator,
        *,
        min_rows: int = 0,
        max_rows: int | None = None,
        context: Context | None = None,
    ) -> Edit | None:
        """Return the edit of one event, or None where no row is selected.

        Args:
            min_rows, max_rows: as for `select`; of a merge, `max_rows` limits the pairs.
            context: the scene and the rasterizer, which operate=birth needs.
        """
        limits = [self.max_rows or None, max_rows]
        if self.max_fraction:
            limits.append(math.ceil(self.max_fraction * len(splats)))
        if self.min_remaining:
            limits.append(max(0, len(splats) - self.min_remaining))
        limit = min((limit for limit in limits if limit is not None), default=None)
        if self.operate == "birth":
            return births.plan_births(
                splats,
                step,
                context or Context(),
                random,
                score=self.score,
                how=self.select,
                threshold=self.threshold,
                settings=self.operator_settings(),
                min_rows=min_rows,
                max_rows=limit,
            )
        merges = self.operate == "merge"
        rows = select(
            self.select,
            evaluate_score(self.score, splats, step, random),
            self.threshold,
            self._allowed(step, splats, random),
            splats.uid,
            min_rows=min_rows,
            max_rows=None if merges else limit,
            random=random,
        )
        if not len(rows) or limit == 0:
            return None
        settings = self.operator_settings((limit or 0) if merges else 0)
        return ALL_OPERATORS[self.operate].plan(splats, rows, settings, step, random)

    def _allowed(self, step: int, splats: Splats, random: torch.Generator) -> Tensor:
        """Return a mask [N] of the rows that pass the gate and are old enough."""
        allowed = step - splats.born >= self.min_age_at(step)
        if self.statistics:  # rows that an earlier rule of this event made have no statistics yet
            allowed &= (splats.born < step) | (splats.generation == 0)
        for condition in self.gate:
            score, is_lower_bound, inclusive, bound = _parse_condition(condition)
            value = evaluate_score(score, splats, step, random)
            value, bound = (value, bound) if is_lower_bound else (-value, -bound)
            allowed &= value >= bound if inclusive else value > bound
        return allowed


@cache
def _parse_condition(text: str) -> tuple[str, bool, bool, float]:
    """Return `age >= 300` as (score, whether it bounds from below, whether the bound itself passes, bound).

    Raises: ValueError for a condition of another form.
    """
    found = re.fullmatch(r"\s*([\w\s*/]+?)\s*([<>])(=?)\s*(\S+)\s*", text)
    try:
        bound = float(found[4]) if found else None
    except ValueError:
        bound = None
    if found is None or bound is None:
        raise ValueError(f'rule.gate: expected a condition like "age > 300", got {text!r}')
    parse_score(found[1], "rule.gate")
    return found[1], found[2] == ">", bool(found[3]), bound
