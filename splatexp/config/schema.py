"""Schemas: dataclasses as OmegaConf sees them, and the validation of configs against them.

A setting is a dataclass field, nothing else. The metadata of a field that are used here:
`unit="steps"`  marks a window or milestone; it is scaled with `steps` unless it was set on the command line;
`unit="path"`   marks a file or folder; it is made absolute, so that a run can be evaluated from anywhere;
`unit="names"`  marks a name or a list of names.

A dataclass with an attribute `entry_class` is extensible: it takes settings of any name, each of that class,
as a strategy takes rules. They become fields of a subclass (`with_entries`), so that they are typed and
scaled like declared ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict

from splatexp.config.registry import has_options
from splatexp.settings.messages import unknown_key

KnownKeys = Callable[
    [], Mapping[str, list[str]]
]  # every key that exists -> the choices of options that it needs


TARGET_IS_FIXED = "follows from the chosen option and cannot be set"
CANNOT_DELETE = "a setting cannot be deleted"


class ConfigError(ValueError):
    """A setting is refused; the message is the one line that the user sees."""


@cache
def schema(cls: type) -> type:
    """Return a dataclass with the fields of `cls` and the `_target_` that rebuilds it, also in nested ones.

    A field that holds the option of a group has the type `Any`, because OmegaConf cannot put one dataclass in
    the place of another.
    """
    hints = get_type_hints(cls)
    fields: list[Any] = [("_target_", str, f"{cls.__module__}.{cls.__qualname__}")]
    for field in dataclasses.fields(cls):
        kind = Any if field.metadata.get("unit") == "names" else _schema_type(hints[field.name])
        if kind != hints[field.name]:
            is_option = has_options(
                hints[field.name]
            )  # the config group provides it, whatever the default is
            default = dataclasses.field(default=MISSING) if is_option else _schema_field(field)
            fields.append((field.name, kind, default))
    made = dataclasses.make_dataclass(f"{cls.__name__}Conf", fields, bases=(cls,), kw_only=True)
    made.__module__, made.__qualname__ = __name__, _pickled_name(cls)
    return made


def _pickled_name(cls: Any) -> str:
    """Return a name without dots that holds the path of a class and the entries that were added to it."""
    path = (cls.__module__, cls.__qualname__)
    original = next(base for base in reversed(cls.__mro__) if (base.__module__, base.__qualname__) == path)
    declared = {field.name for field in dataclasses.fields(original)}
    entries = [field.name for field in dataclasses.fields(cls) if field.name not in declared]
    return "|".join([".".join(path).replace(".", "/"), *entries])


def __getattr__(name: str) -> type:
    """Return the schema of a pickled name: every process of a sweep makes its own, and they agree."""
    path, *entries = name.split("|")
    if "/" not in path:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    cls = get_class(path.replace("/", "."))
    return schema(cls.with_entries(*entries) if entries else cls)  # type: ignore[attr-defined]


def _schema_type(hint: Any) -> Any:
    """Return the type that a field of type `hint` has in the schema."""
    if has_options(hint):
        return Any
    if dataclasses.is_dataclass(hint):
        return schema(hint)  # type: ignore[arg-type]
    if get_origin(hint) in (dict, list):
        return get_origin(hint)[tuple(_schema_type(part) for part in get_args(hint))]
    return hint


def _schema_field(field: dataclasses.Field) -> Any:
    """Return a field with its default; a nested dataclass keeps the values that its owner gives it."""
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default, metadata=field.metadata)
    factory: Any = field.default_factory
    if factory is dataclasses.MISSING:
        return dataclasses.field(default=MISSING, metadata=field.metadata)
    return dataclasses.field(default_factory=lambda: _as_schema(factory()), metadata=field.metadata)


def _as_schema(value: Any) -> Any:
    """Return a dataclass as an instance of its schema, nested ones too; any other value as it is."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    values = {field.name: _as_schema(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return schema(type(value))(**values)


def walk(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Yield every mapping of a config but Hydra's own, outer ones first, with the prefix of its keys.

    The prefix is "" at the top and dotted below, with the dot at its end: `densify.grow.`.
    """
    yield prefix, cfg
    for key in [str(key) for key in cfg if prefix or key != "hydra"]:
        if OmegaConf.is_missing(cfg, key) or OmegaConf.is_interpolation(cfg, key):
            continue
        child = cfg[key]
        items = enumerate(child) if OmegaConf.is_list(child) else [(None, child)]
        for index, item in items:
            if OmegaConf.is_dict(item):
                yield from walk(item, f"{prefix}{key}." if index is None else f"{prefix}{key}.{index}.")


def validate(cfg: DictConfig, known: KnownKeys) -> None:
    """Check every key against its dataclass; a mapping that only names one by `_target_` gets its schema.

    Raises: ConfigError.
    """
    for prefix, node in walk(cfg):
        cls = OmegaConf.get_type(node)
        hints = _hints(cls)
        if hints and node._target_ != cls._target_:  # type: ignore[union-attr]
            raise ConfigError(f"{prefix}_target_: {TARGET_IS_FIXED}")
        keys = [str(key) for key in node if prefix or key != "hydra"]
        name_fields = _fields_with_unit(node, "names")
        if deleted := [name for name in hints if name not in keys]:
            raise ConfigError(f"{prefix}{deleted[0]}: {CANNOT_DELETE}")
        for key in keys:
            if hints and key not in hints:
                raise ConfigError(unknown_key(f"{prefix}{key}", known()))
            if key in name_fields:
                _check_names(f"{prefix}{key}", node[key])
                continue
            empty_or_plain = OmegaConf.get_type(node, key) in (dict, type(None))
            if hints.get(key) is Any or not hints and empty_or_plain:
                _apply_schema(node, key, prefix, known)


def _check_names(key: str, value: Any) -> None:
    """Refuse a value that is neither a name nor a list of names."""
    is_list = OmegaConf.is_list(value) and len(value) > 0
    if not all(isinstance(name, str) for name in (value if is_list else [value])):
        raise ConfigError(f"{key}: expected a name or a list of names, written [a,b], got {value}")


def _hints(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name; {} for anything else."""
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _apply_schema(node: DictConfig, key: str, prefix: str, known: KnownKeys) -> None:
    """Give the option under `key` the schema of the dataclass that its `_target_` names."""
    if OmegaConf.is_missing(node, key):
        return
    child = node[key]
    if not OmegaConf.is_dict(child):
        raise ConfigError(f"{prefix}{key}: expected the settings of an option, got {child}")
    if dataclasses.is_dataclass(OmegaConf.get_type(child)):
        return
    if "_target_" not in child:
        raise ConfigError(unknown_key(f"{prefix}{key}", known()))
    not_a_dataclass = f"{prefix}{key}._target_: expected a dataclass, got {child['_target_']}"
    try:
        cls = get_class(child["_target_"])
    except (ImportError, ValueError) as error:
        raise ConfigError(not_a_dataclass) from error
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(not_a_dataclass)
    with open_dict(child):
        for name in [name for name in _entries(cls, child) if child[name] is None]:
            del child[name]  # null in a file takes away an entry of the file on which it builds
    try:
        cls = extended_class(cls, child, f"{prefix}{key}.")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with open_dict(node):
        node[key] = OmegaConf.structured(schema(cls))
    node[key].merge_with(child)  # in its final place, so that an error names the full key


def extended_class(cls: Any, node: DictConfig, prefix: str = "") -> type:
    """Return the class with all settings of a mapping as fields.

    Raises: ValueError for a key that is neither declared nor defines a new entry; `prefix` stands before it.
    """
    names = [name for name in _entries(cls, node) if node[name] is not None]
    for name in names:
        first = dataclasses.fields(cls.entry_class)[0].name
        if not OmegaConf.is_dict(node[name]) or first not in node[name]:
            siblings = [f"{prefix}{sibling}" for sibling in (*_hints(cls), *names) if sibling != name]
            message = unknown_key(prefix + name, siblings)
            raise ValueError(f"{message} (a new entry needs {prefix}{name}.{first})")
    try:
        return cls.with_entries(*names) if names else cls
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def _entries(cls: Any, node: DictConfig) -> list[str]:
    """Return the keys of a mapping beyond the declared fields of an extensible class; else []."""
    declared = {"_target_", *_hints(cls)}
    return [str(key) for key in node if key not in declared] if hasattr(cls, "entry_class") else []


def as_mapping(node: DictConfig) -> DictConfig:
    """Return the settings of an extensible class as a plain mapping, in which keys can be added and deleted.

    `validate` gives it a schema again. The settings of any other class are returned as they are.
    """
    if not hasattr(OmegaConf.get_type(node), "entry_class"):
        return node
    return OmegaConf.create({key: node._get_node(key) for key in node})


def options_as_mappings(cfg: DictConfig) -> None:
    """Apply `as_mapping` to every option, so that the command line may add and delete entries."""
    for _, node in list(walk(cfg)):
        for key, hint in _hints(OmegaConf.get_type(node)).items():
            if hint is Any and not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
                node[key] = as_mapping(node[key])


def drop_unused(layer: DictConfig, cfg: DictConfig, known: KnownKeys, prefix: str = "") -> None:
    """Delete from a layer the keys of options that were not chosen in `cfg`."""
    for key in [str(key) for key in layer]:
        if key not in cfg.keys() and known().get(prefix + key):
            del layer[key]
        elif key in cfg and OmegaConf.is_dict(cfg[key]) and OmegaConf.is_dict(layer[key]):
            drop_unused(layer[key], cfg[key], known, f"{prefix}{key}.")


def scale_windows(cfg: DictConfig, factor: float, which: Callable[[str], bool] = lambda key: True) -> None:
    """Multiply the windows and milestones whose keys `which` accepts."""
    for prefix, node in walk(cfg):
        for name in _fields_with_unit(node, "steps"):
            if which(prefix + name) and not OmegaConf.is_interpolation(node, name):
                value = node[name]
                is_list = OmegaConf.is_list(value)
                node[name] = [_scaled(v, factor) for v in value] if is_list else _scaled(value, factor)


def _scaled(value: Any, factor: float) -> Any:
    """Return a window scaled; integers stay integers and at least 1; 0, negative ones and None stay."""
    if value is None or value <= 0:
        return value
    return max(1, round(value * factor)) if isinstance(value, int) else value * factor


def resolve(cfg: DictConfig) -> None:
    """Resolve interpolations and make paths absolute, so that the saved config means the same everywhere."""
    for key in [str(key) for key in cfg if key != "hydra"]:
        if OmegaConf.is_missing(cfg, key):
            continue
        if OmegaConf.is_interpolation(cfg, key):
            cfg[key] = cfg[key]
        if OmegaConf.is_config(cfg[key]):
            OmegaConf.resolve(cfg[key])
    for _, node in walk(cfg):
        for name in _fields_with_unit(node, "path"):
            if not OmegaConf.is_missing(node, name) and node[name]:
                node[name] = os.path.abspath(os.path.expanduser(node[name]))


def _fields_with_unit(node: DictConfig, unit: str) -> list[str]:
    """Return the names of the fields of a node's dataclass whose metadata have this unit."""
    cls = OmegaConf.get_type(node)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return [field.name for field in fields if field.metadata.get("unit") == unit]
