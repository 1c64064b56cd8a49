"""Settings as plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def settings(value: Any) -> Any:
    """A dataclass of settings as plain values, each nested one with its `_target_`, as in .hydra/config.yaml.

    Numbers that JSON does not know become texts.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        plain = {"_target_": f"{kind.__module__}.{kind.__qualname__}"}
        return plain | {f.name: settings(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(name): settings(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def flat(config: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """What `settings` gave, by dotted keys; what has a class has that as its own value."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{at}{name}.")
        elif name != "_target_":
            found[f"{at}{name}"] = value
        elif at:
            package, _, kind = str(value).rpartition(".")
            found[at[:-1]] = kind if package.startswith("splatexp.") else value
    return found
