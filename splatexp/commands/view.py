"""Show a run in the browser: its Gaussians from all sides, its cameras, photographs and curves.

    python -m splatexp.view run=<folder> [host=127.0.0.1] [port=8080] [threads=0]

This serves a page until Ctrl-C. It shows the newest checkpoint in the folder, or point_cloud.ply where that
is newer; so a run that was interrupted, or is still training, can be viewed too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.run.run import Run

IMAGE_COMMAND = "python -m splatexp.image view <file>.gsi"


def open_latest(folder: str | Path) -> tuple[Run, Scene, Splats, int, bool]:
    """Open the run in a folder with its newest Gaussians.

    Returns: the run, its scene, its Gaussians, the number of steps after which they were saved, and whether
    their ages are known.
    Raises: FileNotFoundError or ValueError, one line, where there is nothing to view.
    """
    from splatexp.commands.open_run import open_run
    from splatexp.config.build import load_run
    from splatexp.run.checkpoint import load_latest_checkpoint
    from splatexp.run.state import TrainingState

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder} (no such folder)")
    run = load_run(folder)
    checkpoint = load_latest_checkpoint(folder / "checkpoints")
    if run.is_image:
        raise ValueError(f"run: expected a run of a scene, got one of an image; view it with {IMAGE_COMMAND}")
    has_ply = (folder / "point_cloud.ply").is_file()
    if checkpoint is None and not has_ply:
        raise FileNotFoundError(f"run: expected a checkpoint or a point_cloud.ply in {folder}, got neither")
    if checkpoint is None or has_ply and checkpoint[2]["step"] < run.steps:
        return *open_run(folder), run.steps, False
    run.configure_process()
    if run.raster.selection_note:
        print(run.raster.selection_note, file=sys.stderr)
    _, tensors, metadata = checkpoint
    splats = TrainingState.from_checkpoint(tensors, metadata, run.raster.device).splats
    return run, run.data.load(), splats, metadata["step"], True


def view(run: str, host: str = "127.0.0.1", port: int = 8080, threads: int = 0) -> None:
    """Serve a page that shows the run in the folder `run`, until the process is interrupted.

    Args:
        threads: CPU threads for rendering; 0: all.

    Raises: OSError or ValueError, one line.
    """
    from dataclasses import replace

    from splatexp.viewer import ViewerSettings
    from splatexp.viewer.serve import serve_viewer

    settings = ViewerSettings(enabled=True, host=host, port=port)
    try:
        settings.check()
    except ImportError as error:
        raise ValueError(str(error)) from error
    opened, scene, splats, step, ages = open_latest(run)
    replace(opened, threads=threads).configure_process()
    poses = opened.camera if ages else None  # the cameras beside a .ply are the learned ones already
    parts = (settings, scene, opened.raster, Path(run), opened.steps, poses)
    with serve_viewer(*parts, ages=ages, training=False) as session:
        while True:
            session.controls.changed.wait(0.02)
            session.controls.changed.clear()
            session.render_pending(step, splats, training=False)


def main() -> None:
    """Run the command `python -m splatexp.view`."""
    from splatexp.commands.command_line import run_command

    try:
        run_command(__doc__ or "", {"run": str, "host": str, "port": int, "threads": int}, view)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
