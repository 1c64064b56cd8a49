"""Rigid motions as matrices, as pure functions in the autograd graph.

Notation: V views; `viewmats` [V,4,4] world -> camera. A motion of the world about a point c is
x -> W (x - c) + c + s, and a camera sees the moved world through viewmat @ motion.
"""

import torch
from torch import Tensor

SMALL = 1e-4  # squared angle, rad^2, below which the series are exact to the precision of float64


def cross_matrices(vectors: Tensor) -> Tensor:
    """Return the matrices [V,3,3] of the cross products with vectors [V,3]: matrix @ y = vector x y."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def exp_map(motions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exponential map of twists [V,6]: rotations [V,3,3] and translations [V,3].

    The first three numbers of a twist are the rotation vector. The map and its derivatives are smooth at 0.

    Source: Barfoot 2017, "State Estimation for Robotics", eq. 7.16 and 7.85-7.86.
    """
    rotation, translation = motions.split(3, -1)
    square = rotation.square().sum(-1)[..., None, None]
    large = square.clamp_min(SMALL)
    angle = large.sqrt()
    near = square < SMALL
    a = torch.where(near, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle)
    b = torch.where(
        near, 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)), (1 - angle.cos()) / large
    )
    c = torch.where(
        near,
        1 / 6 - square / 120 * (1 - square / 42 * (1 - square / 72)),
        (angle - angle.sin()) / (large * angle),
    )
    cross = cross_matrices(rotation)
    squared = cross @ cross
    eye = torch.eye(3, dtype=motions.dtype, device=motions.device)
    return eye + a * cross + b * squared, ((eye + b * cross + c * squared) @ translation[..., None])[..., 0]


def rotations_from_6d(numbers: Tensor) -> Tensor:
    """Return the rotations [V,3,3] of six numbers each [V,6].

    They are two vectors, which become the first two rows after Gram-Schmidt orthonormalization.

    Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks", section 4.
    """
    first, second = numbers.split(3, -1)
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -2)


def move_world(viewmats: Tensor, rotations: Tensor, shifts: Tensor, center: Tensor) -> Tensor:
    """Return cameras [V,4,4] that see a world that was rotated about a point and then translated.

    Args:
        rotations: [V,3,3] of the world.
        shifts: [V,3] translations of the world.
        center: [3] the point.
    """
    before = viewmats[:, :3, :3]
    seen_center = (before @ (center + shifts)[..., None])[..., 0] + viewmats[:, :3, 3]
    after = before @ rotations
    return _with(viewmats, after, seen_center - after @ center)


def dolly(viewmats: Tensor, factor: Tensor, center: Tensor) -> Tensor:
    """Return cameras [V,4,4] that have moved to `factor` [1] times their distance from `center` [3]."""
    rotated = viewmats[:, :3, :3] @ center
    return _with(viewmats, viewmats[:, :3, :3], factor * (rotated + viewmats[:, :3, 3]) - rotated)


def move_camera(rotations: Tensor, shifts: Tensor, viewmats: Tensor) -> Tensor:
    """Return cameras [V,4,4] that were rotated and translated in their own axes: camera -> world @ [R | s].

    Args:
        rotations: [V,3,3] R.
        shifts: [V,3] s.
    """
    rotated = rotations.transpose(-1, -2) @ viewmats[:, :3, :3]
    translated = rotations.transpose(-1, -2) @ (viewmats[:, :3, 3] - shifts)[..., None]
    return _with(viewmats, rotated, translated[..., 0])


def _with(viewmats: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """Return viewmats [V,4,4] with these rotations and translations, and the last row of others."""
    return torch.cat([torch.cat([rotations, translations[..., None]], -1), viewmats[:, 3:]], 1)
