"""The tracker `tensorboard`: event files for TensorBoard.

TensorBoard's own writer has a queue and a thread. The records are written directly here, so that they are on
disk when a call returns, and errors are raised by the call that causes them.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from splatexp.io.append import AppendFile
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker, columns

if TYPE_CHECKING:
    import numpy as np


@dataclass
class TensorBoard(Tracker):
    """Event files in the folder tensorboard/ of a run; `tensorboard --logdir multirun` shows them."""

    def start(self, session: Session) -> None:
        """Start a new event file; it makes TensorBoard discard what earlier ones hold of later steps."""
        folder = session.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{time.time():017.6f}"  # TensorBoard reads files in the order of their names
        name = f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._end = AppendFile(folder / name)
        self._add(file_version="brain.Event:2")
        self._add(step=session.start, session_log={"status": "START"})
        self._text(session.start, "config", _json(session.config))
        self._text(session.start, "provenance", _json({"id": session.id, **session.provenance}))

    def log(self, step: int, scalars: Scalars) -> None:
        """Add a point to each curve."""
        self._summary(step, [{"tag": name, "simple_value": float(scalars[name])} for name in scalars])

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image, as PNG."""
        from PIL import Image

        data = BytesIO()
        Image.fromarray(image).save(data, "PNG")
        size = {"height": image.shape[0], "width": image.shape[1], "colorspace": 3}
        self._summary(step, [{"tag": name, "image": {**size, "encoded_image_string": data.getvalue()}}])

    def log_table(self, step: int, name: str, rows: Rows) -> None:
        """Write a Markdown table, which TensorBoard displays as text."""
        names = columns(rows)
        lines = [names, ["---"] * len(names), *([_cell(row.get(n)) for n in names] for row in rows)]
        self._text(step, name, "\n".join(f"| {' | '.join(line)} |" for line in lines))

    def finish(self, exit_code: int) -> None:
        """Close the file; every record is on disk already."""
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

        events: Any = event_pb2  # protobuf creates the contents of this module at run time
        record = BytesIO()
        RecordWriter(record).write(events.Event(wall_time=time.time(), **event).SerializeToString())
        self._end.append(record.getvalue())


def _json(values: Mapping[str, Any]) -> str:
    """Return values as a Markdown code block of JSON."""
    return f"```json\n{json.dumps(values, indent=2, default=str)}\n```"


def _cell(value: Any) -> str:
    """Return a value as a cell of a Markdown table."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value).replace("|", "/")
