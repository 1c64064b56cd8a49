"""Finished runs read back, and how the settings of two of them differ."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatexp.settings.renames import migrate
from splatexp.train.recipe import RECIPE

# Settings of a recipe that cannot change a number; the seed is paired over, not compared.
SILENT = {"seed", "data.path", "data.cache"}
ABSENT = "absent"
SHOWN = 5  # settings of a part that only one side has


@dataclass(frozen=True)
class Result:
    """A finished run: which one of its study it is, and what its folder says."""

    variant: str
    scene: str
    seed: int
    folder: Path
    metrics: dict[str, Any]  # metrics.json
    config: dict[str, Any]  # dotted key -> value; a part with a class has its name as value
    rows: list[dict[str, str]]  # of metrics.csv, one a logged step

    @property
    def key(self) -> tuple[str, int]:
        """What it is paired by."""
        return self.scene, self.seed

    @property
    def name(self) -> str:
        """For people: adc / fox / seed 0."""
        return f"{self.variant} / {self.scene} / seed {self.seed}"

    @property
    def views(self) -> list[dict[str, Any]]:
        """Its held-out views: name, hash of the truth, every metric."""
        return self.metrics["per_view"]

    @property
    def size(self) -> int | None:
        """Bytes of the model on disk: of the .ply, or of the largest file where there is none."""
        sizes = self.metrics.get("bytes_on_disk") or {}
        return sizes.get("point_cloud.ply", max(sizes.values(), default=None))


def read(folder: str | Path, variant: str, scene: str, seed: int) -> Result:
    """The finished run in `folder`.

    Raises: OSError, ValueError with one line where it is not finished, or cannot be read.
    """
    from splatexp.settings.serialize import flat

    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(f"{folder}: expected a finished run, got no metrics.json in it")
    metrics = _json(folder / "metrics.json")
    views = metrics.get("per_view")
    if not isinstance(views, list) or not all(isinstance(v, dict) and "view" in v for v in views):
        raise ValueError(f"{folder / 'metrics.json'}: expected views in per_view, got {views!r:.60}")
    return Result(
        variant, scene, seed, folder, metrics, flat(migrate(_config(folder))), _rows(folder / "metrics.csv")
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and can change a number: key -> both values, `ABSENT` where one side has none.

    before, after: `Result.config`.
    """
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key, ABSENT), after.get(key, ABSENT)) for key in keys if not _silent(key)}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """`differences` for people: the settings of a part that one side lacks become one line of it.

    E.g. {"densify.tag": ("absent", "Rule(operate=split, score=error, …)")}.
    """
    found = differences(before, after)
    inner: dict[str, str] = {}  # key -> the part whose line tells it
    for part in found:
        for key in found:
            if key.startswith(f"{part}.") and ABSENT in found[key]:
                inner.setdefault(key, inner.get(part, part))
    lines = {}
    for key in found:
        if key not in inner:
            rest = [name for name, part in inner.items() if part == key]
            told = [_told(key, rest, found, side) for side in (0, 1)]
            lines[key] = (told[0], told[1])
    return lines


def shown(value: Any) -> str:
    """A setting as the command line has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(shown(part) for part in value)}]"
    return "''" if value == "" else str(value)


def _told(key: str, rest: Sequence[str], found: Mapping[str, tuple[Any, Any]], side: int) -> str:
    """One side of a part, with those of its settings that are neither nothing nor absent."""
    own = found[key][side]
    here = {name: found[name][side] for name in rest}
    said = [f"{name[len(key) + 1 :]}={shown(v)}" for name, v in here.items() if v and v != ABSENT]
    if not said:
        return shown(own)
    return f"{shown(own)}({', '.join(said[:SHOWN])}{', …' if len(said) > SHOWN else ''})"


def _silent(key: str) -> bool:
    return key in SILENT or key.partition(".")[0] not in RECIPE


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or str(one) == str(other)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a readable result file ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object, got {type(found).__name__}")
    return found


def _config(folder: Path) -> dict[str, Any]:
    """The resolved config that a run wrote of itself; that of Hydra where it kept no journal."""
    import yaml

    if (folder / "run.json").is_file():
        config = _json(folder / "run.json").get("config")
    else:
        path = folder / ".hydra" / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder}: no run.json and no .hydra/config.yaml in it") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not readable ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder}: expected the config of a run, got {type(config).__name__}")
    return config


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows of a .csv; [] where there is none, as when nothing was logged."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]
