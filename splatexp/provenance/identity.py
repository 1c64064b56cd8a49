"""The identity of a run: what two runs share if they are the same experiment."""

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

    Where the data lie is left out, since their hash is in it. A .ply to begin with and classes from outside
    the package count by the bytes of their files. So an experiment has one identity on every machine that
    holds the same code, the compiled extension included.

    Args:
        config: what `Recipe.config` returns, with the `_target_` of every part: two classes may have the same
            settings.
        data_sha256: the hash of the scene; "" where it is not loaded.
        protocol: the identity of the evaluation protocol.
    """
    heard = dict(config)
    if isinstance(data := heard.get("data"), Mapping):
        heard["data"] = {key: value for key, value in data.items() if key not in ("path", "cache")}
    if isinstance(model := heard.get("model"), Mapping) and model.get("init_path"):
        heard["model"] = {**model, "init_path": _bytes_hash(model["init_path"])}
    outside = {name: _bytes_hash(_source(name)) for name in sorted(set(_outside(heard)))}
    parts = [_canonical(heard), outside, code_hash(), data_sha256, protocol]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(part: Any) -> Any:
    """A setting as JSON has it: numbers that are not finite by name, anything that JSON lacks as text."""
    if isinstance(part, Mapping):
        return {str(key): _canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_canonical(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)
    return part if part is None or isinstance(part, (str, int, float)) else str(part)


def _outside(part: Any) -> Iterator[str]:
    """The modules of classes in a config that are not of the package."""
    if isinstance(part, Mapping):
        name = part.get("_target_")
        if isinstance(name, str) and name.partition(".")[0] not in SOURCES:
            yield name.rpartition(".")[0]
        part = list(part.values())
    for value in part if isinstance(part, (list, tuple)) else ():
        yield from _outside(value)


def _source(module: str) -> str:
    """The file of a module; its name where it has none."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return spec.origin if spec and spec.origin else module


def _bytes_hash(path: str | Path) -> str:
    """SHA-256 of a file; its path where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return str(path)
