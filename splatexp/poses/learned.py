"""Cameras that are learned while a run trains: their settings, and the rig that draws and updates them.

What is learned are two leaves of the splats that are no rows, so they are saved, resumed and checked with
them: offsets per view, and the logarithm of the focal length's change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus
from splatexp.cameras.rigid import dollied
from splatexp.cameras.similarity import angles, pose_errors
from splatexp.schedules.curve import Curve
from splatexp.settings.checks import STEPS, check_choice, check_range
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats

POSE, FOCAL = "camera.pose", "camera.focal"  # leaves of `Splats.shared`: [V,numbers] and [1]
WHOLE = ("center", "extent")  # what a base has once, not per view


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


class Rig:
    """Cameras that are as given.

    views: the training views, where they are drawn from, with the cameras that they have now.
    train: likewise those of the scene.
    """

    def __init__(self, views: Sequence[View], train: Sequence[View]):
        self.views, self.train = views, train

    def camera(self, index: int, camera: Camera, step: int) -> Camera:
        """What the view of an index is drawn with at a step; `camera` is the given one, of any resolution."""
        return camera

    def terms(self, step: int) -> dict[str, Tensor]:
        """Weighted scalars that join the loss, by name."""
        return {}

    def update(self, step: int, steps: int, backend: str) -> None:
        """Learn from what the step's backward passes left."""

    def status(self, step: int, steps: int) -> dict[str, float]:
        """Where the cameras are, by name, for the record."""
        return {}


class LearnedRig(Rig):
    """Cameras that learn as their settings say."""

    def __init__(self, settings: Learned, scene: Scene, splats: Splats, views: Sequence[View]):
        self.settings, self.splats, self.truth = settings, splats, scene.truth
        self.given = scene.first_cameras
        device = splats.means.device
        base = settings.lay(self.given, scene.extent)
        base["viewmats"] = torch.cat([camera.viewmats for camera in self.given])
        base |= {"center": focus(self.given), "extent": torch.tensor(scene.extent)}
        self.base = {name: tensor.to(device) for name, tensor in base.items()}
        shapes = {POSE: (len(self.given), settings.numbers), FOCAL: (1,)}
        for name, shape in shapes.items():
            if name not in splats.shared:
                splats.add_shared(name, torch.zeros(shape, device=device))
            if (got := tuple(splats.shared[name].shape)) != shape:
                raise ValueError(f"camera: expected {name} {shape} for {len(self.given)} views, got {got}")
        super().__init__(Moved(self, views), Moved(self, scene.train))

    def camera(self, index: int, camera: Camera, step: int) -> Camera:
        """As `Rig` says; in the graph of what is learned, while it is."""
        s = self.settings
        if step < s.start:
            return camera
        with torch.set_grad_enabled(torch.is_grad_enabled() and s.active(step)):
            return self._now(slice(index, index + 1), camera)

    def terms(self, step: int) -> dict[str, Tensor]:
        """The priors, while the cameras learn."""
        s, terms = self.settings, {}
        if not s.active(step):
            return terms
        if s.gauge == "prior" and s.prior:
            pose = self.splats.shared[POSE]
            terms["camera_prior"] = s.prior * pose.square().sum() / len(pose)
        if s.focal_prior and s.focal_rate:
            terms["focal_prior"] = s.focal_prior * self.splats.shared[FOCAL].square().sum()
        return terms

    @torch.no_grad()
    def update(self, step: int, steps: int, backend: str) -> None:
        """Adam, then the ranges and the gauge. A view that was not drawn counts as with a gradient of 0."""
        s = self.settings
        if not s.active(step):
            return
        share = s.anneal(step, steps)
        for name, rate in ((POSE, s.rate), (FOCAL, s.focal_rate)):
            leaf = self.splats.shared[name]
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            leaf.grad = None
            if name == POSE and s.gauge == "first":
                grad[0, s.loose] = 0
            if rate:
                adam(
                    leaf, grad, self.splats.exp_avg[name], self.splats.exp_avg_sq[name],
                    step=step - s.start + 1, lr=rate * share, beta1=s.beta1, beta2=s.beta2, backend=backend,
                )  # fmt: skip
        pose, focal = self.splats.shared[POSE], self.splats.shared[FOCAL]
        if s.limit:
            pose.clamp_(-s.limit, s.limit)
        if s.gauge == "mean":
            pose[:, s.loose] -= pose[:, s.loose].mean(0)
        focal.clamp_(-math.log(s.focal_max), math.log(s.focal_max))

    @torch.no_grad()
    def status(self, step: int, steps: int) -> dict[str, float]:
        """Mean and largest turn from the given cameras, focal length over the given one, rates; errors."""
        s, now = self.settings, self.cameras()
        share = s.anneal(step, steps) if s.active(step) else 0.0
        before = torch.cat([camera.viewmats[:, :3, :3] for camera in self.given]).cpu()
        turns = angles((torch.cat([camera.viewmats[:, :3, :3] for camera in now]) @ before.mT).double())
        values = {"camera_turn_mean": float(turns.mean()), "camera_turn_max": float(turns.max())}
        values["camera_focal"] = float(self.splats.shared[FOCAL].exp())
        values |= {"lr_camera": s.rate * share, "lr_focal": s.focal_rate * share}
        return values | (mean_errors(now, self.truth) if self.truth else {})

    @torch.no_grad()
    def cameras(self) -> list[Camera]:
        """All of them as they are now, on the CPU."""
        return [self._now(slice(i, i + 1), camera).to("cpu") for i, camera in enumerate(self.given)]

    def _now(self, rows: slice, camera: Camera) -> Camera:
        """The cameras of some views, with the intrinsics and size of `camera`."""
        s = self.settings
        pose, focal = self.splats.shared[POSE][rows], self.splats.shared[FOCAL].exp()
        base = {name: part if name in WHOLE else part[rows] for name, part in self.base.items()}
        viewmats = s.viewmats(base, pose if s.rate else pose.detach())
        if not s.focal_rate:
            return Camera(viewmats, camera.Ks.to(viewmats.device), camera.width, camera.height)
        if s.dolly:
            viewmats = dollied(viewmats, focal, base["center"])
        axes = torch.nn.functional.pad(torch.eye(2, device=focal.device), (0, 1, 0, 1))  # no copy to wait for
        Ks = camera.Ks.to(focal.device) * (1 + axes * (focal - 1))
        return Camera(viewmats, Ks, camera.width, camera.height)


class Moved(Sequence["View"]):
    """The training views with the cameras that a rig gives them when they are asked for."""

    def __init__(self, rig: LearnedRig, views: Sequence[View]):
        self._rig, self._views = rig, views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        view = self._views[index]
        with torch.no_grad():
            return view.at(self._rig._now(slice(index, index + 1), self._rig.given[index]))


def mean_errors(cameras: Sequence[Camera], truth: Sequence[Camera]) -> dict[str, float]:
    """Means over the views of what `pose_errors` gives, `pose_<name>`; focal lengths without their sign."""
    rows = pose_errors(cameras, truth)
    names = ("rotation_deg", "translation", "focal_percent")
    return {f"pose_{name}": sum(abs(row[name]) for row in rows) / len(rows) for name in names}
