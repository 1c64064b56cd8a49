"""The curves of a run that the page plots: a short history of what the run logs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from splatexp.settings.renames import new_column
from splatexp.tracking import Tracker

TRAIN_PSNR = "train/psnr_mean"  # moving average over the logged rows
EVAL_PSNR = "eval/psnr"
CURVES = {  # name of the logged number -> title of its plot
    "num_gaussians": "Gaussians",
    TRAIN_PSNR: "PSNR of training views, dB",
    EVAL_PSNR: "PSNR of held-out views, dB",
    "train/loss_mean": "Loss",
}
MAX_ROWS = 1000  # beyond this every other row is dropped, except for rows with held-out values


class CurveHistory(Tracker):
    """A tracker that keeps the rows which the plots show."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []  # step (from 1), and values by name

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a row, or add to the last one where it is of the same step."""
        values = {name: float(scalars[name]) for name in CURVES if name in scalars}
        if not values:
            return
        if self.rows and self.rows[-1][0] == step + 1:
            self.rows[-1][1].update(values)
            return
        self.rows.append((step + 1, values))
        if len(self.rows) > MAX_ROWS:
            keep = [index % 2 == 0 or EVAL_PSNR in row[1] for index, row in enumerate(self.rows)]
            self.rows = [row for row, kept in zip(self.rows, keep, strict=True) if kept]

    @property
    def latest(self) -> dict[str, float]:
        """The newest value of each curve."""
        found: dict[str, float] = {}
        for _, values in reversed(self.rows[-20:]):
            found = values | found
        return found

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and the values of a curve, both float64 [K]."""
        rows = [(step, values[name]) for step, values in list(self.rows) if name in values]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()


def read_curves(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the rows of a run's metrics.csv, also of an earlier version's; none where there is no file."""
    rows: list[tuple[int, dict[str, float]]] = []
    try:
        with open(folder / "metrics.csv", encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                cells = {new_column(name): text for name, text in row.items() if name is not None}
                values = {name: number for name in CURVES if (number := _number(cells.get(name))) is not None}
                step = _number(cells.get("step"))
                if step is not None and values:
                    rows.append((int(step) + 1, values))
    except FileNotFoundError:
        return []
    return rows


def _number(text: str | None) -> float | None:
    """Return the number in a cell, or None where it holds no finite number."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
