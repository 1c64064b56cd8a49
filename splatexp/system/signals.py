"""Signals that stop a run between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from splatexp.system.keyboard import Escape


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; `code` is the exit status."""

    def __init__(self, number: int, text: str = ""):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{text}")
        self.code, self._said = 128 + number, (number, text)

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str]]:
        """So that it comes through from another process."""
        return Stopped, self._said


class Signals:
    """A context in which SIGINT and SIGTERM raise `Stopped`: while `patient` at the next step, else at once.

    The second one is not waited for. Esc in the terminal counts as SIGINT. In a thread that is not the main
    one, signals and keys are left alone.
    """

    def __init__(self) -> None:
        self.caught = 0
        self.patient = False
        self._before: dict[int, Any] = {}
        self._escape = Escape()

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._escape.__enter__()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._escape.__exit__()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def heed(self) -> int:
        """Look between two steps: the number of the signal that was caught, 0 where none was."""
        if not self.caught and self._escape.pressed():
            self._catch(signal.SIGINT, None)
        return self.caught

    def _catch(self, number: int, frame: FrameType | None) -> None:
        again, self.caught = bool(self.caught), number
        if again or not self.patient:
            raise Stopped(number, ", at once" if again else "")
