"""Training from keyword arguments: those of a recipe, and those of `train`."""

from splatexp.train.loop import TrainResult, train
from splatexp.train.recipe import RECIPE, Recipe


def fit(rows, scene, *, progress=False, **settings) -> TrainResult:
    """Train rows with a recipe of the settings given; what is no setting of a recipe goes to `train`."""
    recipe = Recipe(**{name: value for name, value in settings.items() if name in RECIPE})
    rest = {name: value for name, value in settings.items() if name not in RECIPE}
    return train(rows, scene, recipe, progress=progress, **rest)
