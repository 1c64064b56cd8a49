"""Checks and their results. A check that raises or hangs gives a result and does not end the doctor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splatexp.doctor.installed import NAME, pip_command, rebuild_command

OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(kw_only=True)
class CheckResult:
    """The result of a check."""

    name: str
    status: str  # OK, MISSING or BROKEN
    required: bool = False  # for training
    detail: str = ""
    reason: str = ""  # why it does not work
    remedy: str = ""  # a command that repairs it


@dataclass
class Check:
    """A check of one thing or of several, which gives one or several results."""

    name: str
    run: Callable[[float], Sequence[CheckResult]]
    required: bool = False  # for training
    exclusive: bool = False  # runs after the others, which would distort its timings

    def __call__(self, seconds: float) -> list[CheckResult]:
        """Run the check; one that raises gives a result that says so."""
        try:
            return list(self.run(seconds))
        except Exception as error:
            return [self.failed(error_line(error), _remedy(error))]

    def failed(self, reason: str, remedy: str) -> CheckResult:
        """Return the result of a check that did not complete."""
        return CheckResult(
            name=self.name, status=BROKEN, required=self.required, reason=reason, remedy=remedy
        )


def run_checks(checks: Sequence[Check], seconds: float) -> list[CheckResult]:
    """Run all checks and return their results in order.

    Checks run side by side, except for the exclusive ones, which run after the others. A check that hangs is
    left behind.

    seconds: limit of a process of its own; a check gets a little more.
    """
    found: dict[int, list[CheckResult]] = {}

    def run(index: int) -> None:
        found[index] = checks[index](seconds)

    for exclusive in (False, True):
        group = [index for index, check in enumerate(checks) if check.exclusive == exclusive]
        threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in group]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 1.1 * seconds + 1
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    late = f"no answer in {seconds:g} s", f"python -m splatexp.doctor seconds={2 * seconds:g}"
    missed = {index: [check.failed(*late)] for index, check in enumerate(checks)}
    return [row for index in range(len(checks)) for row in found.get(index, missed[index])]


def error_line(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def format_bytes(count: float) -> str:
    """Format a number of bytes, such as 3.5 GiB."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _remedy(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        return rebuild_command() if missing.startswith(NAME) else pip_command(missing)
    return "this is an error of the check, not of your machine: please report it"
