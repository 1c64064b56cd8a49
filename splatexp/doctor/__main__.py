"""The command `python -m splatexp.doctor`."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from splatexp import __version__, doctor
from splatexp.doctor import machine, processes, software, training
from splatexp.doctor.checks import BROKEN, MISSING, OK, Check, CheckResult, run_checks
from splatexp.settings.messages import unknown_key

COLORS = {OK: "green", MISSING: "yellow", BROKEN: "red"}
MAX_WIDTH = 120  # columns


def checks(lpips_weights: str = "") -> list[Check]:
    """Return all checks, in the order of the table."""
    return [
        Check("Python", software.python, required=True),
        Check("packages", software.packages),
        Check("splatexp", software.splatexp_package),
        Check("CPU kernels", training.rasterizers, required=True, exclusive=True),
        Check("training run", training.training_run, required=True),
        Check("memory", machine.memory, required=True),
        Check("disk", machine.disk, required=True),
        Check("processors", machine.processors),
        Check("C++ compiler", software.compiler),
        Check("tensorboard", software.tensorboard),
        Check("wandb", software.wandb),
        Check("video encoding", software.video_encoder),
        Check("LPIPS weights", partial(software.lpips, lpips_weights)),
        Check("GPU", machine.gpu_check),
        Check("nvcc", machine.nvcc),
        Check("triton", machine.triton),
        Check("gsplat", machine.gsplat),
    ]


def main() -> int:
    """Run all checks, print the results, and return the exit status."""
    words = sys.argv[1:]
    if {"-h", "--help", "help"} & set(words):
        print((doctor.__doc__ or "").strip())
        return 0
    try:
        seconds, folder = _settings(words)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        with _waiting():
            rows = run_checks(checks(folder), seconds)
    except KeyboardInterrupt:
        return 130
    finally:
        processes.kill_all()
    if "--json" in words:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        show(rows)
    return 0 if can_train(rows) else 1


def can_train(rows: Sequence[CheckResult]) -> bool:
    """Return whether everything works that training requires."""
    return all(row.status == OK for row in rows if row.required)


def show(rows: Sequence[CheckResult]) -> None:
    """Print the table of results, and a sentence that sums it up."""
    lacking = [row.name for row in rows if row.status != OK]
    needed = [row.name for row in rows if row.status != OK and row.required]
    others = f" Not available: {', '.join(lacking)}." if lacking else ""
    last = f"A run cannot train here: {', '.join(needed)}." if needed else f"A run can train here.{others}"
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        _table(rows, last)
    except ImportError:  # rich is what is missing
        for row in rows:
            parts = [row.detail, row.reason, row.remedy and f"remedy: {row.remedy}"]
            print(f"{row.name}: {row.status}", *filter(None, parts), sep="\n    ")
        print(last)


def _table(rows: Sequence[CheckResult], last: str) -> None:
    """Print each result with its reason below; the remedy is never wrapped, so that it can be copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    screen = Console(highlight=False)
    wide = min(screen.width, MAX_WIDTH)
    name = max(len(row.name) for row in rows)
    screen.print(f"splatexp {__version__} on this machine\n", style="bold")
    for row in rows:
        color = "red" if row.required and row.status != OK else COLORS[row.status]
        table = Table.grid(padding=(0, 2))
        table.add_column(width=name)
        table.add_column(width=7)
        table.add_column(width=max(20, wide - name - 7 - 4), overflow="fold")
        said = [Text(part) for part in (row.detail, row.reason) if part]
        if row.reason:
            said[-1].stylize(color if row.status != OK else "yellow")
        table.add_row(Text(row.name), Text(row.status, style=color), Text("\n").join(said))
        screen.print(table)
        if row.remedy:
            screen.print(Text(f"{'':{name + 2}}remedy:  {row.remedy}", style="cyan"), soft_wrap=True)
    screen.print()
    screen.print(Text(last, style="bold"), width=wide)


def _settings(words: Sequence[str]) -> tuple[float, str]:
    """Parse the arguments into the limit in seconds and the folder of LPIPS weights.

    Raises: ValueError, one line, for any other argument.
    """
    given: dict[str, Any] = {"seconds": "60", "lpips_weights": ""}
    for word in words:
        key, _, value = word.partition("=")
        if word == "--json":
            continue
        if key not in given:
            raise ValueError(unknown_key(key, [*given, "--json"]))
        given[key] = value
    try:
        seconds = float(given["seconds"])
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: expected a number above 0, got {given['seconds']!r}")
    return seconds, given["lpips_weights"]


def _waiting() -> Any:
    """Return a context that shows a spinner on stderr while the checks run, if that is a terminal."""
    try:
        from rich.console import Console
    except ImportError:
        return nullcontext()
    screen = Console(stderr=True)
    return screen.status("running checks", spinner="line") if screen.is_terminal else nullcontext()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a check that hangs must not hold the process
