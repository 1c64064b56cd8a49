"""Learned importance: a factor of every Gaussian's opacity, learned as a logit per row, an MLP or a mask."""

from splatexp.importance.learned import Importance, NoImportance, average_importance, bake
from splatexp.importance.logit import Logit
from splatexp.importance.mask import Mask
from splatexp.importance.mlp import MLP

__all__ = ["MLP", "Importance", "Logit", "Mask", "NoImportance", "average_importance", "bake"]
