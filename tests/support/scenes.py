"""Small scenes for tests: one in memory, and data sets on disk in the layouts that the loaders read.

Every picture is ray cast, so cameras, lenses and points are exact.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from splatexp.data.builtin import raytracer, still_life
from splatexp.data.builtin.dataset import Builtin
from splatexp.data.colmap_model import MODEL_NAMES
from splatexp.data.lens import COLMAP_MODELS, from_colmap
from splatexp.data.scene import Scene


def tiny_scene(views: int = 10, size: int = 48, points: int = 400, test_views: int = 2) -> Scene:
    """The built-in still life, small: `views` pictures, the last `test_views` of them held out."""
    made = _tiny(views, size, points, test_views)
    return Scene(
        made.name, list(made.train), list(made.test), made.points, made.colors, background=made.background
    )


@cache
def _tiny(views: int, size: int, points: int, test_views: int) -> Scene:
    settings = Builtin(
        size=size, train_views=views - test_views, test_views=test_views, points=points, samples=2
    )
    settings.cache = False
    return settings.load()


def picture(lens, viewmat: np.ndarray, samples: int = 3) -> np.ndarray:
    """uint8 [H,W,3]: the still life through a lens, from a pose (world -> camera)."""
    inside = (np.arange(samples) + 0.5) / samples
    v, u, y, x = np.meshgrid(np.arange(lens.height), np.arange(lens.width), inside, inside, indexing="ij")
    xd, yd = ((u + x).ravel() - lens.cx) / lens.fx, ((v + y).ravel() - lens.cy) / lens.fy
    px, py = xd.copy(), yd.copy()
    for _ in range(60):  # inverts the lens: a fixed point, since it moves a ray by little
        qx, qy = lens.distort(px, py)
        px, py = px + xd - qx, py + yd - qy
    directions = viewmat[:3, :3].T.astype(np.float32) @ np.stack([px, py, np.ones_like(px)]).astype(
        np.float32
    )
    directions /= np.linalg.norm(directions, axis=0)
    lamps = raytracer.lamp_directions(np.zeros((2, directions.shape[1])))
    colours, _ = raytracer.trace(-viewmat[:3, :3].T @ viewmat[:3, 3], directions, lamps)
    colours = colours.reshape(3, lens.height, lens.width, samples**2).mean(-1)
    return np.floor(colours * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def write_colmap(
    folder: Path,
    views: int = 12,
    size: int = 64,
    binary: bool = True,
    model: str = "PINHOLE",
    distortion: tuple[float, ...] = (),
    points: int = 100,
    suffix: str = ".png",
    masks: bool = False,
) -> Scene:
    """Writes images/, sparse/0 and, if wanted, masks/; returns the scene that it shows, all views in `train`.

    The images are listed in a shuffled order, so that a loader which matches by order fails. distortion: the
    parameters after cx, cy. masks: white but for the left quarter.
    """
    scene = tiny_scene(views, size, points, test_views=0)
    sparse = folder / "sparse" / "0"
    for name in ("images", "sparse/0", *(["masks"] if masks else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    f, c = float(scene.train[0].camera.Ks[0, 0, 0]), size / 2
    names = COLMAP_MODELS[model].split()
    params = ([f] if names[0] == "f" else [f, f]) + [c, c]
    params += list(distortion) + [0.0] * (len(names) - len(params) - len(distortion))
    lens = from_colmap(model, size, size, params)
    rows = []
    for index, view in enumerate(scene.train):
        viewmat = view.camera.viewmats[0].double().numpy()
        pixels = picture(lens, viewmat) if lens.distorted else view.image.numpy()
        Image.fromarray(pixels).save(folder / "images" / f"{view.name}{suffix}")
        if masks:
            mask = np.full((size, size), 255, np.uint8)
            mask[:, : size // 4] = 0
            Image.fromarray(mask).save(folder / "masks" / f"{view.name}.png")
        x, y, z, w = Rotation.from_matrix(viewmat[:3, :3]).as_quat()
        rows.append((index + 1, (w, x, y, z, *viewmat[:3, 3]), f"{view.name}{suffix}"))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    write = _write_bin if binary else _write_txt
    cloud = (scene.points.double().numpy(), scene.colors.numpy()) if points else ((), ())
    write(sparse, model, size, params, rows, *cloud)
    return scene


def _write_bin(sparse: Path, model: str, size: int, params: list, rows: list, points, colors) -> None:
    camera = struct.pack("<QiiQQ", 1, 1, MODEL_NAMES.index(model), size, size)
    (sparse / "cameras.bin").write_bytes(camera + struct.pack(f"<{len(params)}d", *params))
    images = struct.pack("<Q", len(rows))
    for index, pose, name in rows:
        images += struct.pack("<I7dI", index, *pose, 1) + name.encode() + b"\0"
        images += struct.pack("<Q", 1) + struct.pack("<ddq", 1.5, 2.5, -1)
    (sparse / "images.bin").write_bytes(images)
    cloud = struct.pack("<Q", len(points))
    for index, (xyz, rgb) in enumerate(zip(points, colors, strict=True)):
        track = index % 3  # the first has none
        cloud += (
            struct.pack("<QdddBBBdQ", index + 1, *xyz, *rgb, 0.5, track) + struct.pack("<II", 1, 0) * track
        )
    (sparse / "points3D.bin").write_bytes(cloud)


def _write_txt(sparse: Path, model: str, size: int, params: list, rows: list, points, colors) -> None:
    numbers = " ".join(map(repr, map(float, params)))
    (sparse / "cameras.txt").write_text(f"# Camera list\n1 {model} {size} {size} {numbers}\n")
    lines = ["# Image list with two lines of data per image:"]
    for index, pose, name in rows:
        lines += [
            f"{index} {' '.join(map(repr, map(float, pose)))} 1 {name}",
            "" if index % 2 else "1.5 2.5 -1",
        ]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    lines = ["# 3D point list"]
    for index, (xyz, rgb) in enumerate(zip(points, colors, strict=True)):
        track = " 1 0" * (index % 3)
        lines.append(
            f"{index + 1} {' '.join(map(repr, map(float, xyz)))} {' '.join(map(str, rgb))} 0.5{track}"
        )
    (sparse / "points3D.txt").write_text("\n".join(lines) + "\n")


def write_transforms(
    folder: Path, views: int = 12, size: int = 48, synthetic: bool = False, **extra
) -> Scene:
    """Writes a nerfstudio data set (images/, transforms.json) or a NeRF-synthetic one; returns the scene.

    synthetic: train/ and test/ with a JSON each, paths without suffix, every fifth view held out, pictures
    transparent where they show the backdrop. extra: further keys of the JSON.
    """
    scene = tiny_scene(views, size, test_views=0)
    frames: dict[str, list] = {"train": [], "test": [], "images": []}
    for index, view in enumerate(scene.train):
        part = ("test" if index % 5 == 0 else "train") if synthetic else "images"
        pose = torch.linalg.inv(view.camera.viewmats[0].double())
        pose[:3, 1:3] *= -1
        path = f"./{part}/{view.name}" if synthetic else f"{part}/{view.name}.png"
        frames[part].append({"file_path": path, "transform_matrix": pose.tolist()})
        (folder / part).mkdir(parents=True, exist_ok=True)
        pixels = view.image.numpy()
        if synthetic:
            backdrop = np.floor(np.array(still_life.BACKDROP) * 255 + 0.5)
            cover = np.where((pixels == backdrop).all(2, keepdims=True), 0, 255).astype(np.uint8)
            pixels = np.concatenate([pixels, cover], axis=2)
        Image.fromarray(pixels).save(folder / part / f"{view.name}.png")
    f = float(scene.train[0].camera.Ks[0, 0, 0])
    if synthetic:
        meta = {"camera_angle_x": 2 * float(np.arctan(size / 2 / f))}
    else:
        meta = {"fl_x": f, "fl_y": f, "cx": size / 2, "cy": size / 2, "w": size, "h": size}
    for part, listed in frames.items():
        if listed:
            name = f"transforms_{part}.json" if synthetic else "transforms.json"
            (folder / name).write_text(json.dumps({**meta, **extra, "frames": listed}))
    return scene
