"""Small rigid motions as matrices: pure functions, in the graph.

Notation: V views; `viewmats` [V,4,4] world -> camera. A motion of the world about a point c is
x -> W (x - c) + c + s, and a camera looks at the moved world through viewmat @ motion.
"""

import torch
from torch import Tensor

SMALL = 1e-4  # of the squared angle: below it series are exact to float64's 1e-16


def cross_matrices(vectors: Tensor) -> Tensor:
    """[V,3,3] with cross_matrix @ y = vector x y, of vectors [V,3]."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def exp_map(motions: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential map of twists [V,6], rotation vector first: rotations [V,3,3] and shifts [V,3].

    Smooth at 0, also its derivatives.
    Source: Barfoot 2017, "State Estimation for Robotics", eq. 7.16 and 7.85-7.86.
    """
    turn, along = motions.split(3, -1)
    square = turn.square().sum(-1)[..., None, None]
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
    cross = cross_matrices(turn)
    twice = cross @ cross
    eye = torch.eye(3, dtype=motions.dtype, device=motions.device)
    return eye + a * cross + b * twice, ((eye + b * cross + c * twice) @ along[..., None])[..., 0]


def rotations_6d(numbers: Tensor) -> Tensor:
    """[V,3,3] whose first two rows are two vectors [V,6] made orthonormal one after the other.

    Source: Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks", section 4.
    """
    first, second = numbers.split(3, -1)
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -2)


def moved(viewmats: Tensor, rotations: Tensor, shifts: Tensor, center: Tensor) -> Tensor:
    """Cameras [V,4,4] on a world that turned about `center` [3] and then shifted: [V,3,3], [V,3]."""
    held = viewmats[:, :3, :3]
    at = (held @ (center + shifts)[..., None])[..., 0] + viewmats[:, :3, 3]  # where the centre is now seen
    turned = held @ rotations
    return _with(viewmats, turned, at - turned @ center)


def dollied(viewmats: Tensor, factor: Tensor, center: Tensor) -> Tensor:
    """Cameras [V,4,4] that have moved to `factor` [1] times their distance from `center` [3]."""
    away = viewmats[:, :3, :3] @ center
    return _with(viewmats, viewmats[:, :3, :3], factor * (away + viewmats[:, :3, 3]) - away)


def composed(rotations: Tensor, shifts: Tensor, viewmats: Tensor) -> Tensor:
    """Cameras [V,4,4] that have been turned and shifted in their own axes: camera -> world @ [R | s]."""
    turned = rotations.transpose(-1, -2) @ viewmats[:, :3, :3]
    back = rotations.transpose(-1, -2) @ (viewmats[:, :3, 3] - shifts)[..., None]
    return _with(viewmats, turned, back[..., 0])


def _with(viewmats: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """[V,4,4] of these parts, on the last row of others."""
    return torch.cat([torch.cat([rotations, translations[..., None]], -1), viewmats[:, 3:]], 1)
