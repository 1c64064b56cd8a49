"""One line for every error: what Hydra refuses, an unknown key with the nearest one, and errors in general.

Errors of Hydra are recognized by their text, so that this module needs neither Hydra nor OmegaConf.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from splatexp.settings.renames import new_key

KINDS = {"Integer": "a whole number", "Float": "a number", "String": "a text"}


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line; of an OSError without a file name, its text alone."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    return " ".join(text.split()) or type(error).__name__


def explain_error(text: str, known: Mapping[str, list[str]], options: Callable[[str], list[str]]) -> str:
    """Return one line for the text of an error of composing a config.

    Args:
        known: every dotted key -> the choices of options that it needs.
        options: returns the names of the options of a group.
    """
    where = f" (in {found[1]})" if (found := re.search(r"^In '((?!config').*?)'", text)) else ""
    key = found[1] if (found := re.search(r"full_key: (\S+)", text)) else ""
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/(.*?)'", text):
        group, name = found.groups()
        return f"{group}={name}: {group} has no such option{_suggestion(name, options(group))}"
    override = re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text)
    if override and new_key(override[1]) in known:
        return unknown_key(override[1], known) + where
    if re.search(r"Key '.*?' (?:is )?not in", text):
        return unknown_key(key, known) + where
    if override:
        return unknown_key(override[1], known) + where
    if found := re.search(r"An item is already at '(.+?)'", text):
        return f"{found[1]}: the key exists already, write it without +"
    if found := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text):
        whole = re.fullmatch(r"(\d+)\.0", found[1]) if found[2] == "Integer" else None
        hint = f"; write {int(whole[1]):_}" if whole else ""
        return f"{key}: expected {KINDS.get(found[2], found[2])}, got {found[1]!r}{hint}{where}"
    if found := re.search(r"Value '(.*)' is not a valid bool", text):
        return f"{key}: expected true or false, got {found[1]!r}{where}"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return f"{found[1]}: several values need -m (one run for each); a list is written key=[a,b]"
    if found := re.search(r"Invalid type assigned: .* value: (.*)", text):
        part = next((name for name in known if name.startswith(f"{key}.")), key)
        return f"{key}: expected its settings one by one, such as {part}=..., got {found[1]}"
    if "does not support deletion" in text:
        return f"{key}: a setting cannot be deleted"
    if "is not Optional" in text:
        return f"{key}: expected a value, got null{where}"
    if "is not a ListConfig" in text:
        return f"{key}: expected a list, written [a,b]{where}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and (lines[0].startswith("Error merging") or "raised while composing" in lines[0]):
        lines.pop(0)
    return f"{key}: {lines[0]}{where}" if key else lines[0]


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return a line that refuses `key` and suggests the nearest of `known`: a sibling first, then any other.

    A key that does exist needs another choice of options; the line then names that choice.
    """
    keys, key = list(known), key.replace("/", ".")
    if key in keys:
        needed = known[key] if isinstance(known, Mapping) else []
        return f"{key}: needs {_any_of(needed)}" if needed else f"{key}: write it as {key}=..."
    if new := new_key(key):
        return f"{key}: renamed to {new}"
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    others = {k.rpartition(".")[2]: k for k in reversed(keys) if not k.startswith("hydra.")}
    for candidates in (siblings, others):
        if near := get_close_matches(name, candidates, n=1, cutoff=0.6):
            return f"{key}: no such key; did you mean {candidates[near[0]]}?"
    if parent in keys and not siblings:
        return f"{key}: no such key; {parent} has no settings below it"
    return f"{key}: no such key{_suggestion(name, siblings or [k for k in keys if '.' not in k])}"


def _any_of(choices: list[str]) -> str:
    few = choices if len(choices) <= 4 else [*choices[:3], f"{len(choices) - 3} others"]
    return " or ".join(few)


def _suggestion(name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    if near := get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean {near[0]}? ({', '.join(names)})"
    return f"; there are {', '.join(names)}" if names else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
