"""The curves of a run: what it logs, kept short however long it is."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from splatexp.tracking import Tracker

PANELS = {  # name in the log -> the title of its panel
    "num_gaussians": "Gaussians",
    "psnr_mean": "PSNR of training views, dB",
    "test_psnr": "PSNR of held-out views, dB",
    "loss_mean": "Loss",
}
KEPT = 1000  # rows at most; then every other one is dropped, but for rows with held-out values


class Curves(Tracker):
    """The rows of a run that its panels show; like any tracker it cannot fail the run."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []  # step from 1, values by name

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """A row, or more of the last one."""
        values = {name: float(scalars[name]) for name in PANELS if name in scalars}
        if not values:
            return
        if self.rows and self.rows[-1][0] == step + 1:
            self.rows[-1][1].update(values)
            return
        self.rows.append((step + 1, values))
        if len(self.rows) > KEPT:
            rare = [index % 2 == 0 or "test_psnr" in row[1] for index, row in enumerate(self.rows)]
            self.rows = [row for row, kept in zip(self.rows, rare, strict=True) if kept]

    @property
    def last(self) -> dict[str, float]:
        """The newest value of each curve."""
        found: dict[str, float] = {}
        for _, values in reversed(self.rows[-20:]):
            found = values | found
        return found

    def panel(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a curve, float64."""
        rows = [(step, values[name]) for step, values in list(self.rows) if name in values]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].copy()


def read(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows in a run's metrics.csv; none where it has no such file."""
    rows: list[tuple[int, dict[str, float]]] = []
    try:
        with open(folder / "metrics.csv", encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                values = {name: number for name in PANELS if (number := _number(row.get(name))) is not None}
                step = _number(row.get("step"))
                if step is not None and values:
                    rows.append((int(step) + 1, values))
    except FileNotFoundError:
        return []
    return rows


def _number(text: str | None) -> float | None:
    """A cell; None where it holds no finite number."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
