import numpy as np
import pytest

from splatexp.data.builtin import raytracer, still_life
from splatexp.data.builtin.primitives import Primitive
from splatexp.data.builtin.still_life import PRIMITIVES


def rays(count=400, seed=0):
    random = np.random.default_rng(seed)
    origins = random.normal(size=(3, count)) * 0.3 + np.array([[3.0], [0.5], [1.0]])
    directions = random.normal(size=(3, count)) * 0.15 + np.array([[-1.0], [0.0], [-0.2]])
    return origins.astype(np.float32), (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)


def inside(primitive: Primitive, points: np.ndarray) -> np.ndarray:
    """Return how far each point is inside the primitive (positive) or outside of it, by its definition."""
    local = np.abs(primitive.local(points))
    x, y, z = primitive.size
    if primitive.kind == "sphere":
        return x - np.linalg.norm(local, axis=0)
    if primitive.kind == "box":
        return np.min(np.array([[x], [y], [z]]) - local, axis=0)
    return np.minimum(x - np.hypot(local[0], local[1]), z - local[2])


@pytest.mark.parametrize("kind", ["sphere", "box", "cylinder"])
def test_rays_enter_a_body_where_marching_enters_it(kind):
    primitive = Primitive(
        kind, (0.2, 0.3, 0.6), (0.7, 0.7 if kind != "box" else 0.4, 0.5), lambda p: p, turn=0.7
    )
    origins, directions = rays()
    distance = primitive.hit(origins, directions)
    steps = np.linspace(0, 7, 3501, dtype=np.float32)
    within = np.stack([inside(primitive, origins + directions * step) > 0 for step in steps])
    first = np.where(within.any(0), steps[within.argmax(0)], np.inf)
    sure = within.sum(0) != 1  # a ray that only grazes may fall between two steps
    assert (np.isfinite(first) & sure).sum() > 50 and np.isinf(first).sum() > 50
    close = (
        np.abs(np.where(np.isfinite(distance), distance, -9) - np.where(np.isfinite(first), first, -9)) < 4e-3
    )
    assert close[sure].mean() > 0.995
    hit = np.isfinite(distance)
    points = origins[:, hit] + directions[:, hit] * distance[hit]
    normals = primitive.outward(primitive.normal(primitive.local(points)))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-4)
    assert (inside(primitive, points + 1e-2 * normals) < 0).all() and (
        inside(primitive, points - 1e-2 * normals) > 0
    ).all()


def test_skipping_bodies_changes_nothing(monkeypatch):
    _, directions = rays()
    origin = np.array([5.0, 0.4, 2.0], np.float32)
    lamps = raytracer.lamp_directions(np.random.default_rng(1).uniform(-0.7, 0.7, (2, directions.shape[1])))
    quick = raytracer.trace(origin, directions, lamps)
    monkeypatch.setattr(raytracer, "_may_hit", lambda *_: True)
    monkeypatch.setattr(raytracer, "_may_shadow", lambda *_: True)
    for fast, full in zip(quick, raytracer.trace(origin, directions, lamps), strict=True):
        np.testing.assert_array_equal(fast, full)


def test_shadows_and_highlights():
    down = np.array([[0.0], [0.0], [-1.0]], np.float32)
    lamp = raytracer.lamp_directions(np.zeros((2, 1)))
    ball = np.array(PRIMITIVES[3].center)
    lit, _ = raytracer.trace(np.array([1.4, 0.0, 0.05]), down, lamp)
    foot = ball - still_life.LAMP * (ball[2] / still_life.LAMP[2])  # the ball's shadow on the table
    dark, distance = raytracer.trace(np.array([foot[0], foot[1], 0.05]), down, lamp)
    assert distance[0] == pytest.approx(0.05, abs=1e-4) and dark.mean() < 0.7 * lit.mean()
    mirror = still_life.LAMP / 1
    top = ball + PRIMITIVES[3].size[0] * mirror
    shine, _ = raytracer.trace(top + 3 * mirror, -mirror[:, None].astype(np.float32), lamp)
    side = np.cross(mirror, [0, 0, 1.0])
    aslant = mirror + 1.2 * side / np.linalg.norm(side)
    aslant = (aslant / np.linalg.norm(aslant)).astype(np.float32)
    dull, _ = raytracer.trace(top + 3 * aslant, -aslant[:, None], lamp)
    assert (shine - dull).min() > 0.05  # the same place is brighter where the lamp is mirrored
