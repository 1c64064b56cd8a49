"""Convex primitives that a ray can hit: sphere, box and cylinder; the z axis points up.

Notation: points and directions are float32 [3,R] for R rays, one row per axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Texture = Callable[[Array], Array]


@dataclass(frozen=True)
class Primitive:
    """A convex body that is turned about the vertical axis."""

    kind: str  # sphere, box or cylinder
    center: tuple[float, float, float]
    size: tuple[float, float, float]  # sphere: radius; box: half edges; cylinder: radius, radius, half height
    texture: Texture
    turn: float = 0.0  # radians, about the vertical axis
    shine: tuple[float, float] = (0.12, 24.0)  # strength and exponent of the highlight

    @property
    def bound(self) -> float:
        """Return the radius of a sphere around the centre that contains the primitive."""
        x, y, z = self.size
        return {"sphere": x, "box": math.hypot(x, y, z), "cylinder": math.hypot(x, z)}[self.kind]

    def inward(self, vectors: Array) -> Array:
        """Rotate directions of the world into the primitive's own axes."""
        c, s = np.float32(math.cos(self.turn)), np.float32(math.sin(self.turn))
        return np.stack([c * vectors[0] + s * vectors[1], c * vectors[1] - s * vectors[0], vectors[2]])

    def local(self, points: Array) -> Array:
        """Transform points of the world into the primitive's own axes, relative to its centre."""
        return self.inward(points - column(self.center))

    def hit(self, origins: Array, directions: Array) -> Array:
        """Return the distance [R] along each ray to where it enters the primitive; inf where it misses or
        starts inside.
        """
        o, d = self.local(origins), self.inward(directions)
        if self.kind == "sphere":
            enter, leave = _round(o, d, self.size[0], 3)
        elif self.kind == "box":
            enter, leave = _slab(o[0], d[0], self.size[0])
            for axis in (1, 2):
                near, far = _slab(o[axis], d[axis], self.size[axis])
                enter, leave = np.maximum(enter, near), np.minimum(leave, far)
        else:
            enter, leave = _round(o, d, self.size[0], 2)
            near, far = _slab(o[2], d[2], self.size[2])
            enter, leave = np.maximum(enter, near), np.minimum(leave, far)
        return np.where((enter < leave) & (enter > 1e-4), enter, np.float32(np.inf))

    def normal(self, local: Array) -> Array:
        """Return the outward unit normals, in the primitive's own axes, at points on its surface."""
        if self.kind == "sphere":
            return local / np.float32(self.size[0])
        if self.kind == "box":
            scaled = local / column(self.size)
            face = np.abs(scaled).argmax(0)
            return np.where(np.arange(3)[:, None] == face, np.sign(scaled), np.float32(0))
        side = np.concatenate([local[:2] / np.float32(self.size[0]), np.zeros_like(local[:1])])
        cap = np.concatenate([np.zeros_like(local[:2]), np.sign(local[2:])])
        return np.where(np.abs(local[2]) > self.size[2] - 1e-4, cap, side)

    def outward(self, vectors: Array) -> Array:
        """Rotate directions of the primitive's own axes into the world."""
        c, s = np.float32(math.cos(self.turn)), np.float32(math.sin(self.turn))
        return np.stack([c * vectors[0] - s * vectors[1], s * vectors[0] + c * vectors[1], vectors[2]])


def dot(a: Array, b: Array) -> Array:
    """Return the sum over the first axis of a * b."""
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total += x * y
    return total


def column(values: object) -> Array:
    """Return three numbers as float32 [3,1]."""
    return np.asarray(values, np.float32).reshape(3, 1)


def _slab(o: Array, d: Array, half: float) -> tuple[Array, Array]:
    """Return the two distances between which a ray lies within +-half along one axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / np.where(d == 0, np.float32(1e-12), d)
    a, b = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _round(o: Array, d: Array, radius: float, axes: int) -> tuple[Array, Array]:
    """Return the two distances between which a ray lies within `radius` of the centre, over the first 2 or 3
    axes.
    """
    o, d = o[:axes], d[:axes]
    a, b = np.maximum(dot(d, d), np.float32(1e-12)), dot(o, d)
    root = b * b - a * (dot(o, o) - np.float32(radius * radius))
    width = np.sqrt(np.maximum(root, 0))
    missed = np.where(root > 0, np.float32(0), np.float32(np.inf))
    return (-b - width) / a + missed, (-b + width) / a - missed
