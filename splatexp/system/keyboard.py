"""The Esc key of the terminal in which a run was started."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from select import select
from types import TracebackType
from typing import Any

ESCAPE = b"\x1b"
SEQUENCE_SECONDS = 0.05  # within which the rest of an escape sequence, as of an arrow key, arrives


class EscapeKey:
    """A context that tells whether Esc was pressed; where standard input is not a terminal, it never is.

    Within the context, keys arrive without Enter and are not echoed; Ctrl-C and Ctrl-Z work as usual. While
    the process is in the background the terminal is left alone, since it belongs to another program then.
    """

    def __init__(self) -> None:
        self._file = -1
        self._previous_mode: list[Any] = []

    def __enter__(self) -> EscapeKey:
        file = _terminal()
        if file >= 0:
            import termios
            import tty

            with suppress(termios.error):  # not a terminal after all
                self._previous_mode = termios.tcgetattr(file)
                tty.setcbreak(file, termios.TCSANOW)
                self._file = file
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file >= 0 and _in_foreground(self._file):
            import termios

            with suppress(termios.error):  # the terminal is gone, as when its window was closed
                termios.tcsetattr(self._file, termios.TCSADRAIN, self._previous_mode)
        self._file = -1

    def pressed(self) -> bool:
        """Return, without waiting, whether Esc was pressed since the last call; other keys are discarded."""
        keys = self._keys(0)
        return keys.endswith(ESCAPE) and not self._keys(SEQUENCE_SECONDS)  # else an escape sequence began

    def _keys(self, seconds: float) -> bytes:
        """Return what was typed, or is typed within `seconds`; b"" where nothing was."""
        if self._file < 0 or not select([self._file], [], [], seconds)[0] or not _in_foreground(self._file):
            return b""
        try:
            keys = os.read(self._file, 64)
        except OSError:
            keys = b""
        if not keys:  # the input has ended
            self._file = -1
        return keys


def _terminal() -> int:
    """Return the descriptor of standard input if it is a terminal with this process in front, else -1."""
    try:
        file = sys.stdin.fileno()
        return file if os.isatty(file) and _in_foreground(file) else -1
    except (OSError, ValueError, AttributeError):  # closed, or replaced by another object
        return -1


def _in_foreground(file: int) -> bool:
    """Return whether this process is in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        return False
