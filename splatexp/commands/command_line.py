"""The command lines of the commands on a run: arguments, help, and errors of one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping

from splatexp.settings.arguments import parse_arguments
from splatexp.settings.messages import one_line


def run_command(usage: str, known: Mapping[str, type], command: Callable[..., None]) -> None:
    """Call `command` with the arguments of the command line, among them `run`, the folder of a run.

    --help prints `usage`. An error is printed in one line, with exit status 2.
    """
    words = sys.argv[1:]
    if {"-h", "--help", "help"} & set(words):
        print(usage.strip())
        return
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        arguments = parse_arguments(words, known)
        if not arguments.get("run"):
            raise ValueError("run: expected the folder of a run, got none; set it with run=<folder>")
        command(**arguments)
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
