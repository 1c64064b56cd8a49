"""Cameras in JSON: NeRF-synthetic (one file for training, one for test), nerfstudio and instant-ngp (one
file).

Poses are camera -> world with OpenGL axes (x right, y up, z backward); they become world -> camera with
OpenCV axes.
Source: NeRF (Mildenhall et al. 2020), load_blender.py; nerfstudio, "Data conventions"; instant-ngp, "Tips for
    training".
"""

from __future__ import annotations

import json
import math
import posixpath
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.data.colmap import data_folder
from splatexp.data.lens import Lens
from splatexp.data.perturb import Perturb
from splatexp.data.scene import Scene, hold_out
from splatexp.data.view_loader import (
    BACKGROUNDS,
    ImageSource,
    find_masks,
    image_size,
    mask_by_alpha,
    read_views,
)

MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE", "PERSPECTIVE")
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".webp")


@dataclass
class Transforms:
    """Loads `path`/transforms_train.json with transforms_test.json, or else `path`/transforms.json.

    A split of the data set's own (two files, or lists of train_filenames and test_filenames) wins over
    `test_every`. With a random background, held-out views are seen on white.
    """

    path: str = field(metadata={"unit": "path"})  # folder of the data set
    downscale: int = 1  # images are reduced by this factor on loading
    # use each frame's mask_path, or the folder masks/ beside the images' where there is one (same stems,
    # white = use)
    masks: bool = True
    test_every: int = 8  # hold out every n-th frame by name, from the first; 0: none
    background: str = "white"  # white, black or random: the colour behind images with alpha
    train_file: str = "transforms_train.json"  # name of the file with the training frames
    test_file: str = "transforms_test.json"  # name of the file with the held-out frames
    # pixels outside the masks are transparent instead of unused: silhouettes count in the loss, and held-out
    # views are measured inside their masks
    masks_as_alpha: bool = False
    perturb: Perturb = field(default_factory=Perturb)  # makes the poses of training cameras worse

    def load(self) -> Scene:
        """Read the frames and their images.

        Raises: FileNotFoundError, ValueError, with one line that names the file.
        """
        root = data_folder(self.path)
        meta, train, test = self._frames(root)
        doubled = {source.path.resolve() for source in train} & {source.path.resolve() for source in test}
        if doubled:
            raise ValueError(f"{root}: held-out view {min(doubled).name} is also trained on")
        sources = [replace(source, mask_as_alpha=self.masks_as_alpha) for source in _shortened(train + test)]
        views, clear = read_views(sources, self.downscale, self.background)
        train_views, test_views = views[: len(train)], views[len(train) :]
        points, colors = _points(root, meta)
        scene = Scene(
            name=root.resolve().name,
            train=train_views,
            test=mask_by_alpha(test_views) if self.masks_as_alpha else test_views,
            points=points,
            colors=colors,
            background=BACKGROUNDS[self.background] if clear else None,
            random_background=clear and self.background == "random",
        )
        return self.perturb(scene)

    def _frames(self, root: Path) -> tuple[dict, list[ImageSource], list[ImageSource]]:
        """Return the JSON of the training set, then the sources of the training and the held-out set, each
        sorted by name.
        """
        train_file, test_file = root / self.train_file, root / self.test_file
        named = self.train_file != Transforms.train_file or self.test_file != Transforms.test_file
        if named or (train_file.is_file() and test_file.is_file()):
            meta, test = _json(train_file), _json(test_file)
            return meta, _sources(train_file, meta, self.masks), _sources(test_file, test, self.masks)
        file = next(filter(Path.is_file, (root / "transforms.json", train_file)), None)
        if file is None:
            raise FileNotFoundError(
                f"{root}: expected transforms.json, or {self.train_file} and {self.test_file}"
            )
        meta = _json(file)
        sources = _sources(file, meta, self.masks)
        names = [source.name for source in sources]
        if meta.get("test_filenames"):
            held = _names(file, meta["test_filenames"])
            kept = _names(file, meta.get("train_filenames") or [n for n in names if n not in held])
            return meta, [s for s in sources if s.name in kept], [s for s in sources if s.name in held]
        halves = list(zip(sources, hold_out(names, self.test_every), strict=True))
        return meta, [s for s, out in halves if not out], [s for s, out in halves if out]


def read_cameras(file: Path) -> dict[str, Camera]:
    """Return the cameras of such a file by the stems of their images, which need not exist.

    Raises: FileNotFoundError, ValueError, with one line.
    """
    meta, cameras = _json(file), {}
    for frame in meta["frames"]:
        name, settings = _name(file, frame.get("file_path")), {**meta, **frame}
        if "w" not in settings or "h" not in settings:
            raise ValueError(f"{file}: frame {name}: expected w and h, the size of its image")
        lens = _lens(settings, int(settings["w"]), int(settings["h"]))
        pose, K = (
            torch.tensor(matrix, dtype=torch.float32)[None]
            for matrix in (_viewmat(frame.get("transform_matrix")), lens.matrix)
        )
        cameras[PurePosixPath(name).stem] = Camera(pose, K, lens.width, lens.height)
    return cameras


def _shortened(sources: list[ImageSource]) -> list[ImageSource]:
    """Return the sources with names relative to the folder that contains all of them, as another loader would
    name them.
    """
    shared = posixpath.commonpath([PurePosixPath(source.name).parent for source in sources])
    return [replace(s, name=PurePosixPath(s.name).relative_to(shared or ".").as_posix()) for s in sources]


def _json(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as JSON: {error}") from error
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError(f"{file}: expected an object with a list of frames")
    if not frames:
        raise ValueError(f"{file}: expected at least one frame, got 0 images")
    return meta


def _sources(file: Path, meta: dict, masks: bool) -> list[ImageSource]:
    """Return the frames whose image exists, sorted by name.

    Warns: once, with the number of frames that lack their image.
    """
    found: dict[str, tuple[Path, dict]] = {}
    for frame in meta["frames"]:
        name = _name(file, frame.get("file_path"))
        paths = [file.parent / (name + suffix) for suffix in SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            if name in found:
                raise ValueError(f"{file}: two frames have the image {name}")
            found[name] = (path, frame)
    lost = len(meta["frames"]) - len(found)
    if not found:
        raise FileNotFoundError(f"{file}: 0 images: none of the {lost} frames has its image in {file.parent}")
    if lost:
        warnings.warn(
            f"{file}: {lost} of {len(meta['frames'])} frames are skipped: no such image", stacklevel=2
        )
    names = sorted(found)
    masked = _masks(file, {name: frame for name, (_, frame) in found.items()}) if masks else {}
    return [_source(file, name, *found[name], meta, masked.get(name)) for name in names]


def _masks(file: Path, frames: dict[str, dict]) -> dict[str, Path]:
    """Return mask files by view: mask_path where any frame has one, else masks/ beside the folder of the
    images.
    """
    given = {
        name: file.parent / _name(file, f["mask_path"]) for name, f in frames.items() if f.get("mask_path")
    }
    if given:
        return given
    shared = PurePosixPath(posixpath.commonpath([PurePosixPath(name).parent for name in frames]) or ".")
    for folder in (shared, *shared.parents):
        masks = file.parent / folder.parent / "masks"
        if folder.name and masks.is_dir():
            below = {PurePosixPath(name).relative_to(folder).as_posix(): name for name in frames}
            return {below[short]: path for short, path in find_masks(masks, list(below)).items()}
    return {}


def _source(file: Path, name: str, path: Path, frame: dict, meta: dict, mask: Path | None) -> ImageSource:
    try:
        settings = {**meta, **frame}
        size = (settings["w"], settings["h"]) if "w" in settings and "h" in settings else image_size(path)
        return ImageSource(
            name, path, _viewmat(frame.get("transform_matrix")), _lens(settings, *map(int, size)), mask
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: frame {name}: {error}") from error


def _lens(meta: dict, width: int, height: int) -> Lens:
    """Return a frame's intrinsics; its own values win over the file's."""
    model = str(meta.get("camera_model", "OPENCV"))
    if model not in MODELS:
        raise ValueError(f"camera model {model} is not supported; supported are {', '.join(MODELS)}")

    def focal(key: str, angle: str, size: int) -> float | None:
        if meta.get(key) is not None:
            return float(meta[key])
        return None if meta.get(angle) is None else 0.5 * size / math.tan(0.5 * float(meta[angle]))

    fx, fy = focal("fl_x", "camera_angle_x", width), focal("fl_y", "camera_angle_y", height)
    fx, fy = fx or fy, fy or fx
    if fx is None or fy is None:
        raise ValueError("expected fl_x or camera_angle_x, got neither")
    return Lens(
        width=width,
        height=height,
        fx=fx,
        fy=fy,
        cx=float(meta.get("cx", width / 2)),
        cy=float(meta.get("cy", height / 2)),
        radial=tuple(float(meta.get(f"k{i}", 0.0)) for i in range(1, 5)),
        tangential=(float(meta.get("p1", 0.0)), float(meta.get("p2", 0.0))),
        fisheye=model == "OPENCV_FISHEYE" or bool(meta.get("is_fisheye", False)),
    )


def _viewmat(matrix: object) -> np.ndarray:
    """Return world -> camera with OpenCV axes, [4,4], from camera -> world with OpenGL axes, [4,4] or
    [3,4].
    """
    pose = np.array(matrix, dtype=np.float64)
    if pose.shape not in ((4, 4), (3, 4)):
        raise ValueError(f"transform_matrix: expected [4, 4], got {pose.shape}")
    if not np.isfinite(pose).all():
        raise ValueError("transform_matrix: the pose is not finite")
    rotation = pose[:3, :3] * [1, -1, -1]
    if np.abs(rotation.T @ rotation - np.eye(3)).max() > 1e-3 or np.linalg.det(rotation) < 0:
        raise ValueError(
            "transform_matrix: expected a rotation and a translation, got scale, shear or a reflection"
        )
    viewmat = np.eye(4)
    viewmat[:3, :3] = np.linalg.inv(rotation)
    viewmat[:3, 3] = -viewmat[:3, :3] @ pose[:3, 3]
    return viewmat


def _name(file: Path, path: object) -> str:
    """Return a path as written in the file, without './' and with forward slashes."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"{file}: expected a file_path in every frame, got {path!r}")
    return PurePosixPath(path.replace("\\", "/")).as_posix()


def _names(file: Path, paths: list) -> set[str]:
    return {_name(file, path) for path in paths}


def _points(root: Path, meta: dict) -> tuple[Tensor | None, Tensor | None]:
    """Return points [P,3] and colours [P,3] of the file at ply_file_path, grey where it has no colours; or
    (None, None).
    """
    if not meta.get("ply_file_path"):
        return None, None
    file = root / _name(root, meta["ply_file_path"])
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (ply_file_path)")
    from plyfile import PlyData, PlyParseError

    try:
        vertices = PlyData.read(str(file))["vertex"].data
        points = np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float32)
    except (PlyParseError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: cannot read the point cloud: {error}") from error
    if not len(points):
        return None, None
    coloured = {"red", "green", "blue"} <= set(vertices.dtype.names or ())
    colors = [vertices[name] if coloured else np.full(len(points), 128) for name in ("red", "green", "blue")]
    return torch.tensor(points), torch.tensor(np.stack(colors, axis=1).astype(np.uint8))
