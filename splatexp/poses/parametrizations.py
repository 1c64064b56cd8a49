"""What of a camera is learned: one dataclass a choice, each a few numbers per view and what they do."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.cameras.rigid import composed, exp_map, moved, rotations_6d
from splatexp.cameras.turntable import upright
from splatexp.poses.learned import Learned, Poses
from splatexp.settings.checks import check_choice, check_range


@dataclass
class Fixed(Poses):
    """Cameras stay as the data gave them."""


@dataclass
class Orbit(Learned):
    """Yaw and pitch per view about the point that all cameras look at, and one focal length for all.

    Both are offsets from the given camera, whose roll, distance and aim stay. A common yaw changes no
    picture, so it is what the gauge holds; a common pitch is seen, since all cameras share one up.

    Source: CluelessStudent, "Neural-Head-Reconstruction-Thesis", its camera model; ranges are ours, around
    the given angles.
    """

    gauge: str = "mean"
    turn_max: float = 30.0  # degrees that a yaw or a pitch may move away from the given one

    numbers: ClassVar[int] = 2
    loose: ClassVar[slice] = slice(0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("camera.turn_max", self.turn_max, 0, 180)

    def lay(self, cameras: list[Camera], extent: float) -> dict[str, Tensor]:
        """Axes of every view: the scene's up [V,3], and the view's right across it [V,3]."""
        up = upright(cameras)
        right = torch.cat([camera.viewmats[:, 0, :3] for camera in cameras]).double()
        right = torch.nn.functional.normalize(right - (right @ up)[:, None] * up, dim=-1)
        return {"up": up.expand(len(right), 3).float().contiguous(), "right": right.float()}

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """As `Learned` says."""
        still = torch.zeros_like(base["up"])
        yaw = exp_map(torch.cat([base["up"] * pose[:, :1], still], -1))[0]
        pitch = exp_map(torch.cat([base["right"] * pose[:, 1:], still], -1))[0]
        return moved(base["viewmats"], pitch @ yaw, still, base["center"])

    @property
    def limit(self) -> float:
        """Radians."""
        return float(torch.deg2rad(torch.tensor(self.turn_max)))


@dataclass
class Rot6d(Learned):
    """Nine numbers per view in the camera's own axes: a shift, and two rows of a rotation less the identity.

    The shift counts in shares of the scene's extent.

    Source: gsplat's CameraOptModule; the rotation is that of Zhou et al. 2019.
    """

    rate: float = 2e-4  # of poses that are nearly right; more makes them tremble
    focal_rate: float = 0.0
    gauge: str = "first"

    numbers: ClassVar[int] = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        # a common motion of the world is a different one in the axes of each camera: its mean is not it
        check_choice("camera.gauge", self.gauge, ("first", "prior"))

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """As `Learned` says."""
        identity = torch.eye(2, 3, device=pose.device, dtype=pose.dtype).flatten()
        turned = rotations_6d(pose[:, 3:] + identity)
        return composed(turned, pose[:, :3] * base["extent"], base["viewmats"])


@dataclass
class SE3(Learned):
    """A twist per view, by the exponential map: the world turns about what all cameras look at, and shifts.

    The shift counts in shares of the scene's extent. A common twist changes no picture, to first order, so
    that it is what the gauge holds.
    """

    rate: float = 2e-4  # of poses that are nearly right; more makes them tremble
    focal_rate: float = 0.0
    gauge: str = "mean"

    numbers: ClassVar[int] = 6

    def viewmats(self, base: dict[str, Tensor], pose: Tensor) -> Tensor:
        """As `Learned` says."""
        scale = torch.cat([torch.ones(3, device=pose.device), base["extent"].expand(3)]).to(pose.dtype)
        rotations, shifts = exp_map(pose * scale)
        return moved(base["viewmats"], rotations, shifts, base["center"])
