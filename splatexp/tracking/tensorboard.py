"""Event files for TensorBoard, written here: what is logged is on disk at once, and errors come at once."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from splatexp.io.append import Growing
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker, columns

if TYPE_CHECKING:
    import numpy as np


@dataclass
class TensorBoard(Tracker):
    """Event files under tensorboard/: `tensorboard --logdir multirun`."""

    def start(self, session: Session) -> None:
        """A new event file that takes back what earlier ones hold of steps from here on."""
        folder = session.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{time.time():017.6f}"  # files are read in the order of their names
        name = f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._end = Growing(folder / name)
        self._add(file_version="brain.Event:2")
        self._add(step=session.start, session_log={"status": "START"})
        self._text(session.start, "config", _json(session.config))
        self._text(session.start, "provenance", _json({"id": session.id, **session.facts}))

    def log(self, step: int, scalars: Scalars) -> None:
        """A point on each curve."""
        self._summary(step, [{"tag": name, "simple_value": float(scalars[name])} for name in scalars])

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture."""
        from PIL import Image

        data = BytesIO()
        Image.fromarray(picture).save(data, "PNG")
        size = {"height": picture.shape[0], "width": picture.shape[1], "colorspace": 3}
        self._summary(step, [{"tag": name, "image": {**size, "encoded_image_string": data.getvalue()}}])

    def table(self, step: int, name: str, rows: Rows) -> None:
        """A text that TensorBoard draws as a table."""
        names = columns(rows)
        lines = [names, ["---"] * len(names), *([_cell(row.get(n)) for n in names] for row in rows)]
        self._text(step, name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self, exit_code: int) -> None:
        """Every record is on disk already."""
        self._end.close()

    def _text(self, step: int, name: str, text: str) -> None:
        from tensorboard.plugins.text.metadata import create_summary_metadata

        tensor = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [text.encode()]}
        kind: Any = create_summary_metadata(display_name=name, description="")
        self._summary(step, [{"tag": name, "metadata": kind, "tensor": tensor}])

    def _summary(self, step: int, values: list[dict[str, Any]]) -> None:
        self._add(step=step, summary={"value": values})

    def _add(self, **event: Any) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        events: Any = event_pb2  # what this module holds is made at run time
        record = BytesIO()
        RecordWriter(record).write(events.Event(wall_time=time.time(), **event).SerializeToString())
        self._end.add(record.getvalue())


def _json(values: Mapping[str, Any]) -> str:
    """Settings as text that keeps its lines."""
    return f"```json\n{json.dumps(values, indent=2, default=str)}\n```"


def _cell(value: Any) -> str:
    return (
        f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value).replace("|", "/")
    )
