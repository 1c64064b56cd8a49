"""Settings by any name: `Ruled(grow=Rule("clone"))` is like an instance of a class with the field `grow`."""

from dataclasses import fields, make_dataclass
from functools import cache
from keyword import iskeyword
from typing import Any, ClassVar


class Named:
    """What a dataclass inherits that takes, beside its fields, any number of settings of the type `others`.

    The instance is of a subclass that has them as fields, behind the declared ones and in the order given.
    A config must say the first field of `others`: by it a new setting is told from a misspelt one.
    """

    others: ClassVar[type]

    def __new__(cls, *values: Any, **settings: Any) -> Any:
        """An empty instance of the class that has all settings as fields; `__init__` fills it."""
        further = [name for name, value in settings.items() if isinstance(value, cls.others)]
        return object.__new__(cls.having(*further))

    @classmethod
    def having(cls, *names: str) -> type:
        """The class with fields of these names, which are `others` where they are not declared.

        Raises: ValueError for a name that cannot be a field.
        """
        declared = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        further = tuple(name for name in names if name not in declared)
        return _extended(cls, further) if further else cls


@cache
def _extended(cls: type[Named], names: tuple[str, ...]) -> type:
    for name in names:
        if not name.isidentifier() or iskeyword(name) or name.startswith("_") or hasattr(cls, name):
            raise ValueError(f"{name}: expected another name, this one cannot be given to a setting")
    made = make_dataclass(cls.__name__, [(name, cls.others) for name in names], bases=(cls,), kw_only=True)
    made.__module__, made.__qualname__ = cls.__module__, cls.__qualname__  # what rebuilds it
    return made
