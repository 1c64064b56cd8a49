"""The parametrizations of camera poses: each has a few parameters per view, and says what they do."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.cameras.rigid import exp_map, move_camera, move_world, rotations_from_6d
from splatexp.cameras.turntable import estimate_up
from splatexp.poses.learned import LearnedPoses, Poses
from splatexp.settings.checks import check_choice, check_range


@dataclass
class Fixed(Poses):
    """Cameras stay as the data gave them."""


@dataclass
class Orbit(LearnedPoses):
    """Yaw and pitch of each view about the point that all cameras look at, and one focal length.

    Both are offsets from the initial camera, whose roll and distance stay. A common yaw changes no image, so
    the gauge concerns it alone; a common pitch is visible, since all cameras share one up direction.

    Source: the camera model of CluelessStudent, "Neural-Head-Reconstruction-Thesis".
    Differs: angles are limited relative to the initial ones.
    """

    gauge: str = "mean"
    max_angle: float = 30.0  # degrees by which yaw and pitch may differ from the initial ones

    params_per_view: ClassVar[int] = 2
    gauge_columns: ClassVar[slice] = slice(0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("camera.max_angle", self.max_angle, 0, 180)

    def base_tensors(self, cameras: list[Camera], extent: float) -> dict[str, Tensor]:
        """Return the rotation axes of every view: up [V,3], and the camera's right [V,3]."""
        up = estimate_up(cameras)
        right = torch.cat([camera.viewmats[:, 0, :3] for camera in cameras]).double()
        right = torch.nn.functional.normalize(right - (right @ up)[:, None] * up, dim=-1)
        return {"up": up.expand(len(right), 3).float().contiguous(), "right": right.float()}

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """Return the world -> camera matrices; see `LearnedPoses.viewmats`."""
        zeros = torch.zeros_like(base["up"])
        yaw = exp_map(torch.cat([base["up"] * pose[:, :1], zeros], -1))[0]
        pitch = exp_map(torch.cat([base["right"] * pose[:, 1:], zeros], -1))[0]
        return move_world(base["viewmats"], pitch @ yaw, zeros, base["center"])

    @property
    def max_offset(self) -> float:
        """Return `max_angle` in radians."""
        return float(torch.deg2rad(torch.tensor(self.max_angle)))


@dataclass
class Rot6d(LearnedPoses):
    """A translation and a 6D rotation of each view, in the camera's own axes.

    The translation is relative to the extent of the scene; the six numbers of the rotation are two rows of
    its matrix minus the identity.

    Source: gsplat's CameraOptModule; the rotation is that of Zhou et al. 2019.
    """

    lr: float = 2e-4  # for poses that are nearly right; a larger one makes them jitter
    focal_lr: float = 0.0
    gauge: str = "first"

    params_per_view: ClassVar[int] = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        # a common motion of the world differs in the axes of each camera, so gauge=mean does not remove it
        check_choice("camera.gauge", self.gauge, ("first", "prior"))

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """Return the world -> camera matrices; see `LearnedPoses.viewmats`."""
        identity = torch.eye(2, 3, device=pose.device, dtype=pose.dtype).flatten()
        rotations = rotations_from_6d(pose[:, 3:] + identity)
        return move_camera(rotations, pose[:, :3] * base["extent"], base["viewmats"])


@dataclass
class SE3(LearnedPoses):
    """A twist of each view, by the exponential map of SE(3).

    The world is rotated about the point that all cameras look at, and translated; the translation is relative
    to the extent of the scene. A common twist changes no image, to first order, so the gauge concerns all
    parameters.
    """

    lr: float = 2e-4  # for poses that are nearly right; a larger one makes them jitter
    focal_lr: float = 0.0
    gauge: str = "mean"

    params_per_view: ClassVar[int] = 6

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """Return the world -> camera matrices; see `LearnedPoses.viewmats`."""
        scale = torch.cat([torch.ones(3, device=pose.device), base["extent"].expand(3)]).to(pose.dtype)
        rotations, shifts = exp_map(pose * scale)
        return move_world(base["viewmats"], rotations, shifts, base["center"])
