"""A run in the browser: its Gaussians from all sides, its cameras, photographs and curves.

    python -m splatexp.view run=<folder> [host=127.0.0.1] [port=8080] [threads=0]

serves a page until Ctrl-C. Shown is the newest checkpoint in the folder, or what is in point_cloud.ply where
that is newer; so a run that was interrupted, or still goes on, can be looked at too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.run.run import Run

PAGE = "python -m splatexp.image view <file>.gsi"


def opened(folder: str | Path) -> tuple[Run, Scene, Splats, int, bool]:
    """The run in a folder, its scene, and its newest Gaussians.

    Returns: besides, after how many steps, and whether their ages are known.
    Raises: FileNotFoundError, ValueError with one line where there is nothing to look at.
    """
    from splatexp.commands.open_run import open_run
    from splatexp.config.build import load_run
    from splatexp.run.checkpoint import newest
    from splatexp.run.state import State

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder} (no such folder)")
    run, saved = load_run(folder), newest(folder / "checkpoints")
    if run.is_image:
        raise ValueError(f"run: expected one of a scene, got a picture's; its page: {PAGE}")
    there = (folder / "point_cloud.ply").is_file()
    if saved is None and not there:
        raise FileNotFoundError(f"run: {folder} holds neither a checkpoint nor a point_cloud.ply")
    if saved is None or there and saved[2]["step"] < run.steps:
        return *open_run(folder), run.steps, False
    run.settle()
    if run.raster.why:
        print(run.raster.why, file=sys.stderr)
    _, tensors, notes = saved
    return run, run.data.load(), State.of(tensors, notes, run.raster.device).splats, notes["step"], True


def view(run: str, host: str = "127.0.0.1", port: int = 8080, threads: int = 0) -> None:
    """Serve a page that shows the run in the folder `run`, until the process is interrupted.

    threads: that draw; 0: all.
    Raises: OSError, ValueError, with one line.
    """
    from dataclasses import replace

    from splatexp.viewer import Viewer
    from splatexp.viewer.serve import watched

    settings = Viewer(on=True, host=host, port=port)
    try:
        settings.check()
    except ImportError as error:
        raise ValueError(str(error)) from error
    made, scene, splats, step, ages = opened(run)
    replace(made, threads=threads).settle()
    poses = made.camera if ages else None  # what is beside a .ply are learned cameras already
    parts = (settings, scene, made.raster, Path(run), made.steps, poses)
    with watched(*parts, ages=ages, training=False) as live:
        while True:
            live.controls.changed.wait(0.02)
            live.controls.changed.clear()
            live.serve(step, splats, training=False)


def main() -> None:
    """The command `python -m splatexp.view`."""
    from splatexp.settings.arguments import command

    try:
        command(__doc__ or "", {"run": str, "host": str, "port": int, "threads": int}, view)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
