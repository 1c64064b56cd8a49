"""Dataclasses that take further settings of any name, as a strategy takes rules."""

from dataclasses import fields, make_dataclass
from functools import cache
from keyword import iskeyword
from typing import Any, ClassVar


class Named:
    """The base of a dataclass that takes, besides its fields, `entry_class` settings of any name.

    An instance belongs to a subclass that has them as fields, after the declared ones and in the order given:
    `RuleStrategy(grow=Rule("clone"))` is like an instance of a class with the field `grow`. A config has to
    set the first field of `entry_class`, by which a new entry is told from a misspelt key.
    """

    entry_class: ClassVar[type]

    def __new__(cls, *values: Any, **settings: Any) -> Any:
        """Return an empty instance of the class that has all settings as fields; `__init__` fills it."""
        entries = [name for name, value in settings.items() if isinstance(value, cls.entry_class)]
        return object.__new__(cls.with_entries(*entries))

    @classmethod
    def with_entries(cls, *names: str) -> type:
        """Return the class with fields of these names; those that are not declared are of `entry_class`.

        Raises: ValueError for a name that cannot be a field.
        """
        declared = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        entries = tuple(name for name in names if name not in declared)
        return _extended(cls, entries) if entries else cls


@cache
def _extended(cls: type[Named], names: tuple[str, ...]) -> type:
    for name in names:
        if not name.isidentifier() or iskeyword(name) or name.startswith("_") or hasattr(cls, name):
            raise ValueError(
                f"{name}: expected a name that is not taken, not a keyword, and without a leading _"
            )
    made = make_dataclass(
        cls.__name__, [(name, cls.entry_class) for name in names], bases=(cls,), kw_only=True
    )
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__  # the path from which it is rebuilt
    return made
