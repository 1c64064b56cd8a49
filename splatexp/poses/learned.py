"""Camera optimization: the settings of learned cameras, and the rig that holds and updates them.

The parameters are two shared leaves of the splats, so that they are saved, resumed and checked with them:
pose offsets for each view, and the logarithm of the change of the focal length.

Notation: V training views, P pose parameters per view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus_point
from splatexp.cameras.rigid import dolly
from splatexp.cameras.similarity import pose_errors, rotation_degrees
from splatexp.schedules.curve import Curve
from splatexp.settings.checks import STEPS, check_choice, check_range
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats

POSE, FOCAL = "camera.pose", "camera.focal"  # names in `Splats.shared`: [V,P] and [1]
SHARED_NAMES = ("center", "extent")  # base tensors that all views share


@dataclass
class Poses:
    """The settings of the cameras; this base class keeps those of the data."""

    is_learned: ClassVar[bool] = False

    def rig(self, scene: Scene, splats: Splats, views: Sequence[View]) -> Rig:
        """Return the rig that provides the cameras of the training views during a run.

        Args:
            views: the training views of the scene, on the device that trains.
        """
        return Rig(views, scene.train)

    def with_learned_cameras(self, scene: Scene, splats: Splats) -> Scene:
        """Return the scene with the current cameras in its training views."""
        return scene


@dataclass
class LearnedPoses(Poses):
    """The settings of cameras that are optimized with Adam from step `start` to `stop`.

    The gauge freedom, the common motion of all cameras that no image shows, is removed as `gauge` says:

    first: the first view keeps its pose;
    mean: the offsets of all views have a mean of zero;
    prior: the mean square of the offsets is part of the loss, with the weight `prior`.
    """

    lr: float = 1e-3  # of the poses, in radians and fractions of the extent
    focal_lr: float = 3e-3  # of the logarithm of the focal length, which all views share; 0: not learned
    max_focal_factor: float = 2.0  # by which the focal length may differ from the initial one
    # true: the distance changes with the focal length, so that the object keeps its size in the image, and
    # only perspective changes; false: the distance stays, and Gaussians have to follow the focal length
    dolly: bool = True
    anneal: Curve = field(default_factory=lambda: Curve("cosine", end=0.01))  # factor of both learning rates
    start: int = field(
        default=500, metadata=STEPS
    )  # first step; the geometry should be roughly right by then
    stop: int = field(default=0, metadata=STEPS)  # step at which learning ends; 0: the end of the run
    beta1: float = 0.9
    beta2: float = 0.999
    gauge: str = "mean"  # first, mean or prior
    prior: float = 1e-2  # weight of the offsets, with gauge=prior
    focal_prior: float = 0.0  # weight of the squared logarithm of the focal length's change

    is_learned: ClassVar[bool] = True
    params_per_view: ClassVar[int]  # P
    gauge_columns: ClassVar[slice] = slice(None)  # the parameters that the gauge concerns

    def __post_init__(self) -> None:
        for name in ("lr", "focal_lr", "start", "stop", "prior", "focal_prior"):
            check_range(f"camera.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(f"camera.{name}", getattr(self, name), 0, 1 - 1e-9)
        check_range("camera.max_focal_factor", self.max_focal_factor, 1)
        check_choice("camera.gauge", self.gauge, ("first", "mean", "prior"))

    def rig(self, scene: Scene, splats: Splats, views: Sequence[View]) -> Rig:
        """Return the rig of learned cameras; it adds their parameters to `splats`, unless they are there.

        Raises: ValueError where `splats` has parameters for another number of views.
        """
        return LearnedRig(self, scene, splats, views)

    def with_learned_cameras(self, scene: Scene, splats: Splats) -> Scene:
        """Return the scene with the current cameras in its training views."""
        return scene.with_cameras(LearnedRig(self, scene, splats, scene.train).cameras())

    def active(self, step: int) -> bool:
        """Return whether the cameras are updated at a step."""
        return self.start <= step and (step < self.stop or not self.stop)

    @property
    def max_offset(self) -> float:
        """Return the largest absolute value of a pose parameter; 0: no limit."""
        return 0.0

    def base_tensors(self, cameras: list[Camera], extent: float) -> dict[str, Tensor]:
        """Return further tensors [V,...] that `viewmats` needs, computed from the initial cameras."""
        return {}

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """Return the world -> camera matrices [V,4,4] of pose parameters, in the autograd graph.

        With parameters of 0 they are the initial ones, up to rounding.

        Args:
            base: the tensors of `base_tensors`, with `viewmats` [V,4,4], the initial ones; `center` [3], the
                point that they look at; and `extent` [] of the scene.
            pose: [V,P].
        """
        raise NotImplementedError


class Rig:
    """The cameras of the training views during a run; this base class keeps those of the data.

    Args:
        views: the training views on the device that trains; as an attribute, with their current cameras.
        train: the training views of the scene; likewise.
    """

    def __init__(self, views: Sequence[View], train: Sequence[View]):
        self.views, self.train = views, train

    def camera(self, index: int, camera: Camera, step: int) -> Camera:
        """Return the camera of a view at a step.

        Args:
            index: of the view.
            camera: the camera of the data, at any resolution.
        """
        return camera

    def loss_terms(self, step: int) -> dict[str, Tensor]:
        """Return weighted scalars that are added to the loss, by name."""
        return {}

    def update(self, step: int, steps: int, backend: str) -> None:
        """Update the cameras from the gradients of a step."""

    def metrics(self, step: int, steps: int) -> dict[str, float]:
        """Return values for the log after a step, by name."""
        return {}


class LearnedRig(Rig):
    """Cameras that are optimized as their settings say."""

    def __init__(self, settings: LearnedPoses, scene: Scene, splats: Splats, views: Sequence[View]):
        self.settings = settings
        self.splats = splats
        self.true_cameras = scene.true_cameras
        self.initial = scene.initial_cameras
        device = splats.means.device
        base = settings.base_tensors(self.initial, scene.extent)
        base["viewmats"] = torch.cat([camera.viewmats for camera in self.initial])
        base |= {"center": focus_point(self.initial), "extent": torch.tensor(scene.extent)}
        self.base = {name: tensor.to(device) for name, tensor in base.items()}
        shapes = {POSE: (len(self.initial), settings.params_per_view), FOCAL: (1,)}
        for name, shape in shapes.items():
            if name not in splats.shared:
                splats.add_shared(name, torch.zeros(shape, device=device))
            got = tuple(splats.shared[name].shape)
            if got != shape:
                raise ValueError(f"{name}: expected {shape} for {len(self.initial)} views, got {got}")
        super().__init__(PosedViews(self, views), PosedViews(self, scene.train))

    def camera(self, index: int, camera: Camera, step: int) -> Camera:
        """Return the camera of a view at a step, in the graph of the parameters while they are learned."""
        s = self.settings
        if step < s.start:
            return camera
        with torch.set_grad_enabled(torch.is_grad_enabled() and s.active(step)):
            return self._current(slice(index, index + 1), camera)

    def loss_terms(self, step: int) -> dict[str, Tensor]:
        """Return the priors, while the cameras are learned."""
        s, terms = self.settings, {}
        if not s.active(step):
            return terms
        if s.gauge == "prior" and s.prior:
            pose = self.splats.shared[POSE]
            terms["camera_prior"] = s.prior * pose.square().sum() / len(pose)
        if s.focal_prior and s.focal_lr:
            terms["camera_focal_prior"] = s.focal_prior * self.splats.shared[FOCAL].square().sum()
        return terms

    @torch.no_grad()
    def update(self, step: int, steps: int, backend: str) -> None:
        """Update the cameras with Adam, then apply the limits and the gauge.

        The gradient of a view that was not rendered in this step counts as 0.
        """
        s = self.settings
        if not s.active(step):
            return
        factor = s.anneal(step, steps)
        for name, lr in ((POSE, s.lr), (FOCAL, s.focal_lr)):
            leaf = self.splats.shared[name]
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            leaf.grad = None
            if name == POSE and s.gauge == "first":
                grad[0, s.gauge_columns] = 0
            if lr:
                adam(
                    leaf,
                    grad,
                    self.splats.exp_avg[name],
                    self.splats.exp_avg_sq[name],
                    step=step - s.start + 1,
                    lr=lr * factor,
                    beta1=s.beta1,
                    beta2=s.beta2,
                    backend=backend,
                )
        pose, focal = self.splats.shared[POSE], self.splats.shared[FOCAL]
        if s.max_offset:
            pose.clamp_(-s.max_offset, s.max_offset)
        if s.gauge == "mean":
            pose[:, s.gauge_columns] -= pose[:, s.gauge_columns].mean(0)
        focal.clamp_(-math.log(s.max_focal_factor), math.log(s.max_focal_factor))

    @torch.no_grad()
    def metrics(self, step: int, steps: int) -> dict[str, float]:
        """Return values for the log: the mean and the largest rotation, the focal length, the learning rates.

        Rotations and focal length are relative to the initial cameras. Where the true cameras are known, the
        errors `pose_...` are among the values too.
        """
        s, now = self.settings, self.cameras()
        factor = s.anneal(step, steps) if s.active(step) else 0.0
        before = torch.cat([camera.viewmats[:, :3, :3] for camera in self.initial]).cpu()
        after = torch.cat([camera.viewmats[:, :3, :3] for camera in now])
        rotations = rotation_degrees((after @ before.mT).double())
        values = {
            "camera_rotation_mean_deg": float(rotations.mean()),
            "camera_rotation_max_deg": float(rotations.max()),
            "camera_focal_factor": float(self.splats.shared[FOCAL].exp()),
            "lr_camera": s.lr * factor,
            "lr_camera_focal": s.focal_lr * factor,
        }
        return values | (mean_errors(now, self.true_cameras) if self.true_cameras else {})

    @torch.no_grad()
    def cameras(self) -> list[Camera]:
        """Return all current cameras, on the CPU."""
        return [self._current(slice(i, i + 1), camera).to("cpu") for i, camera in enumerate(self.initial)]

    def _current(self, rows: slice, camera: Camera) -> Camera:
        """Return the current cameras of some views, with the intrinsics and size of `camera`."""
        s = self.settings
        pose, focal = self.splats.shared[POSE][rows], self.splats.shared[FOCAL].exp()
        base = {name: part if name in SHARED_NAMES else part[rows] for name, part in self.base.items()}
        viewmats = s.viewmats(base, pose if s.lr else pose.detach())
        if not s.focal_lr:
            return Camera(viewmats, camera.Ks.to(viewmats.device), camera.width, camera.height)
        if s.dolly:
            viewmats = dolly(viewmats, focal, base["center"])
        axes = torch.nn.functional.pad(
            torch.eye(2, device=focal.device), (0, 1, 0, 1)
        )  # made on the device, without a copy to it
        Ks = camera.Ks.to(focal.device) * (1 + axes * (focal - 1))
        return Camera(viewmats, Ks, camera.width, camera.height)


class PosedViews(Sequence["View"]):
    """Training views whose cameras are those that a rig has when a view is read."""

    def __init__(self, rig: LearnedRig, views: Sequence[View]):
        self._rig = rig
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> View:  # type: ignore[override]
        view = self._views[index]
        with torch.no_grad():
            return view.with_camera(self._rig._current(slice(index, index + 1), self._rig.initial[index]))


def mean_errors(cameras: Sequence[Camera], true_cameras: Sequence[Camera]) -> dict[str, float]:
    """Return the means of `pose_errors` over the views, as `pose_<name>`; focal lengths count unsigned."""
    rows = pose_errors(cameras, true_cameras)
    names = ("rotation_deg", "translation", "focal_percent")
    return {f"pose_{name}": sum(abs(row[name]) for row in rows) / len(rows) for name in names}
