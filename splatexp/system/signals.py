"""SIGINT, SIGTERM and the Esc key, which stop a run between two of its steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from splatexp.system.keyboard import EscapeKey


class StoppedBySignal(KeyboardInterrupt):
    """A signal has stopped the run; `code` is the exit status, 128 + the number of the signal."""

    def __init__(self, number: int, text: str = ""):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}{text}")
        self.code = 128 + number
        self._arguments = (number, text)

    def __reduce__(self) -> tuple[type[StoppedBySignal], tuple[int, str]]:
        """Pickle by the arguments, so that the exception can come from another process."""
        return StoppedBySignal, self._arguments


class StopSignals:
    """A context in which SIGINT and SIGTERM raise `StoppedBySignal`.

    While `defer` is set, the first signal is only noted, for `poll` to return between two steps. The second
    one raises at once. Esc in the terminal counts as SIGINT. Outside the main thread signals and keys are
    left alone.
    """

    def __init__(self) -> None:
        self.caught = 0  # number of the last signal, 0: none
        self.defer = False
        self._previous_handlers: dict[int, Any] = {}
        self._escape = EscapeKey()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._escape.__enter__()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._escape.__exit__()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def poll(self) -> int:
        """Return the number of the signal that was caught, 0 where none was; Esc is looked for here."""
        if not self.caught and self._escape.pressed():
            self._catch(signal.SIGINT, None)
        return self.caught

    def _catch(self, number: int, frame: FrameType | None) -> None:
        second = bool(self.caught)
        self.caught = number
        if second or not self.defer:
            raise StoppedBySignal(number, ", at once" if second else "")
