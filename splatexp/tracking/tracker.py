"""The interface of trackers, and a group of trackers whose errors do not end a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.settings.messages import first_line

if TYPE_CHECKING:
    import numpy as np

Scalars = Mapping[str, float]
Rows = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class Session:
    """One session of a run: from its start or a checkpoint to its end or an interruption."""

    id: str  # identity of the run, 16 hex digits, the same in all its sessions
    folder: Path
    config: dict[str, Any]  # resolved, plain values
    steps: int
    start: int = 0  # first step; what earlier sessions logged of this and later steps is void
    provenance: dict[str, Any] = field(default_factory=dict)  # versions and hashes of code, data and machine


class Tracker:
    """A destination of what a run logs. A method that a subclass does not override ignores its arguments.

    A run calls `start`, then `log`, `log_image`, `log_table` and `log_file` any number of times, and then
    `finish`.
    """

    def start(self, session: Session) -> None:
        """Start or resume a run."""

    def log(self, step: int, scalars: Scalars) -> None:
        """Log numbers of a step (from 0) by name; a step may have more than one call."""

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8 [H,W,3]."""

    def log_table(self, step: int, name: str, rows: Rows) -> None:
        """Log rows of named values, such as the metrics of each view."""

    def log_file(self, path: Path) -> None:
        """Log a file, such as the model, which is not changed afterwards."""

    def finish(self, exit_code: int) -> None:
        """Finish the session.

        exit_code: 0 for success, 1 for an error, 128 + n for a stop by signal n.
        """


class Trackers(Tracker):
    """A group of trackers that never raises: a tracker that fails is removed with a warning."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self.active = dict(trackers)

    def start(self, session: Session) -> None:
        """See `Tracker.start`."""
        self._call("start", session)

    def log(self, step: int, scalars: Scalars) -> None:
        """See `Tracker.log`."""
        self._call("log", step, scalars)

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """See `Tracker.log_image`."""
        self._call("log_image", step, name, image)

    def log_table(self, step: int, name: str, rows: Rows) -> None:
        """See `Tracker.log_table`."""
        self._call("log_table", step, name, rows)

    def log_file(self, path: Path) -> None:
        """See `Tracker.log_file`."""
        self._call("log_file", path)

    def finish(self, exit_code: int) -> None:
        """See `Tracker.finish`."""
        self._call("finish", exit_code)

    def _call(self, method: str, *values: Any) -> None:
        for name, tracker in list(self.active.items()):
            try:
                getattr(tracker, method)(*values)
            except Exception as error:  # KeyboardInterrupt is no Exception
                del self.active[name]
                warnings.warn(
                    f"tracker {name} failed and is removed, the run continues: {first_line(error)}",
                    stacklevel=3,
                )


def columns(rows: Rows) -> list[str]:
    """Return all names in the rows, in the order of their first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))
