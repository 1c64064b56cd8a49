"""Learned importance, by which opacities are multiplied: of a logit per row, an MLP or a mask, or none."""

from splatexp.importance.learned import NONE, Importance, average, bake
from splatexp.importance.logit import Logit
from splatexp.importance.mask import Mask
from splatexp.importance.mlp import MLP

__all__ = ["MLP", "NONE", "Importance", "Logit", "Mask", "average", "bake"]
