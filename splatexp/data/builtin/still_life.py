"""The still life of the `builtin` data set: objects on a round table, their textures, and the lamp.

A texture is a function of the position on the primitive (float32 [3,R], in its own axes) and returns linear
colours [3,R]. Textures are sums and soft steps of sine waves, so that the detail finer than a pixel is known
and small.
"""

from __future__ import annotations

import math

import numpy as np

from splatexp.data.builtin.primitives import Array, Primitive, Texture, column

BACKDROP = (204 / 255, 217 / 255, 230 / 255)
"""sRGB colour in [0,1] of a ray that hits nothing."""
LAMP = np.array([0.45, -0.55, 0.95], np.float32) / np.linalg.norm([0.45, -0.55, 0.95]).astype(np.float32)
"""Unit direction to the middle of the lamp."""
LAMP_RADIUS = 0.09
"""Radius of the lamp, seen as a disc at distance 1."""


def _soft(wave: Array, sharpness: float) -> Array:
    """Turn a sine into a square wave in [0,1] with soft edges."""
    return 0.5 + 0.5 * np.tanh(np.float32(sharpness) * wave)


def _mix(first: str, second: str, share: Array) -> Array:
    """Interpolate in linear light between two sRGB colours, which are given in hex."""
    start, end = (column(list(bytes.fromhex(code))) / 255 for code in (first, second))
    start, end = start ** np.float32(2.2), end ** np.float32(2.2)
    return start + (end - start) * share


def _grain(p: Array, scale: float) -> Array:
    """Return a smooth irregular pattern in about [-1,1]: four sine waves in fixed oblique directions."""
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


TABLE = Primitive("cylinder", (0.0, 0.0, -0.125), (2.1, 2.1, 0.125), _wood, shine=(0.05, 20.0))
PRIMITIVES = (
    TABLE,
    Primitive("box", (-0.80, 0.55, 0.45), (0.45, 0.45, 0.45), _checker("2a7f7a", "efe5cf", 0.3), turn=0.45),
    Primitive(
        "box", (-0.76, 0.52, 1.16), (0.26, 0.26, 0.26), _stripes("e07b39", "f6e3b4", (14, 0, 14)), turn=1.15
    ),
    Primitive(
        "sphere",
        (0.72, 0.48, 0.52),
        (0.52, 0.52, 0.52),
        _stripes("b3282d", "e88a5a", (0, 2, 12), 1.2),
        shine=(0.3, 40),
    ),
    Primitive("sphere", (-0.05, -0.72, 0.38), (0.38, 0.38, 0.38), _marble, shine=(0.25, 36)),
    Primitive("cylinder", (0.02, 1.18, 0.6), (0.22, 0.22, 0.6), _candy, shine=(0.2, 30)),
    Primitive("box", (1.08, -0.68, 0.085), (0.52, 0.36, 0.085), _pages, turn=-0.5),
    Primitive("sphere", (1.06, -0.66, 0.42), (0.25, 0.25, 0.25), _globe, shine=(0.25, 32)),
    Primitive(
        "cylinder", (-1.12, -0.62, 0.17), (0.34, 0.34, 0.17), _stripes("4a4f8f", "c9cfe8", (9, 9, 0), 1.5)
    ),
    Primitive("sphere", (-1.12, -0.62, 0.55), (0.21, 0.21, 0.21), _spots, shine=(0.22, 30)),
)
