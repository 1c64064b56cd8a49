"""Lenses: intrinsics with distortion, and the image that a pinhole camera with the same K would have taken.

Notation: (x, y) is the position of a direction on the image plane z = 1, and r^2 = x^2 + y^2; the lens moves
    it to (x_d, y_d), and the pixel is (fx x_d + cx, fy y_d + cy), with pixel centres at +0.5.
Source: COLMAP, src/colmap/sensor/models.h; OpenCV, "Camera Calibration and 3D Reconstruction".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Lens:
    """A camera's size and intrinsics in pixels, with its distortion.

    Raises: ValueError for sizes and focal lengths that are not positive, and for numbers that are not finite.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    # k of the factor 1 + k1 q + k2 q^2 + ..., q = r^2 (fisheye: q = theta^2, theta = atan r, on theta for r)
    radial: tuple[float, ...] = ()
    divisor: tuple[float, ...] = ()  # the same polynomial in the denominator: FULL_OPENCV's k4, k5, k6
    tangential: tuple[float, float] = (0.0, 0.0)  # p1, p2
    fisheye: bool = False

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy, *self.radial, *self.divisor, *self.tangential)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"intrinsics: expected finite numbers, got {numbers}")
        if min(self.width, self.height) < 1 or min(self.fx, self.fy) <= 0:
            size = f"{self.width} x {self.height}, focal lengths {self.fx} {self.fy}"
            raise ValueError(f"intrinsics: expected a positive size and focal length, got {size}")

    @property
    def matrix(self) -> np.ndarray:
        """Return K, [3,3] float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    @property
    def distorted(self) -> bool:
        """Return whether the lens differs from a pinhole."""
        return self.fisheye or any((*self.radial, *self.divisor, *self.tangential))

    def resized(self, width: int, height: int) -> Lens:
        """Return the same lens for images of another size, scaled per axis by the exact ratio."""
        x, y = width / self.width, height / self.height
        scaled = {"fx": self.fx * x, "cx": self.cx * x, "fy": self.fy * y, "cy": self.cy * y}
        return replace(self, width=width, height=height, **scaled)

    def same_aspect(self, width: int, height: int) -> bool:
        """Return whether an image of this size can be the camera's image, resized as a whole.

        The aspect must be equal up to the rounding of one pixel. A size within 5 % that is not equal is
        refused, since an image that lost a few pixels at a border looks the same.
        """
        if (width, height) == (self.width, self.height):
            return True
        similar = abs(width * self.height - height * self.width) <= max(self.width, self.height)
        return similar and abs(width / self.width - 1) > 0.05

    def distort(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distorted (x_d, y_d) of undistorted (x, y)."""
        r2 = x * x + y * y
        if self.fisheye:
            r = np.sqrt(r2)
            theta = np.arctan(r)
            stretch = np.where(r > 1e-8, theta / np.maximum(r, 1e-8), 1.0)
            factor = stretch * _polynomial(self.radial, theta * theta)
        else:
            factor = _polynomial(self.radial, r2) / _polynomial(self.divisor, r2)
        p1, p2 = self.tangential
        xd = x * factor + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        yd = y * factor + 2 * p2 * x * y + p1 * (r2 + 2 * y * y)
        return xd, yd

    def max_radius(self, limit: float) -> float:
        """Return the r, at most `limit`, up to which the distorted radius grows; beyond it the model folds
        back.
        """
        r = np.linspace(0, limit, 4097)
        grown = replace(self, tangential=(0.0, 0.0)).distort(r, np.zeros_like(r))[0]
        folds = np.flatnonzero(~(np.diff(grown) > 0))
        return float(r[folds[0]]) if len(folds) else limit


def from_colmap(model: str, width: int, height: int, params: Sequence[float]) -> Lens:
    """Return the lens of a COLMAP camera.

    Raises: ValueError for models that are not perspective lenses with known formulas, and for a wrong number
        of parameters.
    """
    if model not in COLMAP_MODELS:
        raise ValueError(f"camera model {model} is not supported; supported are {', '.join(COLMAP_MODELS)}")
    names = COLMAP_MODELS[model].split()
    if len(params) != len(names):
        raise ValueError(f"camera model {model}: expected {len(names)} parameters, got {len(params)}")
    value = dict(zip(names, map(float, params), strict=True))
    radial = [value.get(f"k{i}", 0.0) for i in range(1, 7)]
    full = model == "FULL_OPENCV"
    return Lens(
        width=width,
        height=height,
        fx=value.get("fx", value.get("f", 0.0)),
        fy=value.get("fy", value.get("f", 0.0)),
        cx=value["cx"],
        cy=value["cy"],
        radial=tuple(radial[:3] if full else radial[:4]),
        divisor=tuple(radial[3:] if full else ()),
        tangential=(value.get("p1", 0.0), value.get("p2", 0.0)),
        fisheye=model.endswith("FISHEYE"),
    )


COLMAP_MODELS = {
    "SIMPLE_PINHOLE": "f cx cy",
    "PINHOLE": "fx fy cx cy",
    "SIMPLE_RADIAL": "f cx cy k1",
    "RADIAL": "f cx cy k1 k2",
    "OPENCV": "fx fy cx cy k1 k2 p1 p2",
    "FULL_OPENCV": "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6",
    "SIMPLE_RADIAL_FISHEYE": "f cx cy k1",
    "RADIAL_FISHEYE": "f cx cy k1 k2",
    "OPENCV_FISHEYE": "fx fy cx cy k1 k2 k3 k4",
}


def undistort(image: np.ndarray, lens: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Resample an image as the pinhole camera with the lens's fx, fy, cx, cy and size would show it.

    Args:
        image: [H,W,D] of the lens's size, of any real type.

    Returns: float32 [H,W,D] (bilinear), and bool [H,W], False where a pixel would come from outside the
        image.
    """
    at, x, y, inside = _lookup(lens)
    flat = image.reshape(lens.height * lens.width, -1).astype(np.float32)
    x, y = x[:, None], y[:, None]
    right, down = int(lens.width > 1), lens.width * int(lens.height > 1)
    top = flat[at] * (1 - x) + flat[at + right] * x
    bottom = flat[at + down] * (1 - x) + flat[at + down + right] * x
    return (top * (1 - y) + bottom * y).reshape(lens.height, lens.width, -1), inside


@lru_cache(maxsize=2)
def _lookup(lens: Lens) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return per pixel the index of the upper left of its four source pixels, the weights right and down, and
    whether it is inside.
    """
    u, v = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    x, y = (u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy
    r = np.hypot(x, y)
    xd, yd = lens.distort(x, y)
    u, v = lens.fx * xd + lens.cx, lens.fy * yd + lens.cy
    inside = (
        (u >= 0) & (u <= lens.width) & (v >= 0) & (v <= lens.height) & (r <= lens.max_radius(float(r.max())))
    )
    left, right = _between(u - 0.5, lens.width)
    top, below = _between(v - 0.5, lens.height)
    return (top * lens.width + left).ravel(), right, below, inside


def _between(place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower of the two indices around each position, and the weight [n] of the upper one; borders
    repeat.
    """
    place = np.clip(np.nan_to_num(place), 0, size - 1)
    lower = np.minimum(place.astype(np.int64), max(size - 2, 0))
    return lower, (place - lower).astype(np.float32).ravel()


def _polynomial(coefficients: Sequence[float], q: np.ndarray) -> np.ndarray:
    """Return 1 + c1 q + c2 q^2 + ..."""
    value = np.zeros_like(q)
    for coefficient in reversed(coefficients):
        value = (value + coefficient) * q
    return 1 + value
