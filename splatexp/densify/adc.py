"""The original adaptive density control."""

from dataclasses import dataclass, field

from splatexp.densify.rules import Rule
from splatexp.densify.strategy import Ruled


def _grow() -> Rule:
    return Rule("clone_or_split", "grad2d", "above", 2e-4)


def _faint() -> Rule:
    return Rule("prune", "opacity", "below", 0.005)


def _large() -> Rule:
    return Rule("prune", "size", "above", 0.1, start=3000)


@dataclass
class ADC(Ruled):
    """Clone or split where the screen-space gradient is high; prune the faint and the huge; reset opacities.

    Source: Kerbl et al. 2023, section 5.2, with the values of its code.
    Differs: the code also has a prune by size on screen that never fires (its radii are 0 by then) and, on a
    white background, a further reset after 500 steps; both are left out.
    """

    grow: Rule = field(default_factory=_grow)
    faint: Rule = field(default_factory=_faint)  # `pause` keeps it off what a reset has just made faint
    large: Rule = field(default_factory=_large)  # huge in the world
