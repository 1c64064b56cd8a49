"""CSV files that grow with a run, and that a run which was killed can take up again."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from splatexp.io.append import Growing
from splatexp.io.atomic import replaced
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker

PLAIN = {int, float, type(None)}  # what is written as it is


@dataclass
class Csv(Tracker):
    """metrics.csv: a row for each logged step; what comes late widens the table or completes its last row.

    A table of several rows gets a file of its own, such as per_view.csv.
    """

    def start(self, session: Session) -> None:
        """A table with the rows that still hold: none, but in a resumed run."""
        self._session = session
        self._metrics = Table(session.folder / "metrics.csv", session.start)
        self._tables: dict[str, Table] = {}

    def log(self, step: int, scalars: Scalars) -> None:
        """A row."""
        self._metrics.add({"step": step, **scalars}, complete=True)

    def table(self, step: int, name: str, rows: Rows) -> None:
        """A row for each, with the step in front."""
        if name not in self._tables:
            path = self._session.folder / f"{name}.csv"
            self._tables[name] = Table(path, min(step, self._session.start))
        for row in rows:
            self._tables[name].add({"step": step, **row})

    def finish(self, exit_code: int) -> None:
        """Every row is on disk already."""
        for table in (self._metrics, *self._tables.values()):
            table.close()


class Table:
    """A CSV file whose first column is the step.

    A row is one write, so that whatever ends the process tears the last line at most. All else replaces
    the file as a whole: it is read back then, as rows are not kept in memory.
    """

    def __init__(self, path: Path, start: int = 0):
        self._path, self._last = path, dict[str, Any]()
        rows = _read(path, start) if start else []
        self._names = {"step": None}  # a set that keeps its order
        if rows:  # without the columns that only void rows had
            self._names = {name: None for name in rows[0] if any(row[name] for row in rows)}
            self._last = rows[-1]
        self._replace([_line(self._names), *(_line([row[name] for name in self._names]) for row in rows)])

    def add(self, row: Mapping[str, Any], complete: bool = False) -> None:
        """Write a row down; `complete`: if it has the step of the last row, as a part of that one.

        Raises: OSError.
        """
        again = complete and str(self._last.get("step")) == str(row["step"])
        self._last = {**self._last, **row} if again else dict(row)
        late = [name for name in row if name not in self._names]
        self._names |= dict.fromkeys(late)
        line = _line([self._last.get(name) for name in self._names])
        if not late and not again:
            return self._end.add(line.encode())
        lines = self._path.read_text(encoding="utf-8").split("\n")[1:-1]
        kept = [text + "," * len(late) + "\n" for text in (lines[:-1] if again else lines)]
        self._end.close()
        self._replace([_line(self._names), *kept, line])

    def close(self) -> None:
        """No more rows."""
        self._end.close()

    def _replace(self, lines: list[str]) -> None:
        with replaced(self._path) as temp, open(temp, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        self._end = Growing(self._path)


def _read(path: Path, stop: int) -> list[dict[str, str]]:
    """The rows of steps before `stop` that are whole; of a file that is no such table none, and it is kept.

    Raises: OSError.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return []
    lines = [_cells(line) for line in text.split("\n")[:-1]]  # the end of the last one may be torn off
    names = lines[0] if lines else []
    if names[:1] != ["step"] or len({*names}) < len(names):
        if text.strip():
            aside = path.with_suffix(f".damaged{path.suffix}")
            os.replace(path, aside)
            warnings.warn(
                f"{path.name} cannot be read and is begun anew; it is now {aside.name}", stacklevel=2
            )
        return []
    whole = [cells for cells in lines[1:] if len(cells) == len(names) and cells[0].isdecimal()]
    return [dict(zip(names, cells, strict=True)) for cells in whole if int(cells[0]) < stop]


def _cells(line: str) -> list[str]:
    """A line apart; [] for one that no table holds, such as zeros after a power failure."""
    try:
        return next(csv.reader([line], strict=True)) if line.isprintable() else []
    except (csv.Error, StopIteration):
        return []


def _line(cells: Iterable[Any]) -> str:
    """Values as a line, with its end; None is an empty cell."""
    file = StringIO()
    csv.writer(file, lineterminator="\n").writerow([c if type(c) in PLAIN else _plain(c) for c in cells])
    return file.getvalue()


def _plain(value: Any) -> Any:
    """A value that is written as it reads, in one line."""
    return value.item() if hasattr(value, "item") else str(value).replace("\n", " ")
