"""Contexts in which the page of a run is served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.viewer.curves import read_curves
from splatexp.viewer.session import ViewerSession
from splatexp.viewer.settings import StepCallback, ViewerSettings

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.poses.learned import Poses
    from splatexp.raster.rasterizer import Rasterizer
    from splatexp.system.signals import StopSignals
    from splatexp.tracking import Trackers
    from splatexp.train.recipe import Recipe


@contextmanager
def serve_viewer(
    settings: ViewerSettings,
    scene: Scene,
    raster: Rasterizer,
    folder: Path,
    steps: int,
    poses: Poses | None = None,
    stopping: Callable[[], bool] = lambda: False,
    ages: bool = True,
    training: bool = True,
) -> Iterator[ViewerSession]:
    """Serve the page of a run, running or not, while the context lasts.

    Raises: OSError, ValueError with one line where no page can be served.
    """
    from splatexp.viewer.server import ViewerServer  # viser is an optional dependency

    session = ViewerSession(settings, scene, raster, folder, steps, poses, stopping, ages)
    session.curves.rows = read_curves(folder)  # of earlier parts of the run
    session.page = ViewerServer(session, settings.host, settings.port, training)
    try:
        yield session
    finally:
        session.page.close()


@contextmanager
def viewer_context(
    viewer: ViewerSettings,
    recipe: Recipe,
    scene: Scene,
    folder: Path,
    trackers: Trackers,
    signals: StopSignals,
) -> Iterator[StepCallback]:
    """Serve the page of the run in `folder` while the context lasts, if the viewer is enabled.

    Yields: a function to be called after every step by the thread that trains, in which it renders.
    Raises: OSError, ValueError with one line where no page can be served.
    """
    if not viewer.enabled:
        yield lambda step, splats: None
        return
    parts = (viewer, scene, recipe.raster, folder, recipe.steps, recipe.camera)
    with serve_viewer(*parts, stopping=lambda: bool(signals.poll())) as session:
        trackers.active["viewer"] = session.curves
        yield session.after_step
