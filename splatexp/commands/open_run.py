"""Opening a finished run: its settings, its scene, and its Gaussians."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.run.run import Run


def open_run(folder: str | Path) -> tuple[Run, Scene, Rows]:
    """Return the run that wrote `folder`, its scene, loaded again, and its Gaussians from point_cloud.ply.

    The rows of an image come from the last checkpoint instead. Where they are coded, they have the values
    that the decoder of the coded file would return.

    Raises: FileNotFoundError for a missing folder, config, .ply or checkpoint; ValueError for damaged ones.
    """
    from splatexp.config.build import load_run
    from splatexp.gaussians.splats import Splats
    from splatexp.io.ply import load_ply
    from splatexp.poses.files import load_cameras
    from splatexp.run.checkpoint import load_latest_checkpoint
    from splatexp.run.state import TrainingState

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder} (no such folder)")
    run = load_run(folder)
    run.raster = run.raster.single_process()
    run.configure_process()
    if run.raster.selection_note:
        print(run.raster.selection_note, file=sys.stderr)
    if run.is_image:
        checkpoint = load_latest_checkpoint(folder / "checkpoints")
        if checkpoint is None:
            raise FileNotFoundError(
                f"run: expected a checkpoint in {folder}, got none; checkpoint.every=0 writes none"
            )
        _, tensors, metadata = checkpoint
        scene = run.data.load()
        rows = TrainingState.from_checkpoint(tensors, metadata, run.raster.device).splats
        run.rate.finish(rows, scene, run.raster, None)
        return run, scene, rows
    params = load_ply(folder / "point_cloud.ply")
    scene = run.data.load()
    if run.camera.is_learned:
        scene = scene.with_cameras(load_cameras(folder, scene))
    return run, scene, Splats(params, scene.extent).to(run.raster.device)
