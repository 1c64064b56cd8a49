"""The queue of what clients want to see: only the newest request of each counts.

Nothing here knows of browsers or of Gaussians. Clients put in requests from threads of their own, and one
thread renders.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOVING_SECONDS = 0.04  # time that an image may take while its camera moves
SETTLE_SECONDS = 0.25  # after so long without a change an image of full resolution is due
BROWSER_SECONDS = 5.0  # between two transfers of Gaussians that a browser renders itself, in training
MIN_PIXEL_FRACTION = 1 / 64  # an image has at least this fraction of the pixels of full resolution
EMA_DECAY = 0.7  # of the moving average of seconds per pixel


@dataclass(frozen=True, eq=False)
class ViewRequest:
    """The view that a client wants to see."""

    camera: Any = None  # a `pose.Pose`
    width: int = 0  # of the client's canvas, px
    height: int = 0
    mode: str = "colour"
    box: Any = None  # (low [3], high [3]) in the world: Gaussians outside are left out; None leaves out none
    browser: bool = False  # the client renders the Gaussians itself


@dataclass(frozen=True)
class RenderJob:
    """An image that is due: for which client, and how large."""

    client: int
    request: ViewRequest
    width: int
    height: int
    sharp: bool  # of full resolution; otherwise reduced, while the camera moves
    serial: int  # number of the client's request


@dataclass
class _ClientState:
    """The last request of a client, and the last image that it got."""

    request: ViewRequest | None = None
    requested: int = 0  # number of requests so far
    requested_at: float = 0.0
    rendered: int = 0  # number of the request that was rendered last
    rendered_at: float = -1e9
    step: int = -1  # of the Gaussians in the last image
    sharp: bool = False  # whether the last image had full resolution


class RenderQueue:
    """The requests of all clients, and the time that may be spent on rendering for them.

    Args:
        max_time_fraction: of the time, in training: after an image that took t seconds no other is rendered
            for t (1 - fraction) / fraction seconds.
        refresh_seconds: time between two images of a view that does not move, when the step has changed.
        max_resolution: longer side of an image, px.
    """

    def __init__(
        self,
        max_time_fraction: float,
        refresh_seconds: float,
        max_resolution: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_time_fraction = max_time_fraction
        self.refresh_seconds = refresh_seconds
        self.max_resolution = max_resolution
        self.clock = clock
        self.lock = threading.Lock()
        self.clients: dict[int, _ClientState] = {}
        self.free = 0.0  # time from which on rendering is allowed in training
        self.last_left = clock()  # time at which the last client left
        self.seconds_per_pixel: dict[str, float] = {}  # by mode

    def __len__(self) -> int:
        return len(self.clients)

    def add_client(self, client: int) -> None:
        """Add a client that has connected."""
        with self.lock:
            self.clients[client] = _ClientState()

    def remove_client(self, client: int) -> None:
        """Remove a client that has disconnected."""
        with self.lock:
            self.clients.pop(client, None)
            self.last_left = self.clock()

    def request(self, client: int, request: ViewRequest) -> None:
        """Put in what a client wants to see; it replaces the client's earlier request."""
        with self.lock:
            state = self.clients.get(client)
            if state is not None:
                state.request = request
                state.requested += 1
                state.requested_at = self.clock()

    def seconds_without_clients(self) -> float:
        """Return the seconds since the last client left; 0 while there are clients."""
        return 0.0 if self.clients else self.clock() - self.last_left

    def next_job(self, step: int, training: bool) -> RenderJob | None:
        """Return the image to render next, or None where none is due.

        Of all clients for which an image is due, the one that has waited longest comes first.

        step: of the Gaussians. training: only a fraction of the time may be spent on rendering then.
        """
        now = self.clock()
        if training and now < self.free:
            return None
        with self.lock:
            due = [
                (state.rendered_at, client)
                for client, state in self.clients.items()
                if self._is_due(state, now, step)
            ]
            if not due:
                return None
            client = min(due)[1]
            state = self.clients[client]
            assert state.request is not None
            sharp = now - state.requested_at >= SETTLE_SECONDS or state.request.browser
            width, height = self._size(state.request, sharp)
            return RenderJob(client, state.request, width, height, sharp, state.requested)

    def finish_job(self, job: RenderJob, step: int, seconds: float) -> None:
        """Note that an image has been rendered, sent or given up, and how long that took."""
        now = self.clock()
        self.free = now + seconds * (1 - self.max_time_fraction) / self.max_time_fraction
        latest = seconds / max(1, job.width * job.height)
        before = self.seconds_per_pixel.get(job.request.mode, latest)
        with self.lock:
            if not job.request.browser:
                self.seconds_per_pixel[job.request.mode] = EMA_DECAY * before + (1 - EMA_DECAY) * latest
            state = self.clients.get(job.client)
            if state is not None:
                state.rendered = job.serial
                state.rendered_at = now
                state.step = step
                state.sharp = job.sharp

    def _is_due(self, state: _ClientState, now: float, step: int) -> bool:
        """Return whether a client is to get an image."""
        if state.request is None:
            return False
        if state.rendered != state.requested:
            return True
        if not state.sharp and now - state.requested_at >= SETTLE_SECONDS:
            return True
        pause = max(BROWSER_SECONDS, self.refresh_seconds) if state.request.browser else self.refresh_seconds
        return state.step != step and now - state.rendered_at >= pause

    def _size(self, request: ViewRequest, sharp: bool) -> tuple[int, int]:
        """Return width and height, px: those of the canvas, or fewer where the image has to be quick."""
        scale = min(1.0, self.max_resolution / max(1, request.width, request.height))
        if not sharp:
            pixels = request.width * request.height * scale**2
            seconds = self.seconds_per_pixel.get(request.mode, 0.0) * pixels
            scale *= max(MIN_PIXEL_FRACTION, min(1.0, MOVING_SECONDS / max(seconds, 1e-9))) ** 0.5
        return max(1, round(request.width * scale)), max(1, round(request.height * scale))
