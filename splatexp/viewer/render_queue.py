"""Whose picture is drawn next: what many clients want to see, of which only the newest counts.

Nothing here knows of a browser or of Gaussians. Clients ask from threads of their own; one thread draws.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

COARSE = 0.04  # seconds that a picture may take while its camera moves
STILL = 0.25  # seconds without a change after which a sharp picture is due
BROWSER = 5.0  # seconds between two sendings of Gaussians that the browser draws, while it trains
LEAST = 1 / 64  # share of the pixels that a picture has at least
MEMORY = 0.7  # of the moving average of seconds per pixel


@dataclass(frozen=True, eq=False)
class Wish:
    """What a client wants to see."""

    camera: Any = None  # see `cameras.seen`
    width: int = 0  # px of the client's canvas
    height: int = 0
    mode: str = "colour"
    box: Any = None  # (low [3], high [3]) in the world: what lies outside is not drawn; None: all is
    browser: bool = False  # the client draws the Gaussians itself


@dataclass(frozen=True)
class Turn:
    """A client whose picture is to be drawn, and how large."""

    client: int
    wish: Wish
    width: int
    height: int
    sharp: bool  # else it is one on the way
    asked: int


@dataclass
class _Place:
    """What is known of a client."""

    wish: Wish | None = None
    asked: int = 0  # wishes so far
    at: float = 0.0  # when the last came
    drawn: int = 0  # the wish that was drawn last
    when: float = -1e9
    step: int = -1
    sharp: bool = False


class Turns:
    """The clients, and the time that may go into drawing for them.

    Args:
        share: of the time, while it trains: after a picture that took t seconds there is none for
            t (1 - share) / share.
        refresh: seconds between two pictures of one view whose step has changed.
        longest: px, the longer side of a picture.
    """

    def __init__(
        self, share: float, refresh: float, longest: int, clock: Callable[[], float] = time.monotonic
    ):
        self.share, self.refresh, self.longest, self.clock = share, refresh, longest, clock
        self.lock = threading.Lock()
        self.places: dict[int, _Place] = {}
        self.free = 0.0  # from when on drawing is allowed while it trains
        self.left = clock()  # when the last client went
        self.pace: dict[str, float] = {}  # mode -> seconds per pixel

    def __len__(self) -> int:
        return len(self.places)

    def join(self, client: int) -> None:
        """A client has come."""
        with self.lock:
            self.places[client] = _Place()

    def leave(self, client: int) -> None:
        """A client is gone."""
        with self.lock:
            self.places.pop(client, None)
            self.left = self.clock()

    def ask(self, client: int, wish: Wish) -> None:
        """A client wants to see this; what it wanted before no longer counts."""
        with self.lock:
            place = self.places.get(client)
            if place is not None:
                place.wish, place.asked, place.at = wish, place.asked + 1, self.clock()

    def alone_for(self) -> float:
        """Seconds since the last client went; 0 while there are some."""
        return 0.0 if self.places else self.clock() - self.left

    def next(self, step: int, training: bool) -> Turn | None:
        """Whose turn it is: of all to whom something is due the one that has waited longest; None: nobody's.

        step: of the Gaussians. training: then only a share of the time may go into pictures.
        """
        now = self.clock()
        if training and now < self.free:
            return None
        with self.lock:
            due = [
                (place.when, client) for client, place in self.places.items() if self._due(place, now, step)
            ]
            if not due:
                return None
            client = min(due)[1]
            place = self.places[client]
            assert place.wish is not None
            sharp = now - place.at >= STILL or place.wish.browser
            width, height = self._size(place.wish, sharp)
            return Turn(client, place.wish, width, height, sharp, place.asked)

    def done(self, turn: Turn, step: int, seconds: float) -> None:
        """A picture has been drawn, sent or given up, and took so long."""
        now = self.clock()
        self.free = now + seconds * (1 - self.share) / self.share
        pace = seconds / max(1, turn.width * turn.height)
        before = self.pace.get(turn.wish.mode, pace)
        with self.lock:
            if not turn.wish.browser:
                self.pace[turn.wish.mode] = MEMORY * before + (1 - MEMORY) * pace
            place = self.places.get(turn.client)
            if place is not None:
                place.drawn, place.when, place.step, place.sharp = turn.asked, now, step, turn.sharp

    def _due(self, place: _Place, now: float, step: int) -> bool:
        """Whether a client is to get a picture."""
        if place.wish is None:
            return False
        if place.drawn != place.asked or not place.sharp and now - place.at >= STILL:
            return True
        every = max(BROWSER, self.refresh) if place.wish.browser else self.refresh
        return place.step != step and now - place.when >= every

    def _size(self, wish: Wish, sharp: bool) -> tuple[int, int]:
        """Width and height px: the canvas, or so many pixels that it is quick."""
        scale = min(1.0, self.longest / max(1, wish.width, wish.height))
        if not sharp:
            takes = self.pace.get(wish.mode, 0.0) * wish.width * wish.height * scale**2
            scale *= max(LEAST, min(1.0, COARSE / max(takes, 1e-9))) ** 0.5
        return max(1, round(wish.width * scale)), max(1, round(wish.height * scale))
