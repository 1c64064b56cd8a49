"""The tracker `csv`: CSV files that a resumed run continues, also after it was killed."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from splatexp.io.append import AppendFile
from splatexp.io.atomic import atomic_write
from splatexp.settings.renames import new_column
from splatexp.tracking.tracker import Rows, Scalars, Session, Tracker

PLAIN_TYPES = {int, float, type(None)}  # types whose values csv writes as they are


@dataclass
class Csv(Tracker):
    """The file metrics.csv, with a row for each logged step, and a file for each table, such as per_view.csv.

    A name that is logged for the first time adds a column; numbers of the last step complete its row.
    """

    def start(self, session: Session) -> None:
        """Open metrics.csv; a resumed run keeps the rows before its first step."""
        self._session = session
        self._metrics = Table(session.folder / "metrics.csv", session.start, new_column)
        self._tables: dict[str, Table] = {}

    def log(self, step: int, scalars: Scalars) -> None:
        """Write a row, or complete the last one."""
        self._metrics.add({"step": step, **scalars}, complete=True)

    def log_table(self, step: int, name: str, rows: Rows) -> None:
        """Write each row to the file of the table, with the step in front."""
        if name not in self._tables:
            path = self._session.folder / f"{name}.csv"
            self._tables[name] = Table(path, min(step, self._session.start))
        for row in rows:
            self._tables[name].add({"step": step, **row})

    def finish(self, exit_code: int) -> None:
        """Close the files; every row is on disk already."""
        for table in (self._metrics, *self._tables.values()):
            table.close()


class Table:
    """A CSV file whose first column is the step.

    A row is appended in one write, so whatever ends the process, only the last line can be incomplete. A new
    column or a completed row replaces the whole file, which is read back then: rows are not kept in memory.

    Args:
        start: a first step; rows before it that an earlier session has written are kept.
        new_name: returns what a column of an earlier version is called now.
    """

    def __init__(self, path: Path, start: int = 0, new_name: Callable[[str], str] = str):
        self._path = path
        self._last: dict[str, Any] = {}  # the last row
        self._names: dict[str, None] = {"step": None}  # the columns, as a set that keeps its order
        rows = _read_rows(path, start, new_name) if start else []
        if rows:  # a column that has values only in dropped rows goes
            self._names = {name: None for name in rows[0] if any(row[name] for row in rows)}
            self._last = rows[-1]
        lines = [_format_line([row[name] for name in self._names]) for row in rows]
        self._replace([_format_line(self._names), *lines])

    def add(self, row: Mapping[str, Any], complete: bool = False) -> None:
        """Write a row.

        complete: add the values to the last row, if that is of the same step.
        Raises: OSError.
        """
        same_step = complete and str(self._last.get("step")) == str(row["step"])
        self._last = {**self._last, **row} if same_step else dict(row)
        new_names = [name for name in row if name not in self._names]
        self._names |= dict.fromkeys(new_names)
        line = _format_line([self._last.get(name) for name in self._names])
        if not new_names and not same_step:
            return self._end.append(line.encode())
        lines = self._path.read_text(encoding="utf-8").split("\n")[1:-1]
        kept = [text + "," * len(new_names) + "\n" for text in (lines[:-1] if same_step else lines)]
        self._end.close()
        self._replace([_format_line(self._names), *kept, line])

    def close(self) -> None:
        """Close the file."""
        self._end.close()

    def _replace(self, lines: list[str]) -> None:
        """Replace the whole file, and open it for appending."""
        with atomic_write(self._path) as temp, open(temp, "w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        self._end = AppendFile(self._path)


def _read_rows(path: Path, stop: int, new_name: Callable[[str], str]) -> list[dict[str, str]]:
    """Return the complete rows of steps before `stop`.

    A file that is not such a table is moved aside with a warning.

    Raises: OSError.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return []
    lines = [_parse_line(line) for line in text.split("\n")[:-1]]  # the end of the last one may be missing
    names = [new_name(name) for name in lines[0]] if lines else []
    if names[:1] != ["step"] or len({*names}) < len(names):
        if text.strip():
            damaged = path.with_suffix(f".damaged{path.suffix}")
            os.replace(path, damaged)
            warnings.warn(f"{path.name} cannot be read; it was renamed to {damaged.name}", stacklevel=2)
        return []
    complete = [cells for cells in lines[1:] if len(cells) == len(names) and cells[0].isdecimal()]
    return [dict(zip(names, cells, strict=True)) for cells in complete if int(cells[0]) < stop]


def _parse_line(line: str) -> list[str]:
    """Return the cells of a line; [] for one that is not text, such as zeros after a power failure."""
    try:
        return next(csv.reader([line], strict=True)) if line.isprintable() else []
    except (csv.Error, StopIteration):
        return []


def _format_line(cells: Iterable[Any]) -> str:
    """Return values as a line of CSV with its line feed; None is an empty cell."""
    file = StringIO()
    values = [cell if type(cell) in PLAIN_TYPES else _plain(cell) for cell in cells]
    csv.writer(file, lineterminator="\n").writerow(values)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """Return a number of numpy or torch as a Python number, and anything else as text in one line."""
    return value.item() if hasattr(value, "item") else str(value).replace("\n", " ")
