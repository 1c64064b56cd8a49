"""Learned cameras as a file, cameras.json: in the form of transforms.json, so that other tools read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from splatexp.cameras.pinhole import Camera
from splatexp.io.atomic import write_text

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

NAME = "cameras.json"


def save_cameras(folder: Path, scene: Scene) -> None:
    """Write the cameras of the training views: camera -> world, OpenGL axes, and intrinsics per view."""
    frames: list[dict[str, Any]] = []
    for view in scene.train:
        camera = view.camera.to("cpu")
        pose = torch.linalg.inv(camera.viewmats[0].double()) * torch.tensor([1.0, -1, -1, 1])
        K = camera.Ks[0].double()
        numbers = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        frames.append({"file_path": view.name, "w": camera.width, "h": camera.height})
        frames[-1] |= {name: float(value) for name, value in numbers.items()}
        frames[-1]["transform_matrix"] = pose.tolist()
    about = {"camera_model": "PINHOLE", "learned": True, "frames": frames}
    write_text(folder / NAME, json.dumps(about, indent=1, allow_nan=False) + "\n")


def load_cameras(folder: Path, scene: Scene) -> list[Camera]:
    """What `save_cameras` wrote for the training views of a scene, float32 to the bit but for the last one.

    Raises: FileNotFoundError; ValueError, one line, for another scene's file or a broken one.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run with learned cameras leaves it when it is done")
    try:
        frames = {
            frame["file_path"]: frame for frame in json.loads(path.read_text(encoding="utf-8"))["frames"]
        }
        return [_camera(frames[view.name]) for view in scene.train]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the cameras of {scene.name} ({error!r})") from error


def _camera(frame: dict[str, Any]) -> Camera:
    pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64) * torch.tensor([1.0, -1, -1, 1])
    K = torch.tensor([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
    return Camera(torch.linalg.inv(pose)[None].float(), K[None].float(), int(frame["w"]), int(frame["h"]))
