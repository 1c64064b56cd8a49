"""A ray tracer for the still life: a lamp with soft shadows, ambient occlusion and highlights.

Notation: points, directions and colours are float32 [3,R] for R rays, one row per axis.
Source: highlights after Blinn (1977); ambient occlusion after Quilez, "Sphere ambient occlusion".
"""

from __future__ import annotations

import math

import numpy as np

from splatexp.data.builtin.primitives import Array, Primitive, column, dot
from splatexp.data.builtin.still_life import BACKDROP, LAMP, LAMP_RADIUS, PRIMITIVES, TABLE


def trace(origin: Array, directions: Array, lamps: Array) -> tuple[Array, Array]:
    """Trace rays from one origin.

    Args:
        origin: [3].
        directions: [3,R] of unit length.
        lamps: [3,R], the unit direction to the lamp for each ray.

    Returns: sRGB colours in [0,1], [3,R], and distances [R], which are inf where a ray hits nothing.
    """
    start = column(origin)
    axis = directions.mean(1)
    axis /= np.linalg.norm(axis)
    spread = math.acos(min(1.0, float((axis @ directions).min())))
    distance = np.full(directions.shape[1], np.inf, np.float32)
    owner = np.full(directions.shape[1], -1, np.int8)
    for index, primitive in enumerate(PRIMITIVES):
        if _may_hit(primitive, start[:, 0], axis, spread):
            reach = primitive.hit(start, directions)
            closer = reach < distance
            distance = np.where(closer, reach, distance)
            owner[closer] = index
    colours = np.repeat(column(BACKDROP), directions.shape[1], axis=1)
    for index in np.unique(owner[owner >= 0]):
        mine = np.flatnonzero(owner == index)
        towards = directions.take(mine, axis=1)
        colours[:, mine] = _shade(
            PRIMITIVES[index], start + towards * distance[mine], towards, lamps.take(mine, axis=1)
        )
    return colours, distance


def lamp_directions(offsets: Array) -> Array:
    """Return the unit directions [3,R] to points of the lamp, given as offsets [2,R] in its unit disc."""
    side = np.cross(LAMP, [0, 0, 1]).astype(np.float32)
    side /= np.linalg.norm(side)
    above = np.cross(side, LAMP)
    towards = LAMP[:, None] + LAMP_RADIUS * (side[:, None] * offsets[0] + above[:, None] * offsets[1])
    return (towards / np.linalg.norm(towards, axis=0)).astype(np.float32)


def _shade(primitive: Primitive, points: Array, directions: Array, lamps: Array) -> Array:
    """Return the sRGB colours of points on a primitive, seen along `directions`."""
    local = primitive.local(points)
    normals = primitive.outward(primitive.normal(local))
    facing = np.clip(dot(normals, lamps), 0, None)
    lit = facing * _unblocked(primitive, points + 1e-3 * normals, lamps, facing > 0)
    ambient = (0.30 + 0.14 * normals[2]) * _openness(primitive, points, normals)
    half = lamps - directions
    half /= np.sqrt(dot(half, half))
    strength, exponent = primitive.shine
    glint = strength * np.clip(dot(normals, half), 0, 1) ** np.float32(exponent) * (lit > 0)
    warm, cool = column((1.0, 0.96, 0.88)), column((0.90, 0.96, 1.0))
    light = primitive.texture(local) * (warm * (0.78 * lit) + cool * ambient) + glint
    return np.clip(light, 0, 1) ** np.float32(1 / 2.2)


def _unblocked(primitive: Primitive, points: Array, lamps: Array, wanted: Array) -> Array:
    """Return 1 where nothing stands between a point and its lamp, else 0; only the wanted points are
    tested.
    """
    free = wanted.astype(np.float32)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return free
    points, lamps = points.take(rows, axis=1), lamps.take(rows, axis=1)
    middle = (points.min(1) + points.max(1)) / 2
    radius = float(np.linalg.norm(points.max(1) - middle))
    for other in PRIMITIVES:
        if other is not primitive and other is not TABLE and _may_shadow(other, middle, radius):
            free[rows] *= np.isinf(other.hit(points, lamps))
    return free


def _openness(primitive: Primitive, points: Array, normals: Array) -> Array:
    """Return the fraction of the ambient light that the other primitives leave; each counts as a sphere of
    0.8 of its bound.
    """
    share = np.ones(points.shape[1], np.float32)
    for other in PRIMITIVES:
        if other is not primitive and other is not TABLE:
            to = column(other.center) - points
            square = dot(to, to)
            radius = np.float32(0.8 * other.bound)
            cosine = np.clip(dot(normals, to), 0, None) / np.sqrt(square)
            share *= 1 - 0.8 * cosine * np.minimum(radius * radius / square, 1)
    return share


def _may_hit(primitive: Primitive, start: Array, axis: Array, spread: float) -> bool:
    """Return whether a ray within the angle `spread` of the unit `axis` can come inside the primitive's
    bound.
    """
    to = np.array(primitive.center) - start
    away = float(np.linalg.norm(to))
    if away <= primitive.bound:
        return True
    angle = math.acos(max(-1.0, min(1.0, float(axis @ to) / away)))
    return angle <= spread + math.asin(primitive.bound / away) + 1e-3


def _may_shadow(primitive: Primitive, middle: Array, radius: float) -> bool:
    """Return whether the primitive's bound can stand between the lamp and any point within `radius` of
    `middle`.
    """
    to = np.array(primitive.center) - middle
    along = float(to @ LAMP)
    apart = math.sqrt(max(0.0, float(to @ to) - along * along))
    reach = radius + primitive.bound
    return along > -reach and apart < reach + 1.2 * LAMP_RADIUS * (abs(along) + radius)
