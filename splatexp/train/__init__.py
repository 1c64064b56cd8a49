"""Training: the loop on one screen, the recipe that it follows, the optimizer, the log of its steps."""

from splatexp.train.loop import train
from splatexp.train.recipe import Recipe

__all__ = ["Recipe", "train"]
