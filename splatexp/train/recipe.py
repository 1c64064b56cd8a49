"""The recipe of a run: exactly the settings that can change a number of its result."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from splatexp.data.builtin.dataset import Builtin
from splatexp.densify.strategy import Strategy
from splatexp.importance.learned import Importance, NoImportance
from splatexp.losses.photometric import Loss
from splatexp.losses.regularizers import Regularizer
from splatexp.poses.learned import Poses
from splatexp.poses.parametrizations import Fixed
from splatexp.raster.backends import Auto
from splatexp.raster.rasterizer import Rasterizer
from splatexp.schedules.schedule import LearningRateSchedule, Schedule
from splatexp.settings.checks import check_choice, check_range
from splatexp.settings.serialize import to_config
from splatexp.train.dropout import Dropout
from splatexp.train.initialization import SceneModel
from splatexp.train.optimizer import Adam, Optimizer
from splatexp.train.rate import NONE as NoRate
from splatexp.train.rate import Rate
from splatexp.train.smoothing import Smoothing

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows

# Groups with options for scenes and for images; an option without a class variable `domain` is for scenes.
GROUPS = ("data", "model", "raster", "optimizer", "schedule")
OPERATORS = ("birth", "prune")  # of density control, for images
# Scores that need neither a scene nor opacities.
SCORES = {"one", "age", "generation", "random", "views", "surveyed", "removal", "removal_loss", "weight"}
SCORES |= {f"{base}{how}" for base in ("error", "edge") for how in ("", "_mean", "_sum")}


class SceneLoader(Protocol):
    """A data set that can be loaded as a scene."""

    domain: ClassVar[str]  # "scene" or "image"

    def load(self) -> Scene:
        """Load the whole scene.

        Raises: OSError, ValueError with one line for data that cannot be used.
        """
        ...


class Initializer(Protocol):
    """A rule that makes the first Gaussians of a scene."""

    domain: ClassVar[str]  # "scene" or "image"

    def __call__(self, scene: Scene, seed: int = 0) -> Rows:
        """Make the first rows; they depend on `scene` and `seed` alone.

        Raises: ValueError for a scene from which none can be made.
        """
        ...


@dataclass(kw_only=True)
class Recipe:
    """The settings that can change a number of the result.

    Two runs with equal recipes, data and code are the same experiment: the identity of a run and of a job,
    the report of what has changed since a checkpoint, and what a study compares all read the fields of this
    class. What only says where a run is stored, logged or watched is a field of `Run`.
    """

    steps: int
    seed: int = 0
    data: SceneLoader = field(default_factory=Builtin)
    model: Initializer = field(default_factory=SceneModel)
    raster: Rasterizer = field(default_factory=Auto)
    camera: Poses = field(default_factory=Fixed)
    batch: int = 1  # views per step; the loss is the mean over them
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Adam)
    schedule: LearningRateSchedule = field(default_factory=Schedule)
    densify: Strategy = field(default_factory=Strategy)
    importance: Importance = field(default_factory=NoImportance)
    rate: Rate = field(default_factory=NoRate)
    dropout: Dropout = field(default_factory=Dropout)
    smoothing: Smoothing = field(default_factory=Smoothing)
    regularizer: dict[str, Regularizer] = field(default_factory=dict)
    # when memory runs out, "stop" ends the run with a checkpoint, "shrink" goes on with fewer rows or pixels
    oom: str = "stop"
    # true refuses whatever may give other bits the next time; the CPU always gives the same bits
    deterministic: bool = False

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("seed", self.seed, 0)
        check_range("batch", self.batch, 1)
        check_choice("oom", self.oom, ("stop", "shrink"))
        _check_parts(self)
        if isinstance(self.raster, Auto):  # the record of a run names the rasterizer that draws
            self.raster = self.raster.select(self.deterministic, self.densify.attribution_fields)
        if self.deterministic and not self.raster.deterministic:
            raise ValueError(f"deterministic: expected false with raster={self.raster.name}, got true")
        if missing := self.densify.attribution_fields - self.raster.attribution_fields:
            raise ValueError(
                f"densify: expected scores that raster={self.raster.name} can gather, "
                f"got some that read {', '.join(sorted(missing))}"
            )
        if getattr(self.data, "cameras_guessed", False) and not self.camera.is_learned:
            raise ValueError(
                "camera: expected orbit or another that is learned with data=photos, whose cameras are "
                "guesses, got fixed; preset=head sets all that this needs"
            )
        if "importance" in self.densify.score_names and not self.importance.is_learned:
            raise ValueError("importance: expected logit, mlp or mask, since a rule reads it, got none")

    @property
    def is_image(self) -> bool:
        """Return whether this is the recipe of a single image, whose Gaussians lie in the plane."""
        return getattr(self.data, "domain", "scene") == "image"

    def config(self) -> dict[str, Any]:
        """Return the fields of `Recipe` as plain values, also those of a subclass's instance."""
        return {name: to_config(getattr(self, name)) for name in RECIPE}


RECIPE = tuple(each.name for each in fields(Recipe))  # the names of the settings that can change a number


def _check_parts(recipe: Recipe) -> None:
    """Check that all parts of a recipe are of one domain, and that it sets nothing that its domain lacks.

    Raises: ValueError, one line, that names the part that does not fit.
    """
    domains = {name: getattr(getattr(recipe, name), "domain", "scene") for name in GROUPS}
    images = [name for name, domain in domains.items() if domain == "image"]
    scenes = [name for name, domain in domains.items() if domain != "image"]
    if images and scenes:
        got = type(getattr(recipe, scenes[0])).__name__
        raise ValueError(
            f"{scenes[0]}: expected image with {images[0]}=image, got {got}; preset=image sets all that "
            "goes together"
        )
    (_check_image if images else _check_scene)(recipe)


def _check_image(recipe: Recipe) -> None:
    """Check a recipe of an image against what an image lacks."""
    for name, wrong, value, expected in (
        ("camera", recipe.camera.is_learned, type(recipe.camera).__name__, "fixed, since an image has none"),
        ("importance", recipe.importance.is_learned, type(recipe.importance).__name__, "none"),
        ("dropout.p", recipe.dropout.p, recipe.dropout.p, "0"),
        ("smoothing.variance", recipe.smoothing.variance, recipe.smoothing.variance, "0"),
        ("batch", recipe.batch > 1, recipe.batch, "1, since an image is one view"),
    ):
        if wrong:
            raise ValueError(f"{name}: expected {expected} with data=image, got {value}")
    for name, penalty in recipe.regularizer.items():
        if penalty.domain == "scene":
            raise ValueError(f"regularizer: expected one for images with data=image, got {name}")
    count = recipe.model.count  # type: ignore[attr-defined]
    if 0 < recipe.densify.max_gaussians < count:
        raise ValueError(
            f"model.count: expected at most densify.max_gaussians={recipe.densify.max_gaussians}, got {count}"
        )
    _check_rules(recipe)


def _check_scene(recipe: Recipe) -> None:
    """Check a recipe of a scene against what images alone have."""
    for name, rule in getattr(recipe.densify, "rules", {}).items():
        if rule.operate == "birth":
            raise ValueError(
                f"densify.{name}.operate: expected an operator for scenes, got birth, which needs data=image"
            )
    if recipe.rate.domain == "image":
        raise ValueError(f"rate: expected none for a scene, got {type(recipe.rate).__name__}")
    for name, penalty in recipe.regularizer.items():
        if penalty.domain == "image":
            raise ValueError(f"regularizer: expected one for scenes, got {name}, which needs data=image")


def _check_rules(recipe: Recipe) -> None:
    """Check the rules of density control against what an image lacks."""
    densify = recipe.densify
    rules = getattr(densify, "rules", {})
    for name, rule in rules.items():
        if rule.operate not in OPERATORS:
            raise ValueError(
                f"densify.{name}.operate: expected {' or '.join(OPERATORS)} with data=image, "
                f"got {rule.operate}"
            )
        if unknown := sorted(rule.score_names - SCORES):
            raise ValueError(f"densify.{name}: expected scores that images have, got {unknown[0]}")
    if not rules:
        return
    if densify.exact:
        raise ValueError("densify.exact: expected false with data=image, got true")
    for name, value, usual in (
        ("opacity_reset.every", densify.opacity_reset.every, 0),
        ("opacity_decay.kind", densify.opacity_decay.kind, "none"),
        ("noise.lr", densify.noise.lr, 0),
    ):
        if value != usual:
            raise ValueError(
                f"densify.{name}: expected {usual} with data=image, which has no opacities, got {value}"
            )
