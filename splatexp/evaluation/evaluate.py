"""Held-out views: numbers per view and their means, pictures, and the result file."""

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

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import Scene, View
    from splatexp.evaluation.metrics import Metric
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import Rasterizer


@dataclass
class Evaluate:
    """What is measured and drawn of the held-out views."""

    every: int = 0  # steps; 0: only at the end
    lpips_weights: str = field(default="", metadata={"unit": "path"})  # folder of backbones; "": no LPIPS
    renders: bool = True  # renders/<view>.png: truth | render | error; renders/plain/<view>.png
    turntable: bool = True  # turntable.mp4
    turntable_frames: int = 120
    turntable_fps: int = 30
    align: bool = False  # also score held-out views whose poses were fitted; learned cameras always do
    align_steps: int = 100  # a view
    pictures: int = 0  # steps between sheets of training views, pictures/step_<steps>.png; 0: none

    def __post_init__(self) -> None:
        check_range("evaluate.every", self.every, 0)
        check_range("evaluate.turntable_frames", self.turntable_frames, 1)
        check_range("evaluate.turntable_fps", self.turntable_fps, 1)
        check_range("evaluate.align_steps", self.align_steps, 1)
        check_range("evaluate.pictures", self.pictures, 0)

    def check(self, scene: Scene) -> None:
        """Hold it against the scene.  Raises: ValueError for what a picture has not."""
        if scene.fitted and (self.turntable or self.align):
            raise ValueError("turntable, align: expected false, for a picture has no cameras")


def evaluate(
    splats: Splats, raster: Rasterizer, scene: Scene, folder: str | Path, *args: Any, **known: Any
) -> dict[str, Any]:
    """`assess`, then write the result as `metrics.json` into `folder`, last and atomically; returns it.

    Raises: OSError when a file cannot be written whole; the previous metrics.json survives.
    """
    result = assess(splats, raster, scene, folder, *args, **known)
    write_result(Path(folder), result)
    return result


def assess(
    splats: Splats,
    raster: Rasterizer,
    scene: Scene,
    folder: str | Path,
    settings: Evaluate | None = None,
    *,
    train_seconds: float | None = None,
    wall_seconds: float | None = None,
    peak_memory_bytes: int | None = None,
    peak_device_bytes: int | None = None,
    data: Any = None,
    overrides: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    more: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Measure every held-out view and draw into `folder` what `settings` ask for.

    Args:
        train_seconds: of training alone: no evaluation, I/O or compilation.
        wall_seconds: of everything up to this call; what passes in here is added.
        peak_memory_bytes: of loading and training.
        peak_device_bytes: of a device's memory; None: on the CPU, and left out.
        data: the loader (a dataclass); its split and downscale go into the protocol id.
        overrides: what was set on the command line.
        run: its `id`, the steps at which it was `resumed`, and what was `shrunk` for want of memory.
        more: numbers of the whole; where there is one view alone they are numbers of that view too.

    Returns: at the top level the mean of every metric (None where a view has no value for it, and `left_out`
    says why), `num_gaussians`, times, sizes (of point_cloud.*, picture.gsi), hashes, `protocol`, `per_view`.
    """
    from splatexp.evaluation.metrics import DEFINITIONS, metric_set, protocol_of
    from splatexp.evaluation.render import save_view
    from splatexp.poses.heldout import ALIGNED, pose_report
    from splatexp.provenance.environment import provenance

    began = time.perf_counter()
    folder, settings = Path(folder), settings or Evaluate()
    settings.check(scene)
    metrics, left_out = metric_set(settings.lpips_weights)
    draw = partial(save_view, folder) if settings.renders else None
    rows = measure(splats, raster, scene, metrics, draw, aligning(scene, settings))
    if settings.turntable:
        left_out |= _film(folder / "turntable.mp4", splats, raster, scene, settings)
    return {
        **means(rows, names_of(metrics, rows), left_out),
        **pose_report(scene),
        **(more or {}),
        "num_gaussians": len(splats),
        "train_seconds": train_seconds,
        "wall_seconds": None if wall_seconds is None else wall_seconds + time.perf_counter() - began,
        "peak_memory_bytes": peak_memory_bytes,
        **({} if peak_device_bytes is None else {"peak_device_bytes": peak_device_bytes}),
        "bytes_on_disk": {path.name: path.stat().st_size for path in _models(folder)},
        "protocol": protocol_of(scene, data),
        "left_out": left_out,
        **_origin(raster, scene, data, overrides, run),
        **provenance(),
        "definitions": DEFINITIONS | (ALIGNED if aligning(scene, settings) else {}),
        "per_view": [row | (more or {}) for row in rows] if len(rows) == 1 else rows,
    }


def _origin(
    raster: Rasterizer, scene: Scene, data: Any, overrides: Sequence[str], run: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What was measured, and how it came about."""
    return {
        "scene": _about(scene),
        "data": {} if data is None else asdict(data),
        "overrides": list(overrides),
        "raster": type(raster).__name__.lower(),
        "run": dict(run or {}),
    }


def _models(folder: Path) -> list[Path]:
    """What of a folder holds the Gaussians."""
    return sorted([*folder.glob("point_cloud.*"), *folder.glob("picture.gsi")])


def _about(scene: Scene) -> dict[str, Any]:
    counts = {"train_views": len(scene.train), "test_views": len(scene.test)}
    return {"name": scene.name, **counts, "data_sha256": scene.fingerprint}


def _film(path: Path, splats: Splats, raster: Rasterizer, scene: Scene, settings: Evaluate) -> dict[str, str]:
    """Film the turntable.  Returns: why it was left out, if it was; no film is worth the numbers."""
    from splatexp.evaluation.render import save_turntable

    try:
        save_turntable(path, splats, raster, scene, settings.turntable_frames, settings.turntable_fps)
    except (RuntimeError, ValueError) as error:  # no ffmpeg, or a size that it cannot take
        warnings.warn(f"turntable left out: {error}", stacklevel=2)
        return {"turntable": str(error)}
    return {}


def measure(
    splats: Splats,
    raster: Rasterizer,
    scene: Scene,
    metrics: Mapping[str, Metric],
    draw: Callable[[View, Tensor, dict[str, Any]], None] | None = None,
    align: int = 0,
) -> list[dict[str, Any]]:
    """One row for every held-out view: name, size, the hash of the truth, and every metric.

    align: also every metric with the camera carried over to the learned ones, `<name>_carried`, and once its
    pose has been fitted in so many steps, `<name>_aligned`; 0: neither.

    A metric that has no finite value for a view (small picture, empty mask, render of NaN) is None there.
    draw: called with the view, its render [1,H,W,3] clamped to [0,1], and its row; with learned cameras the
    render is that of the fitted pose.
    """
    from splatexp.evaluation.render import draw as render
    from splatexp.poses.heldout import aligned, carried

    rows, starts = [], carried(scene) if align else []
    for index, view in enumerate(scene.test):
        target, mask, camera = view.to(raster.device).target()
        image = render(splats, raster, scene, camera)
        row: dict[str, Any] = {"view": view.name, "width": camera.width, "height": camera.height}
        row |= {"masked": mask is not None, "truth_sha256": view.sha256}
        row |= {name: _value(metric, image, target, mask) for name, metric in metrics.items()}
        if align:
            found = aligned(splats, raster, scene, view, starts[index], align)
            for how, at in (("carried", starts[index]), ("aligned", found)):
                fitted = render(splats, raster, scene, at)
                row |= {f"{name}_{how}": _value(m, fitted, target, mask) for name, m in metrics.items()}
        rows.append(row)
        if draw is not None and scene.given is not None:  # as given it looks where the scene no longer is
            image, row = fitted, row | {name: row[f"{name}_aligned"] for name in metrics}
        if draw is not None:
            draw(view, image.cpu(), row)
    return rows


def aligning(scene: Scene, settings: Evaluate) -> int:
    """Steps in which the poses of held-out views are fitted; 0 where they are only taken as they are."""
    return settings.align_steps if settings.align or scene.given is not None else 0


def names_of(metrics: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that rows have, also `_carried` and `_aligned` ones."""
    fitted = [f"{name}_{how}" for how in ("carried", "aligned") for name in metrics]
    return [*metrics, *(name for name in fitted if rows and name in rows[0])]


def means(
    rows: Sequence[Mapping[str, Any]], metrics: Iterable[str], left_out: dict[str, str]
) -> dict[str, float | None]:
    """The mean of every metric over all views; None where one has no value, and `left_out` says why."""
    result: dict[str, float | None] = {}
    for name in metrics:
        gone = [row["view"] for row in rows if row[name] is None]
        result[name] = None if gone or not rows else sum(row[name] for row in rows) / len(rows)
        if gone:
            more = f" and {len(gone) - 1} more views" if len(gone) > 1 else ""
            left_out[name] = f"no value for {gone[0]}{more}"
        elif not rows:
            left_out[name] = "no view is held out"
    return result


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write metrics.json; only numbers that JSON knows get in."""
    write_text(folder / "metrics.json", json.dumps(result, indent=1, allow_nan=False, default=str) + "\n")


def read_result(folder: str | Path) -> dict[str, Any]:
    """The metrics.json of a run, or {} where it has none.  Raises: ValueError when it is broken."""
    path = Path(folder, "metrics.json")
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable result file ({error})") from error


def _value(metric: Metric, image: Tensor, target: Tensor, mask: Tensor | None) -> float | None:
    try:
        value = metric(image, target, mask)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
