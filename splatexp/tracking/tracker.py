"""What a tracker is told of a run, and many trackers as one that cannot fail it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Scalars = Mapping[str, float]
Rows = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class Session:
    """One stretch of a run, from its beginning or from a checkpoint to its end or an interruption."""

    id: str  # 16 hexadecimal digits: the run's own, the same in all its sessions
    folder: Path
    config: dict[str, Any]  # resolved, plain values
    steps: int
    start: int = 0  # the first step; rows of steps from here on that an earlier session wrote are void
    facts: dict[str, Any] = field(default_factory=dict)  # of code, data and machine


class Tracker:
    """A place for what a run has to say; each method that is not overridden ignores it.

    Called in the order start, any number of log, image, table and file, finish.
    """

    def start(self, session: Session) -> None:
        """A run begins, or goes on."""

    def log(self, step: int, scalars: Scalars) -> None:
        """Numbers of a step (from 0), by name; of the same step there may be more than one call."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [H,W,3]."""

    def table(self, step: int, name: str, rows: Rows) -> None:
        """Rows of named values, such as the metrics of each view."""

    def file(self, path: Path) -> None:
        """A result on disk, such as the model; it stays as it is."""

    def finish(self, exit_code: int) -> None:
        """The session is over; 0: all went well, 1: an error, 128 + n: stopped by signal n."""


class Trackers(Tracker):
    """Trackers as one that never raises: one that does is dropped with a warning, and the run goes on."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self.live = dict(trackers)

    def start(self, session: Session) -> None:
        """As `Tracker.start`."""
        self._tell("start", session)

    def log(self, step: int, scalars: Scalars) -> None:
        """As `Tracker.log`."""
        self._tell("log", step, scalars)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """As `Tracker.image`."""
        self._tell("image", step, name, picture)

    def table(self, step: int, name: str, rows: Rows) -> None:
        """As `Tracker.table`."""
        self._tell("table", step, name, rows)

    def file(self, path: Path) -> None:
        """As `Tracker.file`."""
        self._tell("file", path)

    def finish(self, exit_code: int) -> None:
        """As `Tracker.finish`."""
        self._tell("finish", exit_code)

    def _tell(self, what: str, *values: Any) -> None:
        for name, tracker in list(self.live.items()):
            try:
                getattr(tracker, what)(*values)
            except Exception as error:  # an interruption is none
                del self.live[name]
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"tracker {name} is dropped, the run goes on: {reason}", stacklevel=3)


def columns(rows: Rows) -> list[str]:
    """Every name in the rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row))
