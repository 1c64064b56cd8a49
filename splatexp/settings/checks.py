"""Checks of single settings."""

from collections.abc import Iterable
from difflib import get_close_matches

STEPS = {"unit": "steps"}


def check_choice(name: str, value: str, options: Iterable[str], listed: Iterable[str] = ()) -> None:
    """Check that a setting is one of its options.

    Args:
        listed: the options that the message lists; all, if none are given.

    Raises: ValueError that suggests the nearest option.
    """
    options = list(options)
    if value not in options:
        near = get_close_matches(value, options, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {', '.join(list(listed) or options)}, got {value!r}{hint}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Check that a number is in [low, high].

    Raises: ValueError, also for NaN.
    """
    if not low <= value <= high:
        bounds = f"at least {low}" if high == float("inf") else f"a number in [{low}, {high}]"
        raise ValueError(f"{name}: expected {bounds}, got {value}")
