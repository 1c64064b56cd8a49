"""One line for whatever Hydra refuses: which key or value, and the nearest one that exists.

It reads the text of the error only, so that it needs neither Hydra nor OmegaConf.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches

from splatexp.settings.renames import new_key

KINDS = {"Integer": "a whole number", "Float": "a number", "String": "a text"}


def explain(text: str, known: Mapping[str, list[str]], options: Callable[[str], list[str]]) -> str:
    """The error `text` of a composition in one line.

    known: every dotted key -> the choices that it takes. options: the names that a group offers.
    """
    where = f" (in {found[1]})" if (found := re.search(r"^In '((?!config').*?)'", text)) else ""
    place = found[1] if (found := re.search(r"full_key: (\S+)", text)) else ""
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/(.*?)'", text):
        group, name = found.groups()
        return f"{group}={name}: no such option of {group}{_or_one_of(name, options(group))}"
    if re.search(r"Key '.*?' (?:is )?not in", text):
        return unknown(place, known) + where
    if found := re.search(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return unknown(found[1], known) + where
    if found := re.search(r"An item is already at '(.+?)'", text):
        return f"{found[1]} exists already: write it without +"
    if found := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text):
        whole = re.fullmatch(r"(\d+)\.0", found[1]) if found[2] == "Integer" else None
        hint = f"; write {int(whole[1]):_}" if whole else ""
        return f"{place}: expected {KINDS.get(found[2], found[2])}, got {found[1]!r}{hint}{where}"
    if found := re.search(r"Value '(.*)' is not a valid bool", text):
        return f"{place}: expected true or false, got {found[1]!r}{where}"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+?)'", text):
        return f"{found[1]}: several values need -m (a run for each); a list is written key=[a,b]"
    if found := re.search(r"Invalid type assigned: .* value: (.*)", text):
        part = next((key for key in known if key.startswith(f"{place}.")), place)
        return f"{place}: expected its settings one by one, such as {part}=..., got {found[1]}"
    if "does not support deletion" in text:
        return f"{place}: a setting cannot be deleted"
    if "is not Optional" in text:
        return f"{place}: expected a value, got null{where}"
    if "is not a ListConfig" in text:
        return f"{place}: expected a list, written [a,b]{where}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and (lines[0].startswith("Error merging") or "raised while composing" in lines[0]):
        lines.pop(0)
    return f"{place}: {lines[0]}{where}" if place else lines[0]


def unknown(key: str, known: Iterable[str]) -> str:
    """A line that refuses `key` and names the nearest of `known`: a sister first, then one of any family."""
    keys, key = list(known), key.replace("/", ".")
    if key in keys:
        needed = known[key] if isinstance(known, Mapping) else []
        return f"{key}: needs {_any_of(needed)}" if needed else f"{key}: write it as {key}=..."
    if (new := new_key(key)) in keys:
        return f"{key}: is called {new} now"
    parent, _, name = key.rpartition(".")
    sisters = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    others = {k.rpartition(".")[2]: k for k in reversed(keys) if not k.startswith("hydra.")}
    for family in (sisters, others):
        if near := get_close_matches(name, family, n=1, cutoff=0.6):
            return f"{key}: no such key; did you mean {family[near[0]]}?"
    if parent in keys and not sisters:
        return f"{key}: no such key; {parent} has none"
    return f"{key}: no such key{_or_one_of(name, sisters or [k for k in keys if '.' not in k])}"


def _any_of(choices: list[str]) -> str:
    few = choices if len(choices) <= 4 else [*choices[:3], f"{len(choices) - 3} others"]
    return " or ".join(few)


def _or_one_of(name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    if near := get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean {near[0]}? ({', '.join(names)})"
    return f"; there are {', '.join(names)}" if names else ""
