"""Evaluation on held-out views: metrics per view and their means, comparison images, and metrics.json."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.io.atomic import write_text
from splatexp.settings.checks import check_range
from splatexp.settings.renames import migrate_result

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import Scene, View
    from splatexp.evaluation.metrics import Metric
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import SceneRasterizer


@dataclass
class EvaluationSettings:
    """Settings of the evaluation: the metrics of the held-out views, and the images that are written."""

    every: int = 0  # steps between two evaluations during training; 0: only at the end
    lpips_weights: str = field(default="", metadata={"unit": "path"})  # folder of backbones; "": no LPIPS
    renders: bool = True  # write renders/<view>.png (truth | render | error) and renders/plain/<view>.png
    turntable: bool = True  # write turntable.mp4
    turntable_frames: int = 120
    turntable_fps: int = 30
    # also measure the held-out views with their poses optimized; with learned cameras this is always done
    optimize_poses: bool = False
    pose_steps: int = 100  # optimization steps for each held-out pose
    train_images_every: int = 0  # steps between two train_images/step_<steps>.png; 0: none

    def __post_init__(self) -> None:
        check_range("evaluate.every", self.every, 0)
        check_range("evaluate.turntable_frames", self.turntable_frames, 1)
        check_range("evaluate.turntable_fps", self.turntable_fps, 1)
        check_range("evaluate.pose_steps", self.pose_steps, 1)
        check_range("evaluate.train_images_every", self.train_images_every, 0)

    def check(self, scene: Scene) -> None:
        """Check the settings against the scene.  Raises: ValueError for what an image lacks."""
        for name in ("turntable", "optimize_poses"):
            if scene.test_is_train and getattr(self, name):
                raise ValueError(f"{name}: expected false with data=image, which has no cameras, got true")


def evaluate(
    splats: Splats,
    raster: SceneRasterizer,
    scene: Scene,
    folder: str | Path,
    *arguments: Any,
    **named_arguments: Any,
) -> dict[str, Any]:
    """Return the result of `compute_result`, after writing it to `folder`/metrics.json atomically.

    Raises: OSError when a file cannot be written completely; the previous metrics.json is then untouched.
    """
    result = compute_result(splats, raster, scene, folder, *arguments, **named_arguments)
    write_result(Path(folder), result)
    return result


def compute_result(
    splats: Splats,
    raster: SceneRasterizer,
    scene: Scene,
    folder: str | Path,
    settings: EvaluationSettings | None = None,
    *,
    train_seconds: float | None = None,
    wall_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
    peak_device_bytes: int | None = None,
    data: Any = None,
    overrides: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    extra_metrics: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure every held-out view, and write into `folder` the images and the video that `settings` ask for.

    Args:
        train_seconds: time of training alone: no evaluation, I/O or compilation.
        wall_seconds: time of everything up to this call; the time of the call is added.
        peak_memory_bytes: of loading and training.
        peak_device_bytes: of a device's memory; None on the CPU, where the entry is omitted.
        data: the loader (a dataclass); its split and downscale go into the protocol id.
        overrides: the settings that were given on the command line.
        run: its `id`, the steps at which it was resumed (`resumed_at`), and the `oom_reductions`.
        extra_metrics: metrics of the whole model, such as the size of its code. Where there is a single view
            they are metrics of that view too.

    Returns: the mean of every metric (None where a view has no value for it; `skipped` tells why),
    `num_gaussians`, times, sizes (of point_cloud.*, image.gsi), hashes, `protocol`, and `per_view`.
    """
    from splatexp.evaluation.metrics import (
        DEFINITIONS,
        available_metrics,
        scene_protocol,
    )
    from splatexp.evaluation.render import save_view
    from splatexp.poses.heldout import DEFINITIONS as POSE_DEFINITIONS
    from splatexp.poses.heldout import pose_report
    from splatexp.provenance.environment import provenance

    started = time.perf_counter()
    folder, settings = Path(folder), settings or EvaluationSettings()
    settings.check(scene)
    metrics, skipped = available_metrics(settings.lpips_weights)
    save = partial(save_view, folder) if settings.renders else None
    pose_steps = pose_optimization_steps(scene, settings)
    rows = measure_views(splats, raster, scene, metrics, save, pose_steps)
    if settings.turntable:
        skipped |= _save_turntable(folder / "turntable.mp4", splats, raster, scene, settings)
    return {
        **mean_metrics(rows, metric_names(metrics, rows), skipped),
        **pose_report(scene),
        **(extra_metrics or {}),
        "num_gaussians": len(splats),
        "train_seconds": train_seconds,
        "wall_seconds": None if wall_seconds is None else wall_seconds + time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes,
        **({} if peak_device_bytes is None else {"peak_device_bytes": peak_device_bytes}),
        "bytes_on_disk": {path.name: path.stat().st_size for path in _model_files(folder)},
        "protocol": scene_protocol(scene, data),
        "skipped": skipped,
        "scene": {
            "name": scene.name,
            "train_views": len(scene.train),
            "test_views": len(scene.test),
            "data_sha256": scene.fingerprint,
        },
        "data": {} if data is None else asdict(data),
        "overrides": list(overrides),
        "raster": type(raster).__name__.lower(),
        "run": dict(run or {}),
        **provenance(),
        "definitions": DEFINITIONS | (POSE_DEFINITIONS if pose_steps else {}),
        "per_view": [row | (extra_metrics or {}) for row in rows] if len(rows) == 1 else rows,
    }


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a run's folder that hold the Gaussians."""
    return sorted([*folder.glob("point_cloud.*"), *folder.glob("image.gsi"), *folder.glob("picture.gsi")])


def _save_turntable(
    path: Path, splats: Splats, raster: SceneRasterizer, scene: Scene, settings: EvaluationSettings
) -> dict[str, str]:
    """Write the turntable; where that fails, warn and return the reason, since the metrics matter more."""
    from splatexp.evaluation.render import save_turntable

    try:
        save_turntable(path, splats, raster, scene, settings.turntable_frames, settings.turntable_fps)
    except (RuntimeError, ValueError) as error:  # no ffmpeg, or a size that it cannot encode
        warnings.warn(f"turntable skipped: {error}", stacklevel=2)
        return {"turntable": str(error)}
    return {}


def measure_views(
    splats: Splats,
    raster: SceneRasterizer,
    scene: Scene,
    metrics: Mapping[str, Metric],
    save: Callable[[View, Tensor, dict[str, Any]], None] | None = None,
    pose_steps: int = 0,
) -> list[dict[str, Any]]:
    """Return one row for every held-out view: its name, size, the hash of the target, and every metric.

    A metric that has no finite value for a view (small image, empty mask, render of NaN) is None there.

    Args:
        save: called with the view, its render [1,H,W,3] clamped to [0,1], and its row. With learned cameras
            the render is that of the optimized pose.
        pose_steps: where it is not 0, every metric is also measured with the camera aligned to the learned
            ones (`<name>_sim3`), and with its pose then optimized in so many steps (`<name>_pose_opt`).
    """
    from splatexp.evaluation.render import render_view
    from splatexp.poses.heldout import optimize_pose, sim3_aligned_cameras

    rows = []
    aligned_cameras = sim3_aligned_cameras(scene) if pose_steps else []
    for index, view in enumerate(scene.test):
        target, mask, camera = view.to(raster.device).target()
        image = render_view(splats, raster, scene, camera)
        row: dict[str, Any] = {"view": view.name, "width": camera.width, "height": camera.height}
        row |= {"masked": mask is not None, "target_sha256": view.sha256}
        row |= {name: _value(metric, image, target, mask) for name, metric in metrics.items()}
        if pose_steps:
            aligned = aligned_cameras[index]
            optimized = optimize_pose(splats, raster, scene, view, aligned, pose_steps)
            for suffix, other_camera in (("sim3", aligned), ("pose_opt", optimized)):
                other_image = render_view(splats, raster, scene, other_camera)
                for name, metric in metrics.items():
                    row[f"{name}_{suffix}"] = _value(metric, other_image, target, mask)
        rows.append(row)
        if save is None:
            continue
        if scene.given_cameras is not None:  # the camera as given looks at where the scene no longer is
            image, row = other_image, row | {name: row[f"{name}_pose_opt"] for name in metrics}
        save(view, image.cpu(), row)
    return rows


def pose_optimization_steps(scene: Scene, settings: EvaluationSettings) -> int:
    """Return in how many steps the poses of held-out views are optimized; 0 where they are used as given."""
    return settings.pose_steps if settings.optimize_poses or scene.given_cameras is not None else 0


def metric_names(metrics: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics that the rows have, including those of aligned and optimized poses."""
    posed = [f"{name}_{suffix}" for suffix in ("sim3", "pose_opt") for name in metrics]
    return [*metrics, *(name for name in posed if rows and name in rows[0])]


def mean_metrics(
    rows: Sequence[Mapping[str, Any]], metrics: Iterable[str], skipped: dict[str, str]
) -> dict[str, float | None]:
    """Return the mean of every metric over all views.

    It is None where a view has no value or there is no view; the reason is added to `skipped`.
    """
    result: dict[str, float | None] = {}
    for name in metrics:
        missing = [row["view"] for row in rows if row[name] is None]
        result[name] = None if missing or not rows else sum(row[name] for row in rows) / len(rows)
        if missing:
            others = f" and {len(missing) - 1} more views" if len(missing) > 1 else ""
            skipped[name] = f"no value for {missing[0]}{others}"
        elif not rows:
            skipped[name] = "no held-out views"
    return result


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write metrics.json.  Raises: ValueError for NaN and infinity, which JSON lacks; OSError."""
    write_text(folder / "metrics.json", json.dumps(result, indent=1, allow_nan=False, default=str) + "\n")


def read_result(folder: str | Path) -> dict[str, Any]:
    """Return the contents of the metrics.json of a run, names as they are now, or {} where it has none.

    Raises: ValueError when the file is damaged.
    """
    path = Path(folder, "metrics.json")
    if not path.is_file():
        return {}
    try:
        return migrate_result(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable result file ({error})") from error


def _value(metric: Metric, image: Tensor, target: Tensor, mask: Tensor | None) -> float | None:
    try:
        value = metric(image, target, mask)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
