"""Rows of what was found, and the checks that find it: each is guarded, none can raise or hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splatexp.doctor.installed import NAME, install, pip

WORKS, MISSING, BROKEN = "works", "missing", "broken"


@dataclass(kw_only=True)
class Row:
    """One thing: how it is, and where it does not work why, and what to type."""

    name: str
    state: str
    needed: bool = False  # to train
    detail: str = ""
    reason: str = ""
    remedy: str = ""


@dataclass
class Check:
    """A look at one thing or several; called with the seconds that a process of its own may take."""

    name: str
    look: Callable[[float], Sequence[Row]]
    needed: bool = False  # to train
    alone: bool = False  # after the others, whose work would slow what it times

    def __call__(self, seconds: float) -> list[Row]:
        """The rows; a look that raises is a broken one."""
        try:
            return list(self.look(seconds))
        except Exception as error:
            return [self.failed(says(error), _remedy(error))]

    def failed(self, reason: str, remedy: str) -> Row:
        """The row of a look that found nothing."""
        return Row(name=self.name, state=BROKEN, needed=self.needed, reason=reason, remedy=remedy)


def examine(checks: Sequence[Check], seconds: float) -> list[Row]:
    """The rows of all checks, in order; they look side by side but for those that look alone.

    One that hangs is left behind.

    seconds: for a process of its own; a check gets a little more.
    """
    found: dict[int, list[Row]] = {}

    def look(index: int) -> None:
        found[index] = checks[index](seconds)

    for alone in (False, True):
        turn = [index for index, check in enumerate(checks) if check.alone == alone]
        threads = [threading.Thread(target=look, args=(index,), daemon=True) for index in turn]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 1.1 * seconds + 1
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    late = f"no answer in {seconds:g} s", f"python -m splatexp.doctor seconds={2 * seconds:g}"
    missed = {index: [check.failed(*late)] for index, check in enumerate(checks)}
    return [row for index in range(len(checks)) for row in found.get(index, missed[index])]


def says(error: BaseException) -> str:
    """An exception in one line: its kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _remedy(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        return install() if missing.startswith(NAME) else pip(missing)
    return "a defect of this check, not of your machine: please report its line"
