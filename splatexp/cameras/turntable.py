"""The turntable: a closed camera path near the given cameras, for a video.

The camera centres are expressed in spherical coordinates around the point that they look at (distance,
elevation and azimuth about the up direction of the scene), and distance and elevation are smoothed over the
azimuth. So the path follows an ellipse where the photographer walked along one, and rises and sinks as they
did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from splatexp.cameras.pinhole import Camera, focus_point, look_at

CONCENTRATION = 3.0  # of the von Mises weights of the smoothing; about 35 degrees on either side
OPEN_GAP = math.radians(100)  # across a wider gap in the azimuths the path does not close, but swings
SWING = 0.8  # fraction of the covered arc that the swing uses
RISE = 0.5  # of the swing, as a fraction of the elevations' standard deviation
PARALLEL = 1e-3  # 1 - |mean viewing direction|; below it (2.5 degrees) axes do not say where they meet
MAX_ELEVATION = math.radians(80)


def turntable(cameras: Sequence[Camera], count: int, points: Tensor | None = None) -> Camera:
    """Return a closed path of `count` views that look at what `cameras` look at, or away from it, as they do.

    The path runs all the way round where the cameras stand all around. Otherwise it swings over the arc that
    they cover, with a slight rise and fall. Intrinsics and size are those of the first camera; odd sizes
    lose a pixel, for video.

    Args:
        points: [P,3] world units, such as the means of the Gaussians. They are used only where all cameras
            look in the same direction.

    Raises: ValueError for no cameras, or a count below one.
    """
    if not cameras or count < 1:
        raise ValueError(f"cameras, count: expected at least one each, got {len(cameras)} and {count}")
    target = _target(cameras, points)
    up = estimate_up(cameras)
    offsets = torch.cat([camera.centers for camera in cameras]).double() - target
    forwards = torch.cat([camera.forwards for camera in cameras]).double()
    x, y = _horizon(up, offsets)
    azimuths = torch.atan2(offsets @ y, offsets @ x)
    distances = offsets.norm(dim=1)
    elevations = torch.asin((offsets @ up / distances.clamp_min(1e-12)).clamp(-1, 1))

    phase = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    start, length = _arc(azimuths)
    closed = 2 * math.pi - length <= OPEN_GAP
    angles = phase if closed else start + length / 2 * (1 + SWING * torch.sin(phase))
    weights = torch.exp(CONCENTRATION * (torch.cos(angles[:, None] - azimuths) - 1))
    weights = weights / weights.sum(1, keepdim=True)
    distance, elevation = weights @ distances, weights @ elevations
    if not closed:
        spread = (weights @ elevations.square() - elevation.square()).clamp_min(0).sqrt()
        elevation = elevation + RISE * spread * torch.cos(phase)
    elevation = elevation.clamp(-MAX_ELEVATION, MAX_ELEVATION)
    level = torch.cos(angles)[:, None] * x + torch.sin(angles)[:, None] * y
    outward = torch.cos(elevation)[:, None] * level + torch.sin(elevation)[:, None] * up
    eyes = target + distance[:, None] * outward
    viewmats = look_at(eyes, target, up)
    if float((forwards * offsets).sum(1).median()) > 0:  # they look away from it, as in the middle of a room
        viewmats = look_at(eyes, target + 2 * (eyes - target), up)
    return _even(cameras[0], viewmats.float())


def estimate_up(cameras: Sequence[Camera]) -> Tensor:
    """Return the up direction [3] of the scene.

    It is orthogonal to the cameras' x axes, as photographers hold cameras level, and close to their mean up.
    """
    rights = torch.cat([camera.viewmats[:, 0, :3] for camera in cameras]).double()
    mean = normalize(-torch.cat([camera.viewmats[:, 1, :3] for camera in cameras]).double().mean(0), dim=0)
    scatter = rights.T @ rights / len(rights) - 0.01 * torch.outer(mean, mean)
    up = torch.linalg.eigh(scatter).eigenvectors[:, 0]
    return up if float(up @ mean) >= 0 else -up


def _target(cameras: Sequence[Camera], points: Tensor | None) -> Tensor:
    """Return what the path looks at [3].

    It is the cameras' focus point, or, where all look in one direction, a point at the median depth of
    `points`.
    """
    mean = torch.cat([camera.forwards for camera in cameras]).double().mean(0)
    middle = torch.cat([camera.centers for camera in cameras]).double().mean(0)
    if points is not None and len(points) and 1 - float(mean.norm()) < PARALLEL:
        depths = (points.detach().double() - middle) @ normalize(mean, dim=0)
        if bool((depths > 0).any()):
            return middle + normalize(mean, dim=0) * depths[depths > 0].median()
    return focus_point(cameras).double()


def _horizon(up: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return two unit axes orthogonal to `up`; azimuth 0 is on the side of the farthest camera."""
    flat = offsets - (offsets @ up)[:, None] * up
    axis = flat[flat.norm(dim=1).argmax()]
    if float(axis.norm()) < 1e-6 * float(offsets.norm(dim=1).max().clamp_min(1e-12)):
        axis = torch.eye(3, dtype=up.dtype)[up.abs().argmin()]
    x = normalize(axis - (axis @ up) * up, dim=0)
    return x, torch.linalg.cross(up, x)


def _arc(azimuths: Tensor) -> tuple[float, float]:
    """Return start and length of the arc that holds all azimuths and leaves out the widest gap."""
    ordered = azimuths.sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), 2 * math.pi - float(gaps[widest])


def _even(camera: Camera, viewmats: Tensor) -> Camera:
    """Return a camera with the intrinsics of another at new poses, without an odd last row or column."""
    width, height = (max(2, side - side % 2) for side in (camera.width, camera.height))
    return Camera(viewmats, camera.Ks[:1].expand(len(viewmats), 3, 3).contiguous(), width, height)
