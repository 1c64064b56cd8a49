"""A sweep on disk: sweep.json says what it is, a card in each job's folder how that went, sweep.csv all."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from splatexp.io.atomic import replaced, write_text
from splatexp.sweep.cache import CARD, read_card

PLAN, TABLE = "sweep.json", "sweep.csv"
WELL = {"done", "known"}  # how a job may have gone: done now, known from earlier, failed, stopped
PATIENCE = 60.0  # seconds that jobs have to save what they are at, when a sweep is stopped


@dataclass
class Sweep:
    """What every job of a sweep can read about it."""

    folder: Path
    words: list[str]  # as they were given, without Hydra's own and `force`
    varied: list[str]  # keys with several values
    jobs: int | None = None  # how many there will be; None: that is still open
    at_once: int = 1  # so many are started together at most
    stopped: bool = False
    ended: bool = False
    token: str = field(default_factory=lambda: uuid4().hex)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep that runs, or ran last, in a folder.  Raises: OSError, ValueError."""
        said = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if not isinstance(said, dict) or not set(said) <= set(cls.__dataclass_fields__):
            raise ValueError(f"{folder / PLAN}: not as it was written")
        return cls(folder=folder, **said)

    def write(self) -> None:
        """Write it down.  Raises: OSError."""
        said = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_text(self.folder / PLAN, json.dumps(said, indent=1) + "\n")

    @property
    def name(self) -> str:
        """What a person calls it: its folder below multirun/."""
        parts = self.folder.absolute().parts
        below = parts[max((i for i, part in enumerate(parts) if part == "multirun"), default=-2) + 1 :]
        return "/".join(below if "multirun" in parts and below else parts[-1:])

    @property
    def ours(self) -> bool:
        """Whether it is this process that runs it."""
        return self.pid == os.getpid() and self.host == self.here

    @property
    def here(self) -> str:
        """The name of this machine."""
        return socket.gethostname()

    def choice(self, words: Sequence[str], aside: Sequence[str] = ()) -> str:
        """Of a job's overrides those that tell it from the others, but for some keys."""
        said = _said(words)
        return " ".join(f"{key}={said[key]}" for key in self.varied if key in said and key not in aside)

    def card(self, folder: Path, /, **values: Any) -> None:
        """Write on the card in a job's folder, beside what this sweep, or of its id another, wrote there."""
        before = read_card(folder)
        if before.get("sweep") != self.token:
            before = {name: before[name] for name in ("id",) if name in before} | {"sweep": self.token}
        write_text(folder / CARD, json.dumps(before | values, indent=1, default=str) + "\n")

    def cards(self) -> list[dict[str, Any]]:
        """What the cards of its jobs say, in their order; `at` is the folder that a card lies in."""
        found = []
        for folder, below, names in os.walk(self.folder):
            below[:] = [name for name in below if name[0] != "." and CARD not in names]
            card = read_card(Path(folder)) if CARD in names else {}
            if card.get("sweep") == self.token:
                found.append(card | {"at": folder})
        return sorted(found, key=lambda card: card["job"])

    def stop(self) -> None:
        """No more jobs; those in other processes of this machine are asked to save, and waited for."""
        self.stopped = True
        with suppress(OSError):
            self.write()
        asked, until = set(), time.monotonic() + PATIENCE
        while time.monotonic() < until:
            busy = [card for card in self.cards() if card["status"] == "running"]
            busy = [card["pid"] for card in busy if card["host"] == self.host and card["pid"] != self.pid]
            busy = [pid for pid in busy if lives(pid)]
            for pid in set(busy) - asked:
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
            asked |= set(busy)
            if not busy:
                return
            time.sleep(0.1)


def lives(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
        return True
    except OSError:
        return False


def table(cards: Sequence[Mapping[str, Any]], sweep: Sweep, front: Sequence[int] = ()) -> str:
    """The jobs as lines of text; those whose numbers are in `front` get a star."""
    names = list(dict.fromkeys(name for card in cards for name in card.get("objective") or ()))
    rows = [["job", *sweep.varied, *names, "seconds", "status", "folder"]]
    for card in cards:
        said = _said(card["overrides"])
        values = card.get("objective") or {}
        rows.append(
            [
                f"{card['job']}{'*' if card['job'] in front else ''}",
                *(_rounded(said.get(key, "")) for key in sweep.varied),
                *(_short(values.get(name)) for name in names),
                f"{card.get('seconds', 0):.1f}",
                card["status"],
                _near(card.get("folder", card["at"])),
            ]
        )
    wide = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows
    )


def write_csv(cards: Sequence[Mapping[str, Any]], sweep: Sweep, front: Sequence[int] | None) -> Path:
    """sweep.csv: a row for each job, a column for each varied key and objective.

    front: the jobs that no other beats in everything; None: no such column.
    Raises: OSError.
    """
    names = list(dict.fromkeys(name for card in cards for name in card.get("objective") or ()))
    path = sweep.folder / TABLE
    with replaced(path) as temp, open(temp, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(
            ["job", *sweep.varied, *names, *([] if front is None else ["front"])]
            + ["seconds", "status", "folder", "error", "overrides"]
        )
        for card in cards:
            said = _said(card["overrides"])
            values = card.get("objective") or {}
            best = [] if front is None else [card["job"] in front]
            rows.writerow(
                [card["job"], *(said.get(key, "") for key in sweep.varied)]
                + [values.get(name, "") for name in names]
                + [*best, card.get("seconds"), card["status"], card.get("folder", card["at"])]
                + [card.get("error", ""), " ".join(card["overrides"])]
            )
    return path


def _said(words: Sequence[str]) -> dict[str, str]:
    """Overrides by their keys."""
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _rounded(word: str) -> str:
    """A value as it was given; a long number with five digits."""
    try:
        return f"{float(word):.5g}" if len(word) > 8 else word
    except ValueError:
        return word


def _near(folder: str) -> str:
    """A folder as it is called from here, if that is shorter."""
    return min(folder, os.path.relpath(folder), key=len)
