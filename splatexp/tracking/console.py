"""The tracker `console`: progress on the terminal."""

import time
from dataclasses import dataclass

from splatexp.settings.checks import check_range
from splatexp.tracking.tracker import Scalars, Session, Tracker

# the numbers of a printed line, besides the held-out metrics
PRINTED = ("train/loss", "train/psnr", "train/ssim", "num_gaussians", "steps_per_second")


@dataclass
class Console(Tracker):
    """A progress bar, or a line from time to time where the output is not a terminal."""

    interval_seconds: float = 10.0  # least time between two lines

    def __post_init__(self) -> None:
        check_range("tracker.console.interval_seconds", self.interval_seconds, 0)

    def start(self, session: Session) -> None:
        """Print the folder of the run."""
        from rich.console import Console as RichConsole

        self._console = RichConsole(stderr=True)
        self._steps = session.steps
        self._next_line = 0.0  # time from which on a line may be printed
        resumed = f"  from step {session.start}" if session.start else ""
        self._console.out(f"{session.folder}{resumed}", highlight=False)

    def log(self, step: int, scalars: Scalars) -> None:
        """Print a line, if it is time; held-out metrics are rare and are always printed."""
        held_out = [name for name in scalars if name.startswith("eval/")]
        names = [name for name in PRINTED if name in scalars] + held_out
        is_last = step + 1 >= self._steps
        is_early = time.monotonic() < self._next_line and not (is_last or held_out)
        if self._console.is_terminal or is_early or not names:
            return
        self._next_line = time.monotonic() + self.interval_seconds
        numbers = "  ".join(f"{name} {_format_number(scalars[name])}" for name in names)
        self._console.out(f"{step + 1}/{self._steps}  {numbers}", highlight=False)


def _format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
