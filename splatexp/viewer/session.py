"""A run under watch: between its steps pictures are drawn for those who look, and it may pause there.

Clients, in threads of their own, leave their wishes in `Turns` and `Controls`; the Gaussians are touched in
the thread that trains alone, and only read.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from splatexp.io.figures import save_png
from splatexp.viewer.browser import gaussians
from splatexp.viewer.curves import Curves
from splatexp.viewer.render_modes import Picture, Studio, offered
from splatexp.viewer.render_queue import Turn, Turns

if TYPE_CHECKING:
    import numpy as np

    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.poses import Poses
    from splatexp.raster.rasterizer import Rasterizer
    from splatexp.viewer.settings import Viewer

LOOK = 0.02  # seconds between two looks at the wishes while nothing trains
NEWS = 0.5  # seconds between two updates of the status and the curves
GRACE = 10.0  # seconds without anybody watching after which a paused run goes on
AIM = 2.0  # seconds between two updates of cameras that learn
MEMORY = 0.9  # of the moving average of steps per second


class Page(Protocol):
    """What clients look at."""

    def show(self, client: int, picture: Picture, sharp: bool) -> None:
        """A picture for one client, in place of all before."""

    def give(self, client: int, rows: dict[str, np.ndarray]) -> None:
        """Gaussians that a client draws itself, in place of all before."""

    def tell(self, client: int, title: str, text: str) -> None:
        """A message to one client."""

    def status(self, text: str, paused: bool) -> None:
        """How the run goes, for all."""

    def draw(self, curves: Curves) -> None:
        """The curves, for all."""

    def aim(self, cameras: list[Camera]) -> None:
        """Where the cameras of the training views are now, for all."""

    def close(self) -> None:
        """The page is no longer served."""


class Controls:
    """What clients may do to a run, from any thread."""

    def __init__(self) -> None:
        self.paused = False
        self.allowed = 0  # steps that a paused run may still do
        self.shots: list[int] = []  # clients that want their picture on disk
        self.changed = threading.Event()
        self.lock = threading.Lock()

    def pause(self, paused: bool) -> None:
        """Stop between two steps, or go on."""
        with self.lock:
            self.paused, self.allowed = paused, 0
        self.changed.set()

    def step(self, count: int = 1) -> None:
        """Do so many steps, then pause."""
        with self.lock:
            self.paused, self.allowed = True, self.allowed + count
        self.changed.set()

    def stepped(self) -> None:
        """A step has been done."""
        with self.lock:
            self.allowed = max(0, self.allowed - 1)

    def shoot(self, client: int) -> None:
        """Write what a client sees to the run's folder."""
        self.shots.append(client)
        self.changed.set()


class Live:
    """What `on_step` calls. Nothing in here changes a run, and what fails in here does not end it.

    poses: of the run; cameras that learn are shown where they are.
    stopping: whether somebody wants the run to end; then it does not stay paused.
    ages: see `Studio`.
    """

    def __init__(
        self, settings: Viewer, scene: Scene, raster: Rasterizer, folder: Path, steps: int,
        poses: Poses | None = None, stopping: Callable[[], bool] = lambda: False, ages: bool = True,
    ):  # fmt: skip
        self.scene, self.raster, self.folder, self.steps = scene, raster, folder, steps
        self.poses, self.stopping, self.ages = poses, stopping, ages
        self._given, self._aimed = scene, 0.0
        self.turns = Turns(settings.share, settings.refresh, settings.longest)
        self.controls, self.curves = Controls(), Curves()
        self.modes = offered(raster, ages)
        self.page: Page | None = None
        self._news, self._pace, self._before = 0.0, 0.0, (0, 0.0)
        self._told: dict[int, str] = {}  # what failed last, by client

    def after_step(self, step: int, splats: Splats) -> None:
        """Called after every step (from 0) by the thread that trains; holds it while the run is paused."""
        if not self.turns.places and not self.controls.paused:
            return
        self._count(step + 1)
        self.controls.stepped()
        held = self._held()
        self.serve(step + 1, splats, training=not held)
        while held and self._held():
            self.controls.changed.wait(LOOK)
            self.controls.changed.clear()
            self.serve(step + 1, splats, training=False)
        if held:
            self._before = (step + 1, time.monotonic())

    def serve(self, step: int, splats: Splats, training: bool) -> None:
        """Draw what is due: while it trains one picture at most, else as many as there are."""
        while self.controls.shots:
            self._shoot(self.controls.shots.pop(0), step, splats)
        for _ in range(1 if training else max(1, len(self.turns))):
            turn = self.turns.next(step, training)
            if turn is None:
                break
            self._serve(turn, step, splats)
        self._aim(splats)
        self._tell(step, splats, training)

    def _held(self) -> bool:
        """Whether the run is to wait."""
        if self.controls.paused and self.turns.alone_for() > GRACE:
            self.controls.pause(False)  # whoever paused it has gone
        return self.controls.paused and self.controls.allowed == 0 and not self.stopping()

    def _serve(self, turn: Turn, step: int, splats: Splats) -> None:
        began = time.perf_counter()
        try:
            assert self.page is not None
            if turn.wish.browser:
                self.page.give(turn.client, gaussians(splats, turn.wish.box))
            else:
                self.page.show(turn.client, self._picture(turn, step, splats), turn.sharp)
        except Exception as error:  # a picture that cannot be drawn must not end a run
            self._failed(turn.client, error)
        self.turns.done(turn, step, time.perf_counter() - began)

    def _picture(self, turn: Turn, step: int, splats: Splats) -> Picture:
        studio = Studio(splats, self.raster, self.scene, step, self.ages)
        return studio.picture(turn.wish.camera.camera(turn.width, turn.height), turn.wish.mode, turn.wish.box)

    def _shoot(self, client: int, step: int, splats: Splats) -> None:
        """A client's picture at the size of its canvas, as a PNG in the run's folder."""
        place = self.turns.places.get(client)
        if place is None or place.wish is None or self.page is None:
            return
        wish = place.wish
        try:
            picture = self._picture(Turn(client, wish, wish.width, wish.height, True, 0), step, splats)
            path = _fresh(self.folder / "snapshots", f"step_{step:08d}_{wish.mode}")
            save_png(path, picture.image)
            self.page.tell(client, "Snapshot", str(path))
        except Exception as error:
            self._failed(client, error)

    def _failed(self, client: int, error: Exception) -> None:
        """Tell a client, once, what could not be done for it; what is no matter of its settings, all."""
        line = " ".join(str(error).split())[:300] or type(error).__name__
        if client not in self.turns.places or self._told.get(client) == line:
            return
        self._told[client] = line
        if not isinstance(error, ValueError):
            warnings.warn(f"viewer: not drawn: {line}", stacklevel=2)
        if self.page is not None:
            self.page.tell(client, "Not drawn", line)

    def _aim(self, splats: Splats) -> None:
        """Let cameras that learn be where they are now."""
        now = time.monotonic()
        if self.poses is None or not self.poses.learns or now < self._aimed or self.page is None:
            return
        self._aimed = now + AIM
        views = self.poses.rig(self._given, splats, self._given.train).train
        self.scene = self._given.moved([view.camera.to("cpu") for view in views])
        self.page.aim([view.camera for view in self.scene.train])

    def _count(self, done: int) -> None:
        """Keep the pace."""
        steps, since = self._before
        now = time.monotonic()
        if 0 < done - steps < 1000 and now > since:
            pace = (done - steps) / (now - since)
            self._pace = MEMORY * self._pace + (1 - MEMORY) * pace if self._pace else pace
        self._before = (done, now)

    def _tell(self, step: int, splats: Splats, training: bool) -> None:
        """Status and curves, now and then."""
        now = time.monotonic()
        if now < self._news or self.page is None or not self.turns.places:
            return
        self._news = now + NEWS
        last = self.curves.last
        parts = [f"**step {step:,}** of {self.steps:,}", f"**{len(splats):,}** Gaussians"]
        if "psnr_mean" in last:
            parts.append(f"training view {last['psnr_mean']:.2f} dB")
        if "test_psnr" in last:
            parts.append(f"held-out {last['test_psnr']:.2f} dB")
        if training and self._pace:
            parts.append(f"{self._pace:.0f} steps/s")
        try:
            self.page.status(" · ".join(parts), self.controls.paused)
            self.page.draw(self.curves)
        except Exception as error:
            warnings.warn(f"viewer: {error!r}", stacklevel=2)


def _fresh(folder: Path, stem: str) -> Path:
    """A file that is not there yet."""
    number, path = 1, folder / f"{stem}.png"
    while path.exists():
        number += 1
        path = folder / f"{stem}_{number}.png"
    return path
