"""A strategy of your own: a new score, a rule that grows by it, and a rule that spares young rows.

    PYTHONPATH=examples python -m splatexp --config-dir examples densify=patient

`densify/patient.yaml` beside this file makes it an option. Every setting can be overridden, as in
`densify.grow.threshold=1e-3 densify.prune_low_opacity.min_age=500`, and rules can be added in the YAML file
or on the command line.
"""

from dataclasses import dataclass, field

from torch import Tensor

from splatexp.densify import Rule, RuleStrategy
from splatexp.densify.scores import score
from splatexp.gaussians.splats import Splats


@score("absgrad.sum", "views")
def opaque_gradient(splats: Splats, step: int) -> Tensor:
    """Return the mean absolute gradient on screen times the opacity [N], so that opaque rows count more."""
    mean = splats.row_stat("absgrad.sum") / splats.row_stat("views").clamp_min(1)
    return mean * splats.opacities.detach()


@dataclass
class Patient(RuleStrategy):
    """Split rows of a high score, at most a twentieth of all; prune no row in its first 300 steps."""

    grow: Rule = field(
        default_factory=lambda: Rule("long_axis", "opaque_gradient", threshold=4e-4, max_fraction=0.05)
    )
    prune_low_opacity: Rule = field(
        default_factory=lambda: Rule("prune", "opacity", "below", 0.01, min_age=300, reset_cooldown=300)
    )
