"""The Esc key of the terminal that a run was started in."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from select import select
from types import TracebackType
from typing import Any

ESCAPE = b"\x1b"
REST = 0.05  # seconds after which the rest of what an arrow or a function key sends has come


class Escape:
    """A context that tells whether Esc was pressed; where standard input is no terminal, it never is.

    Keys come without Enter and are not echoed while it lasts; Ctrl-C and Ctrl-Z work as ever. In the
    background the terminal is left alone: it belongs to another program then.
    """

    def __init__(self) -> None:
        self._file, self._before = -1, list[Any]()

    def __enter__(self) -> Escape:
        file = _terminal()
        if file >= 0:
            import termios
            import tty

            with suppress(termios.error):  # no terminal after all
                self._before = termios.tcgetattr(file)
                tty.setcbreak(file, termios.TCSANOW)
                self._file = file
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file >= 0 and _in_front(self._file):
            import termios

            with suppress(termios.error):  # it is gone, as when its window was closed
                termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)
        self._file = -1

    def pressed(self) -> bool:
        """Whether Esc was pressed since the last look; other keys are forgotten. It does not wait for one."""
        keys = self._keys(0)
        return keys.endswith(ESCAPE) and not self._keys(REST)  # else it began what another key sends

    def _keys(self, seconds: float) -> bytes:
        """What was typed, or will be within some seconds; empty where nothing was."""
        if self._file < 0 or not select([self._file], [], [], seconds)[0] or not _in_front(self._file):
            return b""
        try:
            keys = os.read(self._file, 64)
        except OSError:
            keys = b""
        if not keys:  # the end of the input: there will be no more
            self._file = -1
        return keys


def _terminal() -> int:
    """Standard input, where it is a terminal with this process in front; -1 else."""
    try:
        file = sys.stdin.fileno()
        return file if os.isatty(file) and _in_front(file) else -1
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something else
        return -1


def _in_front(file: int) -> bool:
    """Whether this process is in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        return False
