"""Results of finished runs, read from their folders, and the differences between the settings of two runs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatexp.settings.messages import one_line
from splatexp.settings.renames import migrate, migrate_result, new_column
from splatexp.train.recipe import RECIPE

# Settings of a recipe that cannot change a number; the seed is paired over, not compared.
IGNORED_SETTINGS = {"seed", "data.path", "data.cache"}
ABSENT = "absent"
MAX_SETTINGS = 5  # of a part that only one run has: so many are listed


@dataclass(frozen=True)
class Result:
    """A finished run of a study."""

    variant: str
    scene: str
    seed: int
    folder: Path
    metrics: dict[str, Any]  # metrics.json
    config: dict[str, Any]  # dotted key -> value; the value of a part is the name of its class
    log_rows: list[dict[str, str]]  # of metrics.csv, one per logged step

    @property
    def pair_key(self) -> tuple[str, int]:
        """The scene and the seed, by which runs of two variants are paired."""
        return self.scene, self.seed

    @property
    def label(self) -> str:
        """A name for people, such as "adc / fox / seed 0"."""
        return f"{self.variant} / {self.scene} / seed {self.seed}"

    @property
    def views(self) -> list[dict[str, Any]]:
        """The held-out views: name, hash of the target image, and all metrics of each."""
        return self.metrics["per_view"]

    @property
    def size(self) -> int | None:
        """The size of the model on disk in bytes: of the .ply, or of the largest file where there is none."""
        sizes = self.metrics.get("bytes_on_disk") or {}
        return sizes.get("point_cloud.ply", max(sizes.values(), default=None))


def read_result(folder: str | Path, variant: str, scene: str, seed: int) -> Result:
    """Read the finished run in `folder`, also one of an earlier version.

    Raises: OSError, ValueError with one line for a run that is not finished or cannot be read.
    """
    from splatexp.settings.serialize import flatten_config

    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run, got no metrics.json in it")
    metrics = migrate_result(_read_json(folder / "metrics.json"))
    views = metrics.get("per_view")
    if not isinstance(views, list) or not all(isinstance(v, dict) and "view" in v for v in views):
        raise ValueError(f"{folder / 'metrics.json'}: expected views in per_view, got {views!r:.60}")
    config = flatten_config(migrate(_read_config(folder)))
    return Result(variant, scene, seed, folder, metrics, config, _read_log(folder / "metrics.csv"))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ and can change a number: key -> both values.

    The value is `ABSENT` where a run has no such setting.

    before, after: `Result.config` of two runs.
    """
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys if not _is_ignored(key)}
    return {key: pair for key, pair in pairs.items() if not _is_equal(*pair)}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return `differences` for people, where the settings of a part that only one run has are one entry.

    For example {"densify.tag": ("absent", "Rule(operate=split, score=error, …)")}.
    """
    found = differences(before, after)
    inner: dict[str, str] = {}  # key -> the part whose entry contains it
    for part in found:
        for key in found:
            if key.startswith(f"{part}.") and ABSENT in found[key]:
                inner.setdefault(key, inner.get(part, part))
    lines = {}
    for key in found:
        if key not in inner:
            rest = [name for name, part in inner.items() if part == key]
            lines[key] = (_format_part(key, rest, found, 0), _format_part(key, rest, found, 1))
    return lines


def format_setting(value: Any) -> str:
    """Return a setting as one writes it on the command line."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(format_setting(part) for part in value)}]"
    return "''" if value == "" else str(value)


def _format_part(key: str, rest: Sequence[str], found: Mapping[str, tuple[Any, Any]], side: int) -> str:
    """Return one side of a part, with those of its settings `rest` that are neither empty nor absent."""
    own = found[key][side]
    values = {name: found[name][side] for name in rest}
    settings = [
        f"{name[len(key) + 1 :]}={format_setting(value)}"
        for name, value in values.items()
        if value and value != ABSENT
    ]
    if not settings:
        return format_setting(own)
    more = ", …" if len(settings) > MAX_SETTINGS else ""
    return f"{format_setting(own)}({', '.join(settings[:MAX_SETTINGS])}{more})"


def _is_ignored(key: str) -> bool:
    return key in IGNORED_SETTINGS or key.partition(".")[0] not in RECIPE


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return one == other or str(one) == str(other)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got text that is not ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run from run.json, or from .hydra/ where there is none."""
    import yaml

    if (folder / "run.json").is_file():
        config = _read_json(folder / "run.json").get("config")
    else:
        path = folder / ".hydra" / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder}: expected run.json or .hydra/config.yaml in it, got neither"
            ) from None
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: expected YAML, got text that is not ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder}: expected the config of a run, got {type(config).__name__}")
    return config


def _read_log(path: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv with columns by their present names; [] where there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [{new_column(name): cell for name, cell in row.items() if name is not None} for row in rows]
