"""Open a finished run: its settings, its scene, and its Gaussians."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.run.run import Run


def open_run(folder: str | Path) -> tuple[Run, Scene, Rows]:
    """The run that wrote `folder`, its scene loaded anew, and its Gaussians from point_cloud.ply.

    Those of a picture come from its last checkpoint; coded, they are drawn as the file has them.

    Raises: FileNotFoundError for a missing folder, config, .ply or checkpoint; ValueError for broken ones.
    """
    from splatexp.config.build import load_run
    from splatexp.gaussians.splats import Splats
    from splatexp.io.ply import load_ply
    from splatexp.poses.files import load_cameras
    from splatexp.run.checkpoint import newest
    from splatexp.run.state import State

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder} (no such folder)")
    run = load_run(folder)
    run.raster = run.raster.alone()
    run.settle()
    if run.raster.why:
        print(run.raster.why, file=sys.stderr)
    if run.is_image:
        saved = newest(folder / "checkpoints")
        if saved is None:
            raise FileNotFoundError(f"run: {folder} holds no checkpoint; checkpoint.every=0 wrote none")
        scene, rows = run.data.load(), State.of(*saved[1:], run.raster.device).splats
        run.rate.finish(rows, scene, run.raster, None)
        return run, scene, rows
    params = load_ply(folder / "point_cloud.ply")
    scene = run.data.load()
    if run.camera.learns:
        scene = scene.with_cameras(load_cameras(folder, scene))
    return run, scene, Splats(params, scene.extent).to(run.raster.device)
