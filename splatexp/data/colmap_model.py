"""Reader of COLMAP's sparse model: cameras, images and points, in .bin and .txt.

Source: COLMAP documentation, "Output Format"; src/colmap/scene/reconstruction_io*.cc.

Every count in a file is checked against the bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splatexp.data.lens import COLMAP_MODELS, Lens, from_colmap


@dataclass(frozen=True)
class ColmapImage:
    """A registered image of the model."""

    name: str
    camera: int  # id of its camera
    viewmat: np.ndarray  # [4,4] float64, world -> camera


@dataclass(frozen=True)
class ColmapModel:
    """A sparse model: its cameras, images and points."""

    cameras: dict[int, Lens]  # by camera id
    images: list[ColmapImage]  # in the order of the file
    points: np.ndarray  # [P,3] float64, world units
    colors: np.ndarray  # [P,3] uint8


def read_model(folder: Path) -> ColmapModel:
    """Read the model in `folder`, from .bin where there are both kinds; a missing points3D file is an empty
    point cloud.

    Raises: FileNotFoundError without cameras or images; ValueError that names the file, for data that are
        truncated, malformed, not finite or not supported.
    """
    binaries = [folder / "cameras.bin", folder / "images.bin"]
    suffix = ".bin" if all(map(Path.is_file, binaries)) else ".txt"
    binary = suffix == ".bin"
    cameras = (_cameras_bin if binary else _cameras_txt)(folder / f"cameras{suffix}")
    images = (_images_bin if binary else _images_txt)(folder / f"images{suffix}")
    for image in images:
        if image.camera not in cameras:
            raise ValueError(
                f"{folder / f'images{suffix}'}: {image.name}: camera {image.camera} does not exist"
            )
    file = folder / f"points3D{suffix}"
    rows = list((_points_bin if binary else _points_txt)(file)) if file.is_file() else []
    points = np.array([xyz for _, xyz, _ in rows], np.float64).reshape(-1, 3)
    colors = np.array([rgb for _, _, rgb in rows], np.uint8).reshape(-1, 3)
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        first = rows[bad[0]]
        raise ValueError(
            f"{file}: {len(bad)} of {len(rows)} points are not finite; the first is {first[0]}: {first[1]}"
        )
    return ColmapModel(cameras, images, points, colors)


class _Reader:
    """A binary file that is read from its beginning; asking for more bytes than are left is an error."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, format: str) -> tuple:
        size = struct.calcsize("<" + format)
        self.need(size)
        self.at += size
        return struct.unpack_from("<" + format, self.data, self.at - size)

    def need(self, size: int) -> None:
        left = len(self.data) - self.at
        if size > left:
            raise ValueError(
                f"{self.path}: truncated: expected {size} more bytes at byte {self.at}, got {left}"
            )

    def count(self, smallest: int) -> int:
        """Read the number of records that follow, each of at least `smallest` bytes."""
        (count,) = self.take("Q")
        self.need(count * smallest)
        return count

    def skip(self, size: int) -> None:
        self.need(size)
        self.at += size

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise ValueError(f"{self.path}: truncated: the image name at byte {self.at} has no end")
        start, self.at = self.at, end + 1
        return self.data[start:end].decode("utf-8", "surrogateescape")

    def done(self) -> None:
        if self.at < len(self.data):
            raise ValueError(
                f"{self.path}: malformed: {len(self.data) - self.at} bytes after the last record"
            )


def _cameras_bin(path: Path) -> dict[int, Lens]:
    reader, cameras = _Reader(path), {}
    for _ in range(reader.count(24)):
        index, model, width, height = reader.take("iiQQ")
        name = MODEL_NAMES[model] if 0 <= model < len(MODEL_NAMES) else f"number {model}"
        params = reader.take(f"{len(COLMAP_MODELS.get(name, '').split())}d")
        with _located(f"{path}: camera {index}"):
            cameras[index] = from_colmap(name, width, height, params)
    reader.done()
    return cameras


def _images_bin(path: Path) -> list[ColmapImage]:
    reader, images = _Reader(path), []
    for _ in range(reader.count(73)):
        _, *pose, camera = reader.take("I7dI")
        name = reader.text()
        reader.skip(reader.count(24) * 24)  # x, y, point id of each feature
        with _located(str(path)):
            images.append(_image(name, camera, pose))
    reader.done()
    return images


def _points_bin(path: Path) -> Iterator[tuple[int, tuple, tuple]]:
    reader = _Reader(path)
    for _ in range(reader.count(51)):
        index, *xyz, red, green, blue, _, track = reader.take("QdddBBBdQ")
        reader.skip(track * 8)  # image and feature of each observation
        yield index, tuple(xyz), (red, green, blue)
    reader.done()


def _cameras_txt(path: Path) -> dict[int, Lens]:
    cameras = {}
    for number, line in _lines(path):
        if line:
            with _located(f"{path}, line {number}"):
                index, model, width, height, *params = line.split()
                cameras[int(index)] = from_colmap(model, int(width), int(height), list(map(float, params)))
    return cameras


def _images_txt(path: Path) -> list[ColmapImage]:
    images, lines = [], _lines(path)
    for number, line in lines:
        if line:
            with _located(f"{path}, line {number}"):
                _, *pose, camera, name = line.split(maxsplit=9)
                images.append(_image(name, int(camera), list(map(float, pose))))
            next(lines, None)  # the features have a line of their own, which may be empty
    return images


def _points_txt(path: Path) -> Iterator[tuple[int, tuple, tuple]]:
    for number, line in _lines(path):
        if line:
            with _located(f"{path}, line {number}"):
                index, x, y, z, red, green, blue = line.split(maxsplit=8)[:7]
                colour = (int(red), int(green), int(blue))
                if min(colour) < 0 or max(colour) > 255:
                    raise ValueError(f"expected a colour of 0 to 255, got {colour}")
                yield int(index), (float(x), float(y), float(z)), colour


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is no comment, empty lines included."""
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("#"):
                yield number, line.strip()


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Prepend the place in the file to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _image(name: str, camera: int, pose: list[float]) -> ColmapImage:
    """Return an image from its pose: a quaternion (w, x, y, z) of any length and a translation, world ->
    camera.
    """
    length = math.sqrt(sum(value * value for value in pose[:4]))
    if not all(map(math.isfinite, pose)) or not 0 < length < math.inf:
        raise ValueError(f"the pose of {name} is not finite or has a zero quaternion: {pose}")
    w, x, y, z = (value / length for value in pose[:4])
    viewmat = np.eye(4)
    viewmat[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    viewmat[:3, 3] = pose[4:]
    return ColmapImage(name, camera, viewmat)


MODEL_NAMES = (
    "SIMPLE_PINHOLE",
    "PINHOLE",
    "SIMPLE_RADIAL",
    "RADIAL",
    "OPENCV",
    "OPENCV_FISHEYE",
    "FULL_OPENCV",
    "FOV",
    "SIMPLE_RADIAL_FISHEYE",
    "RADIAL_FISHEYE",
    "THIN_PRISM_FISHEYE",
    "RAD_TAN_THIN_PRISM_FISHEYE",
)
"""COLMAP's camera models by their number in the binary format."""
