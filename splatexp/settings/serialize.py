"""Dataclasses of settings as plain values: for checkpoints, run.json and hashes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def to_config(value: Any) -> Any:
    """Return a dataclass of settings as plain values, each nested one with its `_target_`.

    The result has the shape of .hydra/config.yaml. Numbers that JSON lacks (NaN, infinity) become texts.
    """
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        plain = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
        return plain | {field.name: to_config(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(name): to_config(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_config(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by dotted keys.

    The name of the class of a nested part stands under the part's own key, as in `{"densify":
    "RuleStrategy"}`.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{name}.")
        elif name != "_target_":
            flat[f"{prefix}{name}"] = value
        elif prefix:
            package, _, class_name = str(value).rpartition(".")
            flat[prefix[:-1]] = class_name if package.startswith("splatexp.") else value
    return flat
