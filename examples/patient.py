"""A strategy of one's own: a new score, rules that use it, and one that gives the young their time.

    PYTHONPATH=examples python -m splatexp --config-dir examples densify=patient

`densify/patient.yaml` beside this file is its option; every setting is an override, such as
`densify.grow.threshold=1e-3 densify.faint.grace=500`, and new rules can be added in the YAML or behind it.
"""

from dataclasses import dataclass, field

from torch import Tensor

from splatexp.densify import Rule, Ruled
from splatexp.densify.scores import score
from splatexp.gaussians.splats import Splats


@score("absgrad.sum", "views")
def pressing(splats: Splats, step: int) -> Tensor:
    """Mean absolute gradient on screen, times how opaque a row is: the faint have no say. [N]"""
    mean = splats.row_stat("absgrad.sum") / splats.row_stat("views").clamp_min(1)
    return mean * splats.opacities.detach()


@dataclass
class Patient(Ruled):
    """Divide where it presses most, a twentieth of all rows at most; prune no row in its first 300 steps."""

    grow: Rule = field(default_factory=lambda: Rule("long_axis", "pressing", threshold=4e-4, share=0.05))
    faint: Rule = field(default_factory=lambda: Rule("prune", "opacity", "below", 0.01, grace=300, pause=300))
