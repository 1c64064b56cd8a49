"""The `key=value` arguments of the small commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from splatexp.settings.messages import unknown_key

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


def _convert(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"{key}: expected true or false, got {text!r}")
        return BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key}: expected a whole number, got {text!r}") from None
