"""A session of the viewer: between two steps of a run it renders for clients, and a client may pause the run.

Clients, in threads of their own, put their requests into `RenderQueue` and `Controls`; only the thread that
trains touches the Gaussians, and it only reads them here.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from splatexp.io.figures import save_png
from splatexp.settings.messages import one_line
from splatexp.viewer.browser import gaussian_arrays
from splatexp.viewer.curves import EVAL_PSNR, TRAIN_PSNR, CurveHistory
from splatexp.viewer.render_modes import RenderedView, ViewRenderer, available_modes
from splatexp.viewer.render_queue import RenderJob, RenderQueue

if TYPE_CHECKING:
    import numpy as np

    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.poses import Poses
    from splatexp.raster.rasterizer import SceneRasterizer
    from splatexp.viewer.settings import ViewerSettings

REFRESH = 0.02  # seconds between two checks for requests while no step is trained
STATUS_SECONDS = 0.5  # between two updates of the status and the curves
ABANDONED_SECONDS = 10.0  # without a client, after which a paused run continues
CAMERA_SECONDS = 2.0  # between two updates of learned cameras
EMA_DECAY = 0.9  # of the moving average of steps per second


class Page(Protocol):
    """The page that clients look at."""

    def show_image(self, client: int, view: RenderedView, sharp: bool) -> None:
        """Show an image to one client, in place of all before."""

    def send_gaussians(self, client: int, rows: dict[str, np.ndarray]) -> None:
        """Send Gaussians that a client renders itself, in place of all before."""

    def notify(self, client: int, title: str, text: str) -> None:
        """Show a message to one client."""

    def update_status(self, text: str, paused: bool) -> None:
        """Show the progress of the run to all clients."""

    def update_curves(self, curves: CurveHistory) -> None:
        """Plot the curves for all clients."""

    def update_cameras(self, cameras: list[Camera]) -> None:
        """Move the frusta of the training views, for all clients."""

    def close(self) -> None:
        """Stop serving the page."""


class Controls:
    """The controls of a run that clients operate, from any thread."""

    def __init__(self) -> None:
        self.paused = False
        self.allowed_steps = 0  # steps that a paused run may still take
        self.snapshot_clients: list[int] = []  # clients that have asked for a snapshot
        self.changed = threading.Event()
        self.lock = threading.Lock()

    def pause(self, paused: bool) -> None:
        """Pause the run between two steps, or let it continue."""
        with self.lock:
            self.paused = paused
            self.allowed_steps = 0
        self.changed.set()

    def step(self, count: int = 1) -> None:
        """Let the run take `count` steps, then pause."""
        with self.lock:
            self.paused = True
            self.allowed_steps += count
        self.changed.set()

    def count_step(self) -> None:
        """Note that a step has been taken."""
        with self.lock:
            self.allowed_steps = max(0, self.allowed_steps - 1)

    def request_snapshot(self, client: int) -> None:
        """Ask for an image of what a client sees, written to the run's folder."""
        self.snapshot_clients.append(client)
        self.changed.set()


class ViewerSession:
    """The link between a run and its page.

    The session never changes the run, and an error in it does not end the run.

    Args:
        poses: of the run; the page shows learned cameras where they are now.
        stopping: returns whether the run is to end; it does not stay paused then.
        ages: see `ViewRenderer`.
    """

    def __init__(
        self,
        settings: ViewerSettings,
        scene: Scene,
        raster: SceneRasterizer,
        folder: Path,
        steps: int,
        poses: Poses | None = None,
        stopping: Callable[[], bool] = lambda: False,
        ages: bool = True,
    ):
        self.scene = scene
        self.raster = raster
        self.folder = folder
        self.steps = steps
        self.poses = poses
        self.stopping = stopping
        self.ages = ages
        self.queue = RenderQueue(
            settings.max_time_fraction, settings.refresh_seconds, settings.max_resolution
        )
        self.controls = Controls()
        self.curves = CurveHistory()
        self.modes = available_modes(raster, ages)
        self.page: Page | None = None
        self._initial_scene = scene
        self._next_status = 0.0
        self._next_cameras = 0.0
        self._steps_per_second = 0.0
        self._counted = (0, 0.0)  # step and time at which the pace was measured last
        self._last_errors: dict[int, str] = {}  # by client

    def after_step(self, step: int, splats: Splats) -> None:
        """Render what is due after a step (from 0), and hold the calling thread while the run is paused."""
        if not self.queue.clients and not self.controls.paused:
            return
        self._measure_pace(step + 1)
        self.controls.count_step()
        held = self._is_held()
        self.render_pending(step + 1, splats, training=not held)
        while held and self._is_held():
            self.controls.changed.wait(REFRESH)
            self.controls.changed.clear()
            self.render_pending(step + 1, splats, training=False)
        if held:
            self._counted = (step + 1, time.monotonic())

    def render_pending(self, step: int, splats: Splats, training: bool) -> None:
        """Render the images that are due: in training at most one, otherwise one for each client."""
        while self.controls.snapshot_clients:
            self._save_snapshot(self.controls.snapshot_clients.pop(0), step, splats)
        for _ in range(1 if training else max(1, len(self.queue))):
            job = self.queue.next_job(step, training)
            if job is None:
                break
            self._serve(job, step, splats)
        self._update_cameras(splats)
        self._update_status(step, splats, training)

    def _is_held(self) -> bool:
        """Return whether the run has to wait."""
        if self.controls.paused and self.queue.seconds_without_clients() > ABANDONED_SECONDS:
            self.controls.pause(False)  # the client that has paused the run is gone
        return self.controls.paused and self.controls.allowed_steps == 0 and not self.stopping()

    def _serve(self, job: RenderJob, step: int, splats: Splats) -> None:
        started = time.perf_counter()
        try:
            assert self.page is not None
            if job.request.browser:
                self.page.send_gaussians(job.client, gaussian_arrays(splats, job.request.box))
            else:
                self.page.show_image(job.client, self._render(job, step, splats), job.sharp)
        except Exception as error:  # an image that cannot be rendered must not end a run
            self._report(job.client, error)
        self.queue.finish_job(job, step, time.perf_counter() - started)

    def _render(self, job: RenderJob, step: int, splats: Splats) -> RenderedView:
        renderer = ViewRenderer(splats, self.raster, self.scene, step, self.ages)
        camera = job.request.camera.camera(job.width, job.height)
        return renderer.render_mode(camera, job.request.mode, job.request.box)

    def _save_snapshot(self, client: int, step: int, splats: Splats) -> None:
        """Write what a client sees as a PNG in the run's folder, at the size of its canvas."""
        state = self.queue.clients.get(client)
        if state is None or state.request is None or self.page is None:
            return
        request = state.request
        try:
            job = RenderJob(client, request, request.width, request.height, True, 0)
            path = _unused_path(self.folder / "snapshots", f"step_{step:08d}_{request.mode}")
            save_png(path, self._render(job, step, splats).image)
            self.page.notify(client, "Snapshot", str(path))
        except Exception as error:
            self._report(client, error)

    def _report(self, client: int, error: Exception) -> None:
        """Show an error to a client, once; warn about one that is not due to the client's settings."""
        line = one_line(error)[:300]
        if client not in self.queue.clients or self._last_errors.get(client) == line:
            return
        self._last_errors[client] = line
        if not isinstance(error, ValueError):
            warnings.warn(f"viewer: could not render: {line}", stacklevel=2)
        if self.page is not None:
            self.page.notify(client, "Could not render", line)

    def _update_cameras(self, splats: Splats) -> None:
        """Show learned cameras where they are now."""
        now = time.monotonic()
        if self.poses is None or not self.poses.is_learned or now < self._next_cameras or self.page is None:
            return
        self._next_cameras = now + CAMERA_SECONDS
        views = self.poses.rig(self._initial_scene, splats, self._initial_scene.train).train
        self.scene = self._initial_scene.with_cameras([view.camera.to("cpu") for view in views])
        self.page.update_cameras([view.camera for view in self.scene.train])

    def _measure_pace(self, steps_done: int) -> None:
        """Update the moving average of steps per second."""
        steps, since = self._counted
        now = time.monotonic()
        if 0 < steps_done - steps < 1000 and now > since:
            pace = (steps_done - steps) / (now - since)
            before = self._steps_per_second
            self._steps_per_second = EMA_DECAY * before + (1 - EMA_DECAY) * pace if before else pace
        self._counted = (steps_done, now)

    def _update_status(self, step: int, splats: Splats, training: bool) -> None:
        """Update the status and the curves of the page, if it is time."""
        now = time.monotonic()
        if now < self._next_status or self.page is None or not self.queue.clients:
            return
        self._next_status = now + STATUS_SECONDS
        latest = self.curves.latest
        parts = [f"**step {step:,}** of {self.steps:,}", f"**{len(splats):,}** Gaussians"]
        for name, label in ((TRAIN_PSNR, "training views"), (EVAL_PSNR, "held-out views")):
            if name in latest:
                parts.append(f"{label} {latest[name]:.2f} dB")
        if training and self._steps_per_second:
            parts.append(f"{self._steps_per_second:.0f} steps/s")
        try:
            self.page.update_status(" · ".join(parts), self.controls.paused)
            self.page.update_curves(self.curves)
        except Exception as error:
            warnings.warn(f"viewer: {error!r}", stacklevel=2)


def _unused_path(folder: Path, stem: str) -> Path:
    """Return the path of a PNG that does not exist yet."""
    number = 1
    path = folder / f"{stem}.png"
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.png"
    return path
