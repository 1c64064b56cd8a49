"""Where the numbers of a run go while it runs: any number of trackers, none of which can fail it."""

from __future__ import annotations

import csv
import netrc
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

from splatexp.atomic import replaced
from splatexp.choices import check_choice, check_range

if TYPE_CHECKING:
    import numpy as np

Scalars = Mapping[str, float]


class Tracker(Protocol):
    """A place for numbers; called in the order start, any number of log and image, finish."""

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """A run begins: its settings as plain values, and its folder."""

    def log(self, step: int, scalars: Scalars) -> None:
        """Numbers of a step (from 0), by name."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture, uint8 [H,W,3]."""

    def finish(self, exit_code: int) -> None:
        """The run is over; 0: it went well."""


class Trackers:
    """Trackers as one that never raises: one that does is dropped with a warning, and the run goes on."""

    def __init__(self, trackers: Mapping[str, Tracker]):
        self.live = dict(trackers)

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """As `Tracker.start`."""
        self._tell("start", config, folder)

    def log(self, step: int, scalars: Scalars) -> None:
        """As `Tracker.log`."""
        self._tell("log", step, scalars)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """As `Tracker.image`."""
        self._tell("image", step, name, picture)

    def finish(self, exit_code: int) -> None:
        """As `Tracker.finish`."""
        self._tell("finish", exit_code)

    def _tell(self, what: str, *values: Any) -> None:
        for name, tracker in list(self.live.items()):
            try:
                getattr(tracker, what)(*values)
            except Exception as error:
                del self.live[name]
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                warnings.warn(f"tracker {name} is dropped, the run goes on: {reason}", stacklevel=3)


@dataclass
class Console:
    """The progress bar; where the output is no terminal, a line now and then in its place."""

    seconds: float = 10.0  # at least so many between two lines

    def __post_init__(self) -> None:
        check_range("tracker.console.seconds", self.seconds, 0)

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """Say where the run lies."""
        from rich.console import Console as Screen

        self._screen = Screen(stderr=True)
        self._steps, self._next = config["steps"], 0.0
        self._screen.out(str(folder), highlight=False)

    def log(self, step: int, scalars: Scalars) -> None:
        """A line, if it is time; learning rates are for the other trackers."""
        last = step + 1 >= self._steps
        if self._screen.is_terminal or (time.monotonic() < self._next and not last):
            return
        self._next = time.monotonic() + self.seconds
        numbers = "  ".join(
            f"{name} {value:.5g}" for name, value in scalars.items() if not name.startswith("lr_")
        )
        self._screen.out(f"{step + 1}/{self._steps}  {numbers}", highlight=False)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Nothing to see here."""

    def finish(self, exit_code: int) -> None:
        """The bar has gone by itself."""


@dataclass
class Csv:
    """metrics.csv: a row for each logged step; what comes late widens the table or completes its last row."""

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """An empty table."""
        self._path = folder / "metrics.csv"
        self._names, self._rows = ["step"], []
        self._write()

    def log(self, step: int, scalars: Scalars) -> None:
        """A row."""
        row = {"step": step, **scalars}
        again = bool(self._rows) and self._rows[-1]["step"] == step
        self._rows += [self._rows.pop() | row if again else row]
        late = [name for name in row if name not in self._names]
        if late or again:
            self._names += late
            return self._write()
        with open(self._path, "a", encoding="utf-8", newline="") as file:
            self._writer(file).writerow(row)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A table has no place for pictures."""

    def finish(self, exit_code: int) -> None:
        """Every row is on disk already."""

    def _write(self) -> None:
        with replaced(self._path) as temp, open(temp, "w", encoding="utf-8", newline="") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(self._rows)

    def _writer(self, file: Any) -> csv.DictWriter:
        return csv.DictWriter(file, self._names, lineterminator="\n")


@dataclass
class TensorBoard:
    """Event files under tensorboard/: `tensorboard --logdir multirun`."""

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """Open the event file."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on each curve."""
        self._add(step, [{"tag": name, "simple_value": float(value)} for name, value in scalars.items()])

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture."""
        from io import BytesIO

        from PIL import Image

        data = BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        size = {"height": picture.shape[0], "width": picture.shape[1], "colorspace": 3}
        self._add(step, [{"tag": name, "image": {**size, "encoded_image_string": data.getvalue()}}])

    def finish(self, exit_code: int) -> None:
        """Close the event file."""
        self._writer.close()

    def _add(self, step: int, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        events: Any = event_pb2  # what these modules hold is made at run time
        summaries: Any = summary_pb2
        summary = summaries.Summary(value=[summaries.Summary.Value(**value) for value in values])
        self._writer.add_event(events.Event(wall_time=time.time(), step=step, summary=summary))


@dataclass
class WandB:
    """Weights & Biases: online for who is logged in, else offline in wandb/ (`wandb sync` sends it later).

    mode: auto, online, offline. The environment variable WANDB_MODE wins over it.
    """

    project: str = "splatexp"
    name: str = ""  # "": wandb makes one up
    group: str = ""
    tags: list[str] | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        check_choice("tracker.wandb.mode", self.mode, ("auto", "online", "offline"))

    def start(self, config: dict[str, Any], folder: Path) -> None:
        """Begin a run of its own, also where a sweep has begun others in this process."""
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if _logged_in() else "offline"
        if mode == "offline":  # and nothing is sent at all: wandb would report on itself
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        quiet = wandb.Settings(silent=True, console="off", init_timeout=20)
        settings = {"project": self.project, "name": self.name or None, "group": self.group or None}
        settings |= {"tags": self.tags, "config": config, "dir": str(folder), "settings": quiet}
        settings |= {"reinit": "create_new"}
        try:
            self._run = wandb.init(mode=mode, **settings)
        except wandb.Error:  # no network: what is written offline can be sent later
            self._run = wandb.init(mode="offline", **settings)

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on each curve."""
        self._run.log(dict(scalars), step=step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture."""
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=step)

    def finish(self, exit_code: int) -> None:
        """Close the run."""
        self._run.finish(exit_code=exit_code)


def _logged_in() -> bool:
    """Whether wandb would find a key where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
