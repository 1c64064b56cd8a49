"""The similarity (Sim(3)) between two sets of the same cameras, and the pose errors that it leaves.

A scene can be rotated, translated and scaled together with all its cameras, and no image changes. So learned
cameras are compared with true ones, and transferred to their world, up to a similarity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus_point

# Camera centres lie on a line if their second principal extent is below this fraction of the first.
COLLINEAR = 1e-6


@dataclass(frozen=True)
class Similarity:
    """The map x -> scale * rotation @ x + shift from one world to another, in float64."""

    scale: float
    rotation: Tensor  # [3,3]
    shift: Tensor  # [3] units of the target world

    def points(self, points: Tensor) -> Tensor:
        """Return points [P,3] in the target world, float64."""
        return self.scale * points.double() @ self.rotation.T + self.shift

    def camera(self, camera: Camera, zoom: float = 1.0) -> Camera:
        """Return the camera, on the CPU, that sees the target world as `camera` sees its own.

        Depths are scaled like all lengths.

        Args:
            zoom: factor of the focal lengths.
        """
        rotated = camera.viewmats.cpu().double()[:, :3, :3] @ self.rotation.T
        viewmats = camera.viewmats.cpu().double().clone()
        viewmats[:, :3, :3] = rotated
        viewmats[:, :3, 3] = self.scale * viewmats[:, :3, 3] - rotated @ self.shift
        Ks = camera.Ks.cpu() * torch.tensor([zoom, zoom, 1.0])[:, None]
        Ks[:, :2, 2] = camera.Ks.cpu()[:, :2, 2]
        return Camera(viewmats.float(), Ks, camera.width, camera.height)


def fit_similarity(source: Sequence[Camera], target: Sequence[Camera]) -> Similarity:
    """Return the similarity from the world of some cameras to the world of the corresponding ones.

    It is Umeyama's similarity of their centres and of the point that they look at, which weighs as much as
    all centres together: a small rotation of a camera and an opposite translation show almost the same, so
    the point is known better than the centres are. Where the centres lie on a line, the rotation is that of
    the orientations (`fit_rotation`), and scale and shift fit the centres. For a single camera the scale
    is 1.
    """
    centers = _centers(source), _centers(target)
    points = [focus_point(cameras).double().expand(len(cameras), 3) for cameras in (source, target)]
    best = umeyama(*(torch.cat([each, point.cpu()]) for each, point in zip(centers, points, strict=True)))
    return best or _fit_scale_and_shift(fit_rotation(source, target), *centers)


def fit_rotation(source: Sequence[Camera], target: Sequence[Camera]) -> Tensor:
    """Return the rotation [3,3] of the world that best aligns all orientations (the chordal mean)."""
    return _nearest_rotation((_rotations(target).transpose(1, 2) @ _rotations(source)).sum(0))


def umeyama(source: Tensor, target: Tensor) -> Similarity | None:
    """Return the least-squares similarity from points [P,3] to points [P,3]; None where they lie on a line.

    Source: Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns".
    """
    source, target = source.double(), target.double()
    spread = torch.linalg.svdvals(source - source.mean(0))
    if len(source) < 3 or float(spread[1]) <= COLLINEAR * float(spread[0]):
        return None
    moment = (target - target.mean(0)).T @ (source - source.mean(0))
    return _fit_scale_and_shift(_nearest_rotation(moment), source, target)


def focal_ratio(source: Sequence[Camera], target: Sequence[Camera]) -> float:
    """Return the geometric mean of the ratios of the focal lengths, `target` over `source`."""
    logs = (_focals(target).log() - _focals(source).log()).mean()
    return math.exp(float(logs))


def pose_errors(learned: Sequence[Camera], truth: Sequence[Camera]) -> list[dict[str, float]]:
    """Return how far each camera is from the true one, once both worlds are aligned.

    Returns: for each view, `rotation_deg`, the angle after the rotation that best aligns all orientations;
    `translation`, the distance of the centres after Umeyama's similarity (where the centres lie on a line,
    after that of `fit_similarity`), in units of the true world; and `focal_percent`, the signed error of the
    focal length.
    """
    best = umeyama(_centers(learned), _centers(truth)) or fit_similarity(learned, truth)
    remaining = _rotations(learned) @ fit_rotation(learned, truth).T @ _rotations(truth).transpose(1, 2)
    distances = (best.points(_centers(learned)) - _centers(truth)).norm(dim=1)
    focal = 100 * (_focals(learned) / _focals(truth) - 1)
    rows = zip(rotation_degrees(remaining).tolist(), distances.tolist(), focal.tolist(), strict=True)
    return [{"rotation_deg": a, "translation": b, "focal_percent": c} for a, b, c in rows]


def rotation_degrees(rotations: Tensor) -> Tensor:
    """Return the angles [V] of rotation matrices [V,3,3] in degrees, accurate for small angles too."""
    skew = rotations - rotations.transpose(-1, -2)
    sine = 0.5 * torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1).norm(dim=-1)
    cosine = 0.5 * (rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    return torch.rad2deg(torch.atan2(sine, cosine))


def _fit_scale_and_shift(rotation: Tensor, source: Tensor, target: Tensor) -> Similarity:
    """Return the similarity with this rotation and the least-squares scale and shift of points to points."""
    rotated = (source - source.mean(0)) @ rotation.T
    square = float(rotated.square().sum())
    scale = float((rotated * (target - target.mean(0))).sum()) / square if square else 1.0
    scale = scale if scale > 0 else 1.0  # the centres fit a mirror image, so that the scale is unknown
    return Similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def _nearest_rotation(moment: Tensor) -> Tensor:
    """Return the rotation R [3,3] that maximizes trace(R moment^T) for a matrix [3,3]."""
    left, _, right = torch.linalg.svd(moment)
    sign = torch.ones(3, dtype=moment.dtype)
    sign[2] = torch.sign(torch.det(left) * torch.det(right))
    return (left * sign) @ right


def _rotations(cameras: Sequence[Camera]) -> Tensor:
    return torch.cat([camera.viewmats[:, :3, :3] for camera in cameras]).detach().cpu().double()


def _centers(cameras: Sequence[Camera]) -> Tensor:
    viewmats = torch.cat([camera.viewmats for camera in cameras]).detach().cpu().double()
    return -torch.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3])


def _focals(cameras: Sequence[Camera]) -> Tensor:
    """Return the focal lengths [V], geometric means of both axes, in widths of the image."""
    values = [(c.Ks[:, 0, 0] * c.Ks[:, 1, 1]).sqrt().detach().cpu().double() / c.width for c in cameras]
    return torch.cat(values)
