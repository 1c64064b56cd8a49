"""How two sets of the same cameras lie to each other: the similarity between them, and what it leaves.

A scene that is made from pictures alone can be turned, shifted and scaled with all its cameras, and no
picture changes. So learned cameras are compared with true ones, and carried over to them, up to a similarity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus

FLAT = 1e-6  # centres whose second principal extent is below this share of the first lie on a line


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + shift, from one world to another; float64.

    rotation: [3,3]. shift: [3], units of the world that it leads to.
    """

    scale: float
    rotation: Tensor
    shift: Tensor

    def points(self, points: Tensor) -> Tensor:
        """Points [P,3] in the other world, float64."""
        return self.scale * points.double() @ self.rotation.T + self.shift

    def camera(self, camera: Camera, zoom: float = 1.0) -> Camera:
        """The camera that sees the other world as this one does its own, on the CPU; depths are scaled too.

        zoom: factor of the focal lengths.
        """
        turned = camera.viewmats.cpu().double()[:, :3, :3] @ self.rotation.T
        viewmats = camera.viewmats.cpu().double().clone()
        viewmats[:, :3, :3] = turned
        viewmats[:, :3, 3] = self.scale * viewmats[:, :3, 3] - turned @ self.shift
        Ks = camera.Ks.cpu() * torch.tensor([zoom, zoom, 1.0])[:, None]
        Ks[:, :2, 2] = camera.Ks.cpu()[:, :2, 2]
        return Camera(viewmats.float(), Ks, camera.width, camera.height)


def similarity(source: Sequence[Camera], target: Sequence[Camera]) -> Similarity:
    """The similarity that leads from the world of some cameras to that of their twins.

    Umeyama's of their centres and, with as much weight as all of these, of the point that they look at: a
    camera that is turned a little and shifted as much the other way shows almost the same, so what it looks
    at is known better than where it is. Where these lie on a line, the rotation is that of the orientations
    (`turning`), and scale and shift fit the centres; a single camera leaves the scale at 1.
    """
    from_, to = _centers(source), _centers(target)
    aims = [focus(cameras).double().expand(len(cameras), 3) for cameras in (source, target)]
    best = umeyama(torch.cat([from_, aims[0].cpu()]), torch.cat([to, aims[1].cpu()]))
    return best or _scaled(turning(source, target), from_, to)


def turning(source: Sequence[Camera], target: Sequence[Camera]) -> Tensor:
    """The rotation [3,3] of the world that best turns all orientations into their twins' (chordal mean)."""
    return _nearest_rotation((_rotations(target).transpose(1, 2) @ _rotations(source)).sum(0))


def umeyama(source: Tensor, target: Tensor) -> Similarity | None:
    """The similarity that leads points [P,3] to points [P,3] with the least squares; None on a line.

    Source: Umeyama 1991, "Least-squares estimation of transformation parameters between two point patterns".
    """
    source, target = source.double(), target.double()
    spread = torch.linalg.svdvals(source - source.mean(0))
    if len(source) < 3 or float(spread[1]) <= FLAT * float(spread[0]):
        return None
    moment = (target - target.mean(0)).T @ (source - source.mean(0))
    return _scaled(_nearest_rotation(moment), source, target)


def zoom(source: Sequence[Camera], target: Sequence[Camera]) -> float:
    """By how much longer the focal lengths of `target` are than those of their twins, geometric mean."""
    logs = (_focals(target).log() - _focals(source).log()).mean()
    return math.exp(float(logs))


def pose_errors(learned: Sequence[Camera], truth: Sequence[Camera]) -> list[dict[str, float]]:
    """How far each camera is from the true one, once both worlds are brought together.

    Returns, per view: rotation_deg, after the rotation that best turns all orientations; translation, the
    distance of the centres after Umeyama's similarity (where the centres lie on a line, after that of
    `similarity`), in units of the true world; focal_percent, signed.
    """
    best = umeyama(_centers(learned), _centers(truth)) or similarity(learned, truth)
    left = _rotations(learned) @ turning(learned, truth).T @ _rotations(truth).transpose(1, 2)
    away = (best.points(_centers(learned)) - _centers(truth)).norm(dim=1)
    focal = 100 * (_focals(learned) / _focals(truth) - 1)
    rows = zip(angles(left).tolist(), away.tolist(), focal.tolist(), strict=True)
    return [{"rotation_deg": a, "translation": b, "focal_percent": c} for a, b, c in rows]


def angles(rotations: Tensor) -> Tensor:
    """By how many degrees rotation matrices [V,3,3] turn, [V]; exact also where they hardly do."""
    skew = rotations - rotations.transpose(-1, -2)
    sine = 0.5 * torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], -1).norm(dim=-1)
    cosine = 0.5 * (rotations.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    return torch.rad2deg(torch.atan2(sine, cosine))


def _scaled(rotation: Tensor, source: Tensor, target: Tensor) -> Similarity:
    """With this rotation, the scale and shift that lead points to points with the least squares."""
    turned = (source - source.mean(0)) @ rotation.T
    square = float(turned.square().sum())
    scale = float((turned * (target - target.mean(0))).sum()) / square if square else 1.0
    scale = scale if scale > 0 else 1.0  # centres that fit a mirror image tell nothing of the scale
    return Similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def _nearest_rotation(moment: Tensor) -> Tensor:
    """The rotation [3,3] with the largest trace of its product with the transpose of a matrix [3,3]."""
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
    """Focal lengths, the geometric mean of both axes, in widths of the picture: [V]."""
    values = [(c.Ks[:, 0, 0] * c.Ks[:, 1, 1]).sqrt().detach().cpu().double() / c.width for c in cameras]
    return torch.cat(values)
