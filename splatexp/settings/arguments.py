"""The command lines of the small commands: `key=value` arguments and errors of one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from splatexp.settings.messages import one_line, unknown_key

BOOLEANS = {"true": True, "false": False}


def parse_arguments(words: Sequence[str], known: Mapping[str, type]) -> dict[str, Any]:
    """Return `key=value` words as keyword arguments, each converted to the type that `known` has for its key.

    Raises: ValueError, one line, for an unknown key (with the nearest one), a key given twice, and a bad
    value.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+-")
        if key not in known:
            raise ValueError(unknown_key(key, known))
        if key in values:
            raise ValueError(f"{key}: expected once, got it again as {word}")
        if not equals:
            raise ValueError(f"{key}: expected {key}=<value>, got no value")
        values[key] = _convert(key, text, known[key])
    return values


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
        print(one_line(error), file=sys.stderr)
        sys.exit(2)


def _convert(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"{key}: expected true or false, got {text!r}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key}: expected a whole number, got {text!r}") from None
