"""The bar that shows how training goes; redrawn a few times a second and never from a thread of its own."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Progress from `start` to `stop` steps; a context. Where nothing is to be shown it costs nothing."""

    def __init__(self, start: int, stop: int, show: bool = True, every: float = 0.4):
        self.every = every  # seconds
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

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.refresh()
        self.progress.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to draw again."""
        return not self.progress.disable and time.perf_counter() >= self.next

    def draw(self, done: int, values: str) -> None:
        """Show so many steps done and what there is to say of them."""
        self.progress.update(self.task, completed=done, values=values)
        self.progress.refresh()
        self.next = time.perf_counter() + self.every
