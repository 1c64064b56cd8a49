"""The file of learned cameras, cameras.json, in the format of transforms.json, which other tools read."""

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
    """Write the cameras of the training views: intrinsics, and camera -> world with OpenGL axes."""
    frames: list[dict[str, Any]] = []
    for view in scene.train:
        camera = view.camera.to("cpu")
        pose = torch.linalg.inv(camera.viewmats[0].double()) * torch.tensor([1.0, -1, -1, 1])
        K = camera.Ks[0].double()
        frames.append(
            {
                "file_path": view.name,
                "w": camera.width,
                "h": camera.height,
                "fl_x": float(K[0, 0]),
                "fl_y": float(K[1, 1]),
                "cx": float(K[0, 2]),
                "cy": float(K[1, 2]),
                "transform_matrix": pose.tolist(),
            }
        )
    content = {"camera_model": "PINHOLE", "learned": True, "frames": frames}
    write_text(folder / NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")


def load_cameras(folder: Path, scene: Scene) -> list[Camera]:
    """Read the cameras of the training views of a scene that `save_cameras` wrote.

    The matrices are float32; their last bit may differ from that of the learned ones.

    Raises: FileNotFoundError; ValueError, one line, for the file of another scene or a broken one.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a run with learned cameras writes it at its end")
    try:
        frames = {
            frame["file_path"]: frame for frame in json.loads(path.read_text(encoding="utf-8"))["frames"]
        }
        return [_camera(frames[view.name]) for view in scene.train]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the training cameras of {scene.name}, cannot read them ({error!r})"
        ) from error


def _camera(frame: dict[str, Any]) -> Camera:
    pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64) * torch.tensor([1.0, -1, -1, 1])
    K = torch.tensor([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
    return Camera(torch.linalg.inv(pose)[None].float(), K[None].float(), int(frame["w"]), int(frame["h"]))
