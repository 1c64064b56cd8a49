"""The identity of a run: an id that two runs share if they are the same experiment."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from typing import Any

from splatexp.provenance.environment import SOURCES, code_hash


def run_id(config: Mapping[str, Any], data_sha256: str, protocol: str) -> str:
    """Return the identity of an experiment: 16 hex digits that follow from recipe, code, data and protocol.

    The path of the data does not count, since their hash does. A .ply to start from and classes from outside
    the package count by the bytes of their files. So an experiment has one identity on every machine that
    holds the same code, the compiled extension included.

    Args:
        config: what `Recipe.config` returns, with the `_target_` of every part: two classes may have the same
            settings.
        data_sha256: the hash of the scene; "" where it is not loaded.
        protocol: the identity of the evaluation protocol.
    """
    counted = dict(config)
    if isinstance(data := counted.get("data"), Mapping):
        counted["data"] = {key: value for key, value in data.items() if key not in ("path", "cache")}
    if isinstance(model := counted.get("model"), Mapping) and model.get("init_path"):
        counted["model"] = {**model, "init_path": _file_hash(model["init_path"])}
    outside = {name: _file_hash(_source_file(name)) for name in sorted(set(_outside_modules(counted)))}
    parts = [_canonical(counted), outside, code_hash(), data_sha256, protocol]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(part: Any) -> Any:
    """Return a setting as JSON has it: NaN and infinity by name, any other type that JSON lacks as text."""
    if isinstance(part, Mapping):
        return {str(key): _canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_canonical(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)
    return part if part is None or isinstance(part, (str, int, float)) else str(part)


def _outside_modules(part: Any) -> Iterator[str]:
    """Yield the modules of the classes in a config that are not part of splatexp."""
    if isinstance(part, Mapping):
        name = part.get("_target_")
        if isinstance(name, str) and name.partition(".")[0] not in SOURCES:
            yield name.rpartition(".")[0]
        part = list(part.values())
    for value in part if isinstance(part, (list, tuple)) else ():
        yield from _outside_modules(value)


def _source_file(module: str) -> str:
    """Return the file of a module; its name where it has none."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return spec.origin if spec and spec.origin else module


def _file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file; its path where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return str(path)
