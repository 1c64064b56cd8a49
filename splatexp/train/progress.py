"""The progress bar of training. It is redrawn a few times a second, and never from a thread of its own."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBar:
    """A progress bar from step `start` to step `stop`, used as a context manager.

    Args:
        show: false makes all methods do nothing.
        every: seconds between two redraws.
    """

    def __init__(self, start: int, stop: int, show: bool = True, every: float = 0.4):
        self.every = every
        self.next = time.perf_counter()
        self.progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            auto_refresh=False,
            disable=not show,
        )
        self.task = self.progress.add_task("training", total=stop, completed=start, values="")

    def __enter__(self) -> "ProgressBar":
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.refresh()
        self.progress.stop()

    @property
    def due(self) -> bool:
        """Return whether it is time to redraw the bar."""
        return not self.progress.disable and time.perf_counter() >= self.next

    def draw(self, done: int, values: str) -> None:
        """Redraw the bar.

        Args:
            done: the number of steps done.
            values: text beside the bar.
        """
        self.progress.update(self.task, completed=done, values=values)
        self.progress.refresh()
        self.next = time.perf_counter() + self.every
