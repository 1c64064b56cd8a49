"""A small exact ray caster and the still life that the `builtin` data set shows.

Convex bodies (sphere, box, cylinder) on a round table, z up, one lamp with a soft shadow, ambient light that
bodies block, and highlights that move with the viewer. Textures are functions of the position on the body,
band-limited by construction. Notation: points, directions and colours are float32 [3,R] for R rays, one row
per axis. Source: Phong highlights in the form of Blinn (1977); blocked ambient light of a sphere: Quilez,
"Sphere ambient occlusion".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Texture = Callable[[Array], Array]

BACKDROP = (204 / 255, 217 / 255, 230 / 255)
"""sRGB colour in [0,1] of a ray that hits nothing."""
LAMP = np.array([0.45, -0.55, 0.95], np.float32) / np.linalg.norm([0.45, -0.55, 0.95]).astype(np.float32)
"""Unit direction to the middle of the lamp."""
LAMP_RADIUS = 0.09
"""Radius of the lamp, seen as a disc at distance 1."""


@dataclass(frozen=True)
class Body:
    """A convex body, turned about the vertical axis. shine: strength and exponent of its highlight.

    size: radius (sphere); half edges (box); radius, radius, half height (cylinder).
    """

    kind: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    texture: Texture
    turn: float = 0.0
    shine: tuple[float, float] = (0.12, 24.0)

    @property
    def bound(self) -> float:
        """Radius of a sphere around the centre that holds the body."""
        x, y, z = self.size
        return {"sphere": x, "box": math.hypot(x, y, z), "cylinder": math.hypot(x, z)}[self.kind]

    def inward(self, vectors: Array) -> Array:
        """World directions in the body's own axes."""
        c, s = np.float32(math.cos(self.turn)), np.float32(math.sin(self.turn))
        return np.stack([c * vectors[0] + s * vectors[1], c * vectors[1] - s * vectors[0], vectors[2]])

    def local(self, points: Array) -> Array:
        """World points in the body's own axes, from its centre."""
        return self.inward(points - _column(self.center))

    def hit(self, origins: Array, directions: Array) -> Array:
        """Distance [R] along each ray to where it enters the body; inf where it misses or starts inside."""
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
        """Outward unit normals in the body's own axes at points on its surface."""
        if self.kind == "sphere":
            return local / np.float32(self.size[0])
        if self.kind == "box":
            scaled = local / _column(self.size)
            face = np.abs(scaled).argmax(0)
            return np.where(np.arange(3)[:, None] == face, np.sign(scaled), np.float32(0))
        side = np.concatenate([local[:2] / np.float32(self.size[0]), np.zeros_like(local[:1])])
        cap = np.concatenate([np.zeros_like(local[:2]), np.sign(local[2:])])
        return np.where(np.abs(local[2]) > self.size[2] - 1e-4, cap, side)

    def outward(self, vectors: Array) -> Array:
        """Directions in the body's own axes as world directions."""
        c, s = np.float32(math.cos(self.turn)), np.float32(math.sin(self.turn))
        return np.stack([c * vectors[0] - s * vectors[1], s * vectors[0] + c * vectors[1], vectors[2]])


def trace(origin: Array, directions: Array, lamps: Array) -> tuple[Array, Array]:
    """Follows rays from one place.

    origin: [3]. directions: [3,R] of unit length. lamps: [3,R], unit direction to the lamp for each ray.
    Returns sRGB colours in [0,1], [3,R], and distances [R], inf where a ray hits nothing.
    """
    start = _column(origin)
    axis = directions.mean(1)
    axis /= np.linalg.norm(axis)
    spread = math.acos(min(1.0, float((axis @ directions).min())))
    distance = np.full(directions.shape[1], np.inf, np.float32)
    owner = np.full(directions.shape[1], -1, np.int8)
    for index, body in enumerate(BODIES):
        if _may_hit(body, start[:, 0], axis, spread):
            reach = body.hit(start, directions)
            closer = reach < distance
            distance = np.where(closer, reach, distance)
            owner[closer] = index
    colours = np.repeat(_column(BACKDROP), directions.shape[1], axis=1)
    for index in np.unique(owner[owner >= 0]):
        mine = np.flatnonzero(owner == index)
        towards = directions.take(mine, axis=1)
        colours[:, mine] = _shade(
            BODIES[index], start + towards * distance[mine], towards, lamps.take(mine, axis=1)
        )
    return colours, distance


def lamp_directions(offsets: Array) -> Array:
    """Unit directions [3,R] to points of the lamp, given by offsets [2,R] in its unit disc."""
    side = np.cross(LAMP, [0, 0, 1]).astype(np.float32)
    side /= np.linalg.norm(side)
    above = np.cross(side, LAMP)
    towards = LAMP[:, None] + LAMP_RADIUS * (side[:, None] * offsets[0] + above[:, None] * offsets[1])
    return (towards / np.linalg.norm(towards, axis=0)).astype(np.float32)


def _shade(body: Body, points: Array, directions: Array, lamps: Array) -> Array:
    """sRGB colours of points on a body, seen along `directions`."""
    local = body.local(points)
    normals = body.outward(body.normal(local))
    facing = np.clip(_dot(normals, lamps), 0, None)
    lit = facing * _unblocked(body, points + 1e-3 * normals, lamps, facing > 0)
    ambient = (0.30 + 0.14 * normals[2]) * _openness(body, points, normals)
    half = lamps - directions
    half /= np.sqrt(_dot(half, half))
    strength, exponent = body.shine
    glint = strength * np.clip(_dot(normals, half), 0, 1) ** np.float32(exponent) * (lit > 0)
    warm, cool = _column((1.0, 0.96, 0.88)), _column((0.90, 0.96, 1.0))
    light = body.texture(local) * (warm * (0.78 * lit) + cool * ambient) + glint
    return np.clip(light, 0, 1) ** np.float32(1 / 2.2)


def _unblocked(body: Body, points: Array, lamps: Array, wanted: Array) -> Array:
    """1 where nothing stands between a point and its lamp, else 0; looked up only where wanted."""
    free = wanted.astype(np.float32)
    rows = np.flatnonzero(wanted)
    if not len(rows):
        return free
    points, lamps = points.take(rows, axis=1), lamps.take(rows, axis=1)
    middle = (points.min(1) + points.max(1)) / 2
    radius = float(np.linalg.norm(points.max(1) - middle))
    for other in BODIES:
        if other is not body and other is not TABLE and _may_shadow(other, middle, radius):
            free[rows] *= np.isinf(other.hit(points, lamps))
    return free


def _openness(body: Body, points: Array, normals: Array) -> Array:
    """Share of the ambient light that the other bodies, taken as spheres of 0.8 of their bounds, leave."""
    share = np.ones(points.shape[1], np.float32)
    for other in BODIES:
        if other is not body and other is not TABLE:
            to = _column(other.center) - points
            square = _dot(to, to)
            radius = np.float32(0.8 * other.bound)
            cosine = np.clip(_dot(normals, to), 0, None) / np.sqrt(square)
            share *= 1 - 0.8 * cosine * np.minimum(radius * radius / square, 1)
    return share


def _may_hit(body: Body, start: Array, axis: Array, spread: float) -> bool:
    """Whether a ray at most `spread` (angle) off the unit `axis` can come within the body's bound."""
    to = np.array(body.center) - start
    away = float(np.linalg.norm(to))
    if away <= body.bound:
        return True
    angle = math.acos(max(-1.0, min(1.0, float(axis @ to) / away)))
    return angle <= spread + math.asin(body.bound / away) + 1e-3


def _may_shadow(body: Body, middle: Array, radius: float) -> bool:
    """Whether the body's bound can stand between the lamp and any point within `radius` of `middle`."""
    to = np.array(body.center) - middle
    along = float(to @ LAMP)
    apart = math.sqrt(max(0.0, float(to @ to) - along * along))
    reach = radius + body.bound
    return along > -reach and apart < reach + 1.2 * LAMP_RADIUS * (abs(along) + radius)


def _slab(o: Array, d: Array, half: float) -> tuple[Array, Array]:
    """Distances between which a ray is within +-half along one axis."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / np.where(d == 0, np.float32(1e-12), d)
    a, b = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _round(o: Array, d: Array, radius: float, axes: int) -> tuple[Array, Array]:
    """Distances between which a ray is within `radius` of the centre, counting the first 2 or 3 axes."""
    o, d = o[:axes], d[:axes]
    a, b = np.maximum(_dot(d, d), np.float32(1e-12)), _dot(o, d)
    root = b * b - a * (_dot(o, o) - np.float32(radius * radius))
    width = np.sqrt(np.maximum(root, 0))
    missed = np.where(root > 0, np.float32(0), np.float32(np.inf))
    return (-b - width) / a + missed, (-b + width) / a - missed


def _dot(a: Array, b: Array) -> Array:
    total = a[0] * b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        total += x * y
    return total


def _column(values: object) -> Array:
    return np.asarray(values, np.float32).reshape(3, 1)


def _soft(wave: Array, sharpness: float) -> Array:
    """A square wave in [0,1] with soft edges, from a sine."""
    return 0.5 + 0.5 * np.tanh(np.float32(sharpness) * wave)


def _mix(first: str, second: str, share: Array) -> Array:
    """Between two sRGB colours (hex) in linear light."""
    start, end = (_column(list(bytes.fromhex(code))) / 255 for code in (first, second))
    start, end = start ** np.float32(2.2), end ** np.float32(2.2)
    return start + (end - start) * share


def _grain(p: Array, scale: float) -> Array:
    """A smooth irregular pattern in about [-1,1]: four sine waves in fixed oblique directions."""
    x, y, z = (np.float32(scale) * axis for axis in p)
    waves = np.sin(x + 1.7 * y - 0.6 * z) + np.sin(1.9 * x - 0.8 * y + 1.3 * z + 1)
    waves += np.sin(-0.7 * x + 1.1 * y + 2.1 * z + 2) + np.sin(2.3 * x + 2.6 * y + 0.4 * z + 4)
    return waves * np.float32(0.3)


def _wood(p: Array) -> Array:
    radius = np.sqrt((p[0] + 0.55) ** 2 + (0.85 * p[1] - 0.35) ** 2)
    rings = np.sin(11 * radius + 0.9 * _grain(p, 2.1))
    fibre = 0.16 * np.sin(34 * p[1] + 3.0 * _grain(p, 1.7)) + 0.13 * np.sin(67 * p[1] + 5.0 * _grain(p, 2.3))
    edge = np.sqrt(p[0] ** 2 + p[1] ** 2)
    inlay = _soft(0.03 - np.abs(edge - 1.8), 60)
    wood = _mix("c08b59", "8a5630", np.clip(0.5 + 0.34 * rings + fibre, 0, 1))
    return wood * (1 - 0.55 * _soft(edge - 1.98, 40) - 0.5 * inlay)


def _checker(first: str, second: str, pitch: float) -> Texture:
    k = math.pi / pitch

    def texture(p: Array) -> Array:
        tiles = _soft(np.sin(k * p[0]) * np.sin(k * p[1]) * np.sin(k * p[2]), 5)
        return _mix(first, second, tiles) * (1 + 0.2 * _grain(p, 15.0))

    return texture


def _stripes(first: str, second: str, axis: tuple[float, float, float], bend: float = 0.0) -> Texture:
    x, y, z = axis

    def texture(p: Array) -> Array:
        bands = _soft(np.sin(x * p[0] + y * p[1] + z * p[2] + bend * _grain(p, 3.0)), 3)
        return _mix(first, second, bands) * (1 + 0.1 * _grain(p, 11.0))

    return texture


def _candy(p: Array) -> Array:
    return _mix("f4efe6", "c23a4b", _soft(np.sin(2 * np.arctan2(p[1], p[0]) + 9 * p[2]), 3.5))


def _marble(p: Array) -> Array:
    return _mix("2f5fa8", "e8eef5", 0.5 + 0.5 * np.sin(7 * p[2] + 3.2 * _grain(p, 4.0)))


def _globe(p: Array) -> Array:
    return _mix("2b7f86", "d8c58a", _soft(_grain(p, 6.5) + 0.15, 4))


def _spots(p: Array) -> Array:
    k = np.float32(13)
    return _mix("e9b13a", "7a3fa0", _soft(np.sin(k * p[0]) * np.sin(k * p[1]) * np.sin(k * p[2]) - 0.25, 6))


def _pages(p: Array) -> Array:
    cover = _mix("3d6b46", "6fa06a", _soft(_grain(p, 9.0), 2))
    paper = _mix("efe7d2", "cbbf9f", 0.5 + 0.5 * np.sin(110 * p[2]))
    inside = (np.abs(p[2]) < 0.062) & (p[0] > -0.49)
    return np.where(inside, paper, cover)


TABLE = Body("cylinder", (0.0, 0.0, -0.125), (2.1, 2.1, 0.125), _wood, shine=(0.05, 20.0))
BODIES = (
    TABLE,
    Body("box", (-0.80, 0.55, 0.45), (0.45, 0.45, 0.45), _checker("2a7f7a", "efe5cf", 0.3), turn=0.45),
    Body(
        "box", (-0.76, 0.52, 1.16), (0.26, 0.26, 0.26), _stripes("e07b39", "f6e3b4", (14, 0, 14)), turn=1.15
    ),
    Body(
        "sphere",
        (0.72, 0.48, 0.52),
        (0.52, 0.52, 0.52),
        _stripes("b3282d", "e88a5a", (0, 2, 12), 1.2),
        shine=(0.3, 40),
    ),
    Body("sphere", (-0.05, -0.72, 0.38), (0.38, 0.38, 0.38), _marble, shine=(0.25, 36)),
    Body("cylinder", (0.02, 1.18, 0.6), (0.22, 0.22, 0.6), _candy, shine=(0.2, 30)),
    Body("box", (1.08, -0.68, 0.085), (0.52, 0.36, 0.085), _pages, turn=-0.5),
    Body("sphere", (1.06, -0.66, 0.42), (0.25, 0.25, 0.25), _globe, shine=(0.25, 32)),
    Body("cylinder", (-1.12, -0.62, 0.17), (0.34, 0.34, 0.17), _stripes("4a4f8f", "c9cfe8", (9, 9, 0), 1.5)),
    Body("sphere", (-1.12, -0.62, 0.55), (0.21, 0.21, 0.21), _spots, shine=(0.22, 30)),
)
