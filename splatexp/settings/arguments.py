"""Finished runs, opened again, and the small command lines that do it: `key=value` words, one-line errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from splatexp.settings.messages import unknown

SWITCH = {"true": True, "false": False}


def arguments(words: Sequence[str], known: Mapping[str, type]) -> dict[str, Any]:
    """`key=value` words as keyword arguments, each of its known type.

    Raises: ValueError, one line, for anything else, with the nearest key, and for a key that comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+-")
        if key not in known:
            raise ValueError(unknown(key, known))
        if key in values:
            raise ValueError(f"{key}: expected once, got it again as {word}")
        if not equals:
            raise ValueError(f"{key}: expected {key}=<value>")
        values[key] = _value(key, text, known[key])
    return values


def command(usage: str, known: Mapping[str, type], act: Callable[..., None]) -> None:
    """Run `act` on the command line's words; --help prints `usage`; bad input is one line, exit status 2."""
    words = sys.argv[1:]
    if {"-h", "--help", "help"} & set(words):
        print(usage.strip())
        return
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        values = arguments(words, known)
        if not values.get("run"):
            raise ValueError("run: expected the folder of a run, say run=<folder>")
        act(**values)
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(_line(error), file=sys.stderr)
        sys.exit(2)


def _value(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in SWITCH:
            raise ValueError(f"{key}: expected true or false, got {text!r}")
        return SWITCH[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key}: expected a whole number, got {text!r}") from None


def _line(error: Exception) -> str:
    """An error in one line, without the number of an OSError that says all in words."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    return " ".join(text.split())
