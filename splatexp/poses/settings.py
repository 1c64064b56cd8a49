"""Settings of cameras that learn: rates, when, what holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from splatexp.poses.rig import FOCAL, POSE, LearnedRig, Rig
from splatexp.schedules.curve import Curve
from splatexp.settings.checks import STEPS, check_choice, check_range

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats

__all__ = ["FOCAL", "POSE", "Learned", "Poses"]


@dataclass
class Poses:
    """What the loop asks of cameras; by itself they are those of the data."""

    learns: ClassVar[bool] = False

    def rig(self, scene: Scene, splats: Splats, views: Sequence[View]) -> Rig:
        """The cameras of the training views, as a run goes on.

        views: the training views of the scene, where they are drawn from.
        """
        return Rig(views, scene.train)

    def placed(self, scene: Scene, splats: Splats) -> Scene:
        """The scene, its training views with the cameras as they are now."""
        return scene


@dataclass
class Learned(Poses):
    """Cameras that learn from `start` to before `stop`, with Adam; numbers and moments go with the rows.

    The gauge, the motion of all cameras together that no picture shows, is held by one of
    first: the first view keeps its pose;
    mean: the offsets of all views have mean zero;
    prior: the mean square of the offsets costs `prior`.
    """

    rate: float = 1e-3  # of the poses: radians, shares of the extent
    focal_rate: float = 3e-3  # of the logarithm of the focal length, one for all views; 0: it stays
    focal_max: float = 2.0  # the focal length stays within this factor of the given one, either way
    # the distance follows the focal length: what they look at keeps its size, and only perspective changes;
    # false: the distance stays, and the Gaussians have to grow or shrink with every step of the focal length
    dolly: bool = True
    anneal: Curve = field(default_factory=lambda: Curve("cosine", end=0.01))  # of both rates, over the run
    start: int = field(default=500, metadata=STEPS)  # the geometry has settled a little
    stop: int = field(default=0, metadata=STEPS)  # 0: to the end
    beta1: float = 0.9
    beta2: float = 0.999
    gauge: str = "mean"
    prior: float = 1e-2  # with gauge=prior
    focal_prior: float = 0.0  # weight of the squared logarithm of the focal length's change

    learns: ClassVar[bool] = True
    numbers: ClassVar[int]  # learned per view
    loose: ClassVar[slice] = slice(None)  # those of them that the gauge holds

    def __post_init__(self) -> None:
        for name in ("rate", "focal_rate", "start", "stop", "prior", "focal_prior"):
            check_range(f"camera.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(f"camera.{name}", getattr(self, name), 0, 1 - 1e-9)
        check_range("camera.focal_max", self.focal_max, 1)
        check_choice("camera.gauge", self.gauge, ("first", "mean", "prior"))

    def rig(self, scene: Scene, splats: Splats, views: Sequence[View]) -> Rig:
        """The cameras of the training views; `splats` gets what is learned of them, unless it is there.

        Raises: ValueError where it is there for other views.
        """
        return LearnedRig(self, scene, splats, views)

    def placed(self, scene: Scene, splats: Splats) -> Scene:
        """The scene, its training views with the cameras as they are now."""
        return scene.moved(LearnedRig(self, scene, splats, scene.train).cameras())

    def active(self, step: int) -> bool:
        """Whether they learn at a step."""
        return self.start <= step and (step < self.stop or not self.stop)

    @property
    def limit(self) -> float:
        """The numbers stay in [-limit, limit]; 0: anywhere."""
        return 0.0

    def lay(self, cameras: list[Camera], extent: float) -> dict[str, Tensor]:
        """What `viewmats` wants to know besides the given cameras, [V,...] each."""
        return {}

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """World -> camera [V,4,4], in the graph of the numbers [V,numbers]; at 0 the given ones, rounded.

        base: what `lay` made, `viewmats` [V,4,4] as given, `center` [3] that they look at, `extent` [].
        """
        raise NotImplementedError
