"""Dataclasses as OmegaConf sees them: schemas, and configs held against them.

A setting is a dataclass field, nothing else. Metadata of a field that is honoured here:
`unit="steps"`  a window or milestone: it stretches with `steps`, unless it was set on the command line;
`unit="path"`   a file or folder: made absolute, so that a run can be evaluated from anywhere.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from splatexp.explain import unknown
from splatexp.options import has_options, known_keys


class Refused(ValueError):
    """A setting that cannot be; the message is the one line that the user sees."""


@cache
def schema(cls: type) -> type:
    """A dataclass with the `_target_` that rebuilds it, also in nested ones.

    A field that holds the option of a group is `Any`: OmegaConf cannot put one dataclass in another's place.
    """
    hints = get_type_hints(cls)
    fields: list[Any] = [("_target_", str, f"{cls.__module__}.{cls.__qualname__}")]
    for field in dataclasses.fields(cls):
        seen = _seen(hints[field.name])
        if seen != hints[field.name]:
            fields.append((field.name, seen, _default(field, seen)))
    return dataclasses.make_dataclass(f"{cls.__name__}Conf", fields, bases=(cls,), kw_only=True)


def _seen(hint: Any) -> Any:
    """A field's type in the schema."""
    if has_options(hint):
        return Any
    if dataclasses.is_dataclass(hint):
        return schema(hint)  # type: ignore[arg-type]
    if get_origin(hint) in (dict, list):
        return get_origin(hint)[tuple(_seen(part) for part in get_args(hint))]
    return hint


def _default(field: dataclasses.Field, seen: Any) -> Any:
    """The field for its type in the schema: a nested dataclass keeps the values that its owner gives it."""
    factory: Any = field.default_factory
    if factory is dataclasses.MISSING:
        return dataclasses.field(default=MISSING, metadata=field.metadata)

    def make() -> Any:
        value = factory()
        if not dataclasses.is_dataclass(value):
            return value
        return seen(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})

    return dataclasses.field(default_factory=make, metadata=field.metadata)


def nodes(cfg: DictConfig, at: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every mapping of a config with its place ("" or dotted, with the dot), outside in; not hydra's."""
    yield at, cfg
    for key in [str(key) for key in cfg if at or key != "hydra"]:
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        child = cfg[key]
        items = enumerate(child) if OmegaConf.is_list(child) else [(None, child)]
        for index, item in items:
            if OmegaConf.is_dict(item):
                yield from nodes(item, f"{at}{key}." if index is None else f"{at}{key}.{index}.")


def check(cfg: DictConfig) -> None:
    """Hold every key against its dataclass; what names a dataclass by `_target_` alone gets its schema here.

    Raises: Refused.
    """
    for at, node in nodes(cfg):
        cls = OmegaConf.get_type(node)
        hints = _hints(cls)
        if hints and node._target_ != cls._target_:  # type: ignore[union-attr]
            raise Refused(f"{at}_target_: follows from the chosen option and cannot be set")
        keys = [str(key) for key in node if at or key != "hydra"]
        if gone := [name for name in hints if name not in keys]:
            raise Refused(f"{at}{gone[0]}: a setting cannot be deleted")
        for key in keys:
            if hints and key not in hints:
                raise Refused(unknown(f"{at}{key}", known_keys()))
            empty_or_plain = OmegaConf.get_type(node, key) in (dict, type(None))
            if hints.get(key) is Any or not hints and empty_or_plain:
                _lay_schema(node, key, at)


def _hints(cls: Any) -> dict[str, Any]:
    """Field -> type; {} for what is no dataclass."""
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _lay_schema(node: DictConfig, key: str, at: str) -> None:
    """Make sure that an option is one of a dataclass."""
    if OmegaConf.is_missing(node, key):
        return
    child = node[key]
    if not OmegaConf.is_dict(child):
        raise Refused(f"{at}{key}: expected the settings of an option, got {child}")
    if dataclasses.is_dataclass(OmegaConf.get_type(child)):
        return
    if "_target_" not in child:
        raise Refused(unknown(f"{at}{key}", known_keys()))
    cls = get_class(child["_target_"])
    if not dataclasses.is_dataclass(cls):
        raise Refused(f"{at}{key}._target_: expected a dataclass, got {child['_target_']}")
    with open_dict(node):
        node[key] = OmegaConf.merge(OmegaConf.structured(schema(cls)), child)


def fit(layer: DictConfig, cfg: DictConfig) -> None:
    """Make `cfg` ready for a layer, which may change `steps`, and the layer for the options chosen in `cfg`.

    Windows in `cfg` are scaled to the layer's steps. What the layer says of options that were not chosen is
    left out: a preset's words on one strategy do not hinder another.
    """
    if "steps" in layer and isinstance(layer.steps, int):
        scale(cfg, layer.steps / cfg.steps)
    _leave_out(layer, cfg)


def _leave_out(layer: DictConfig, cfg: DictConfig, at: str = "") -> None:
    for key in [str(key) for key in layer]:
        if key not in cfg.keys() and known_keys().get(at + key):
            del layer[key]
        elif key in cfg and OmegaConf.is_dict(cfg[key]) and OmegaConf.is_dict(layer[key]):
            _leave_out(layer[key], cfg[key], f"{at}{key}.")


def scale(cfg: DictConfig, factor: float, said: Collection[str] = ()) -> None:
    """Scale windows and milestones; those whose keys were `said` stay."""
    for at, node in nodes(cfg):
        for name in _measured(node, "steps"):
            if at + name not in said and not OmegaConf.is_interpolation(node, name):
                value = node[name]
                several = OmegaConf.is_list(value)
                node[name] = [_scaled(v, factor) for v in value] if several else _scaled(value, factor)


def _scaled(value: Any, factor: float) -> Any:
    """A window scaled; whole numbers stay whole and at least 1; 0 and None mean something else and stay."""
    if value is None or value <= 0:
        return value
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def settle(cfg: DictConfig) -> None:
    """Resolve interpolations and make paths absolute, so that what is saved means the same anywhere."""
    for key in [str(key) for key in cfg if key != "hydra"]:
        if OmegaConf.is_missing(cfg, key):
            continue
        if OmegaConf.is_interpolation(cfg, key):
            cfg[key] = cfg[key]
        if OmegaConf.is_config(cfg[key]):
            OmegaConf.resolve(cfg[key])
    for _, node in nodes(cfg):
        for name in _measured(node, "path"):
            if not OmegaConf.is_missing(node, name) and node[name]:
                node[name] = os.path.abspath(os.path.expanduser(node[name]))


def _measured(node: DictConfig, unit: str) -> list[str]:
    """The fields of a node's dataclass that are measured in `unit`."""
    cls = OmegaConf.get_type(node)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return [field.name for field in fields if field.metadata.get("unit") == unit]
