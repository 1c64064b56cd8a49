"""Dataclasses as OmegaConf sees them: schemas, and configs held against them.

A setting is a dataclass field, nothing else. Metadata of a field that is honoured here:
`unit="steps"`  a window or milestone: it stretches with `steps`, unless it was set on the command line;
`unit="path"`   a file or folder: made absolute, so that a run can be evaluated from anywhere;
`unit="words"`  a word or a list of words.
A dataclass with `others` takes settings by any name, each of the class that this names, as rules are.
They become fields of a subclass (`having`), so that they are typed and stretch like declared ones.
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
from splatexp.settings.messages import unknown

Known = Callable[[], Mapping[str, list[str]]]  # every key that there is -> the choices that it takes


FOLLOWS = "follows from the chosen option and cannot be set"
STAYS = "a setting cannot be deleted"


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
        seen = Any if field.metadata.get("unit") == "words" else _seen(hints[field.name])
        if seen != hints[field.name]:
            is_option = has_options(
                hints[field.name]
            )  # the config group fills it, whatever the library's default
            default = dataclasses.field(default=MISSING) if is_option else _default(field)
            fields.append((field.name, seen, default))
    made = dataclasses.make_dataclass(f"{cls.__name__}Conf", fields, bases=(cls,), kw_only=True)
    made.__module__, made.__qualname__ = __name__, _pickled_name(cls)
    return made


def _pickled_name(cls: Any) -> str:
    """What names a class, and the settings beyond those it declares, in one word without dots."""
    place = (cls.__module__, cls.__qualname__)
    origin = next(base for base in reversed(cls.__mro__) if (base.__module__, base.__qualname__) == place)
    declared = {field.name for field in dataclasses.fields(origin)}
    further = [field.name for field in dataclasses.fields(cls) if field.name not in declared]
    return "|".join([".".join(place).replace(".", "/"), *further])


def __getattr__(name: str) -> type:
    """The schema that goes by a pickled name: every process of a sweep makes its own, and they agree."""
    path, *others = name.split("|")
    if "/" not in path:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    cls = get_class(path.replace("/", "."))
    return schema(cls.having(*others) if others else cls)  # type: ignore[attr-defined]


def _seen(hint: Any) -> Any:
    """A field's type in the schema."""
    if has_options(hint):
        return Any
    if dataclasses.is_dataclass(hint):
        return schema(hint)  # type: ignore[arg-type]
    if get_origin(hint) in (dict, list):
        return get_origin(hint)[tuple(_seen(part) for part in get_args(hint))]
    return hint


def _default(field: dataclasses.Field) -> Any:
    """The field for its type in the schema: a nested dataclass keeps the values that its owner gives it."""
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default, metadata=field.metadata)
    factory: Any = field.default_factory
    if factory is dataclasses.MISSING:
        return dataclasses.field(default=MISSING, metadata=field.metadata)
    return dataclasses.field(default_factory=lambda: _as_schema(factory()), metadata=field.metadata)


def _as_schema(value: Any) -> Any:
    """A value, where it is a dataclass as one of its schema, nested ones too."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    values = {field.name: _as_schema(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return schema(type(value))(**values)


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


def check(cfg: DictConfig, known: Known) -> None:
    """Hold every key against its dataclass; what names a dataclass by `_target_` alone gets its schema here.

    Raises: Refused.
    """
    for at, node in nodes(cfg):
        cls = OmegaConf.get_type(node)
        hints = _hints(cls)
        if hints and node._target_ != cls._target_:  # type: ignore[union-attr]
            raise Refused(f"{at}_target_: {FOLLOWS}")
        keys = [str(key) for key in node if at or key != "hydra"]
        words = _measured(node, "words")
        if gone := [name for name in hints if name not in keys]:
            raise Refused(f"{at}{gone[0]}: {STAYS}")
        for key in keys:
            if hints and key not in hints:
                raise Refused(unknown(f"{at}{key}", known()))
            if key in words:
                _check_words(f"{at}{key}", node[key])
                continue
            empty_or_plain = OmegaConf.get_type(node, key) in (dict, type(None))
            if hints.get(key) is Any or not hints and empty_or_plain:
                _lay_schema(node, key, at, known)


def _check_words(key: str, value: Any) -> None:
    """Refuse what is neither a word nor a list of them."""
    several = OmegaConf.is_list(value) and len(value) > 0
    if not all(isinstance(word, str) for word in (value if several else [value])):
        raise Refused(f"{key}: expected a name or a list of names, written [a,b], got {value}")


def _hints(cls: Any) -> dict[str, Any]:
    """Field -> type; {} for what is no dataclass."""
    if not dataclasses.is_dataclass(cls):
        return {}
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _lay_schema(node: DictConfig, key: str, at: str, known: Known) -> None:
    """Make sure that an option is one of a dataclass."""
    if OmegaConf.is_missing(node, key):
        return
    child = node[key]
    if not OmegaConf.is_dict(child):
        raise Refused(f"{at}{key}: expected the settings of an option, got {child}")
    if dataclasses.is_dataclass(OmegaConf.get_type(child)):
        return
    if "_target_" not in child:
        raise Refused(unknown(f"{at}{key}", known()))
    try:
        cls = get_class(child["_target_"])
    except (ImportError, ValueError) as error:
        raise Refused(f"{at}{key}._target_: expected a dataclass, got {child['_target_']}") from error
    if not dataclasses.is_dataclass(cls):
        raise Refused(f"{at}{key}._target_: expected a dataclass, got {child['_target_']}")
    with open_dict(child):
        for name in [name for name in _further(cls, child) if child[name] is None]:
            del child[name]  # what a file builds on has it, and the file takes it away
    try:
        cls = with_others(cls, child, f"{at}{key}.")
    except ValueError as error:
        raise Refused(str(error)) from error
    with open_dict(node):
        node[key] = OmegaConf.structured(schema(cls))
    node[key].merge_with(child)  # where it belongs, so that an error names the whole key


def with_others(cls: Any, node: DictConfig, at: str = "") -> type:
    """The class with all settings of a mapping as fields.

    Raises: ValueError for what is neither declared nor makes a new one, its key after `at`.
    """
    names = [name for name in _further(cls, node) if node[name] is not None]
    for name in names:
        first = dataclasses.fields(cls.others)[0].name
        if not OmegaConf.is_dict(node[name]) or first not in node[name]:
            sisters = [f"{at}{sister}" for sister in (*_hints(cls), *names) if sister != name]
            raise ValueError(f"{unknown(at + name, sisters)} ({at}{name}.{first} would make a new one)")
    try:
        return cls.having(*names) if names else cls
    except ValueError as error:
        raise ValueError(f"{at}{error}") from error


def _further(cls: Any, node: DictConfig) -> list[str]:
    """The settings in a mapping beyond the fields of a class that takes others."""
    declared = {"_target_", *_hints(cls)}
    return [str(key) for key in node if key not in declared] if hasattr(cls, "others") else []


def loosen(node: DictConfig) -> DictConfig:
    """The settings of a class with `others` as a plain mapping of typed values: one can be added or deleted.

    `check` makes it whole again. Of any other class: the node itself.
    """
    if not hasattr(OmegaConf.get_type(node), "others"):
        return node
    return OmegaConf.create({key: node._get_node(key) for key in node})


def loosen_options(cfg: DictConfig) -> None:
    """`loosen` every option, so that the command line may do so."""
    for _, node in list(nodes(cfg)):
        for key, hint in _hints(OmegaConf.get_type(node)).items():
            if hint is Any and not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
                node[key] = loosen(node[key])


def leave_out(layer: DictConfig, cfg: DictConfig, known: Known, at: str = "") -> None:
    """Leave out of a layer what it says of options that `cfg` does not have."""
    for key in [str(key) for key in layer]:
        if key not in cfg.keys() and known().get(at + key):
            del layer[key]
        elif key in cfg and OmegaConf.is_dict(cfg[key]) and OmegaConf.is_dict(layer[key]):
            leave_out(layer[key], cfg[key], known, f"{at}{key}.")


def scale(cfg: DictConfig, factor: float, which: Callable[[str], bool] = lambda key: True) -> None:
    """Scale windows and milestones whose keys are meant."""
    for at, node in nodes(cfg):
        for name in _measured(node, "steps"):
            if which(at + name) and not OmegaConf.is_interpolation(node, name):
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
