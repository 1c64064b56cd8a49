"""Serve the page of a run while a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.viewer.curves import read
from splatexp.viewer.session import Live
from splatexp.viewer.settings import Between, Viewer

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.poses.learned import Poses
    from splatexp.raster.rasterizer import Drawing
    from splatexp.system.signals import Signals
    from splatexp.tracking import Trackers
    from splatexp.train.recipe import Recipe


@contextmanager
def watched(
    settings: Viewer,
    scene: Scene,
    raster: Drawing,
    folder: Path,
    steps: int,
    poses: Poses | None = None,
    stopping: Callable[[], bool] = lambda: False,
    ages: bool = True,
    training: bool = True,
) -> Iterator[Live]:
    """A run with its page served.  Raises: OSError, ValueError with one line where that cannot be."""
    from splatexp.viewer.server import Served  # viser is an extra

    live = Live(settings, scene, raster, folder, steps, poses, stopping, ages)
    live.curves.rows = read(folder)  # of earlier parts of the run
    live.page = Served(live, settings.host, settings.port, training)
    try:
        yield live
    finally:
        live.page.close()


@contextmanager
def opened(
    viewer: Viewer, recipe: Recipe, scene: Scene, folder: Path, trackers: Trackers, signals: Signals
) -> Iterator[Between]:
    """The page of a run in `folder`, while the context lasts, if it is on.

    Yields: what is called after every step, in the thread that trains: there alone it draws.
    Raises: OSError, ValueError with one line where no page can be served.
    """
    if not viewer.on:
        yield lambda step, splats: None
        return
    parts = (viewer, scene, recipe.raster, folder, recipe.steps, recipe.camera)
    with watched(*parts, stopping=lambda: bool(signals.heed())) as live:
        trackers.live["viewer"] = live.curves
        yield live.after_step
