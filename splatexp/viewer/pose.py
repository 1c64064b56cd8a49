"""Conversions between the poses of viser's clients and the cameras of a scene.

Notation: a pose is a quaternion (w,x,y,z) camera -> world with OpenCV axes, and a position in the world.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from splatexp.cameras.pinhole import Camera, focus_point
from splatexp.gaussians.geometry import quats_to_rotations, rotations_to_quats

FLIGHT_FRAMES = 24  # poses on the way to a camera
FLIGHT_SECONDS = 0.7  # time that the way takes


@dataclass(frozen=True, eq=False)
class Pose:
    """The position, orientation and field of view of a client."""

    wxyz: np.ndarray  # [4]
    position: np.ndarray  # [3]
    fov: float  # vertical, radians

    @property
    def rotation(self) -> np.ndarray:
        """The rotation camera -> world, [3,3]."""
        return quats_to_rotations(torch.as_tensor(self.wxyz, dtype=torch.float64)[None])[0].numpy()

    def camera(self, width: int, height: int) -> Camera:
        """Return the camera (C = 1) of an image of `width` x `height` px."""
        rotation = self.rotation.T
        viewmat = torch.eye(4, dtype=torch.float64)
        viewmat[:3, :3] = torch.from_numpy(rotation.copy())
        viewmat[:3, 3] = torch.from_numpy(-rotation @ self.position)
        f = height / 2 / math.tan(self.fov / 2)
        K = torch.tensor([[f, 0.0, width / 2], [0.0, f, height / 2], [0.0, 0.0, 1.0]])
        return Camera(viewmat.float()[None], K[None], width, height)


def camera_pose(camera: Camera, aspect: float = 0.0) -> Pose:
    """Return the pose of a camera (C = 1), with a field of view that holds its whole image.

    aspect: width / height of the canvas; 0 takes that of the image.
    """
    matrix = camera.viewmats[0].detach().cpu().double()
    K = camera.Ks[0].detach().cpu().double().numpy()
    up = max(K[1, 2], camera.height - K[1, 2]) / K[1, 1]  # tangents from the axis to the farther border
    across = max(K[0, 2], camera.width - K[0, 2]) / K[0, 0]
    half = max(up, across / aspect) if aspect > 0 else up
    rotation = matrix[:3, :3].T
    wxyz = rotations_to_quats(rotation[None])[0]
    return Pose(wxyz.numpy(), (-rotation @ matrix[:3, 3]).numpy(), float(2 * math.atan(half)))


def interpolate_poses(start: Pose, end: Pose, frames: int = FLIGHT_FRAMES) -> Iterator[Pose]:
    """Yield poses on the way from `start` to `end`, the last of which is `end` itself.

    Positions move on a straight line, orientations by spherical interpolation the shorter way round, and both
    speed up and slow down smoothly.
    """
    one, other = start.wxyz / np.linalg.norm(start.wxyz), end.wxyz / np.linalg.norm(end.wxyz)
    other = -other if one @ other < 0 else other
    angle = math.acos(min(1.0, float(one @ other)))
    for index in range(1, frames):
        t = index / frames
        t = t * t * (3 - 2 * t)
        low, high = (1 - t, t) if angle < 1e-4 else (math.sin((1 - t) * angle), math.sin(t * angle))
        wxyz = low * one + high * other
        middle = start.position + t * (end.position - start.position)
        yield Pose(wxyz / np.linalg.norm(wxyz), middle, start.fov + t * (end.fov - start.fov))
    yield end


def orbit_target(pose: Pose, cameras: Sequence[Camera]) -> np.ndarray:
    """Return the point [3] around which a client at `pose` orbits.

    It lies on the client's optical axis, as far away as the point that all cameras look at.
    """
    forward = pose.rotation[:, 2]
    middle = focus_point(cameras).double().cpu().numpy()
    far = float((middle - pose.position) @ forward)
    return pose.position + forward * (
        far if far > 1e-6 else float(np.linalg.norm(middle - pose.position)) or 1.0
    )


def nearest_camera(camera: Camera, cameras: Sequence[Camera], extent: float) -> int:
    """Return the index of the camera whose view is most like that of `camera`.

    Views are compared by distance / extent + 1 - cos(angle between the optical axes).
    """
    gap = torch.cat([each.centers for each in cameras]).cpu() - camera.centers.cpu()
    turn = 1 - torch.cat([each.forwards for each in cameras]).cpu() @ camera.forwards[0].cpu()
    return int((gap.norm(dim=1) / extent + turn).argmin())


def frustum_size(cameras: Sequence[Camera], extent: float) -> float:
    """Return the size of a drawn frustum, in world units, at which those of neighbours hardly touch."""
    centers = torch.cat([camera.centers for camera in cameras]).double()
    if len(centers) < 2:
        return 0.04 * extent
    gaps = torch.cdist(centers, centers).fill_diagonal_(math.inf).amin(1)
    return float(min(max(0.3 * float(gaps.median()), 0.01 * extent), 0.04 * extent))
