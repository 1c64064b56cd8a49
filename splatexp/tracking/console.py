"""What a person at the screen wants to know."""

import time
from dataclasses import dataclass

from splatexp.settings.checks import check_range
from splatexp.tracking.tracker import Scalars, Session, Tracker

SHOWN = ("loss", "psnr", "ssim", "num_gaussians", "steps_per_second")  # and test_*; the rest is for tables


@dataclass
class Console(Tracker):
    """The progress bar; where the output is no terminal, a line now and then in its place."""

    seconds: float = 10.0  # at least so many between two lines

    def __post_init__(self) -> None:
        check_range("tracker.console.seconds", self.seconds, 0)

    def start(self, session: Session) -> None:
        """Say where the run lies."""
        from rich.console import Console as Screen

        self._screen = Screen(stderr=True)
        self._steps, self._next = session.steps, 0.0
        resumed = f"  from step {session.start}" if session.start else ""
        self._screen.out(f"{session.folder}{resumed}", highlight=False)

    def log(self, step: int, scalars: Scalars) -> None:
        """A line, if it is time; held-out values are rare and always shown."""
        tests = [name for name in scalars if name.startswith("test_")]
        names = [name for name in SHOWN if name in scalars] + tests
        last = step + 1 >= self._steps
        early = time.monotonic() < self._next and not (last or tests)
        if self._screen.is_terminal or early or not names:
            return
        self._next = time.monotonic() + self.seconds
        numbers = "  ".join(f"{name} {_short(scalars[name])}" for name in names)
        self._screen.out(f"{step + 1}/{self._steps}  {numbers}", highlight=False)


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
