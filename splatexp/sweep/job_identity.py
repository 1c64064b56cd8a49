"""The identity of a sweep's job, by which no job runs twice."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from splatexp.provenance.fingerprint import fingerprint
from splatexp.provenance.identity import run_id
from splatexp.settings.serialize import to_config
from splatexp.train.recipe import RECIPE

if TYPE_CHECKING:
    from splatexp.run.run import Run

TIMING_OBJECTIVES = {"train_seconds", "wall_seconds", "peak_memory_bytes"}  # they depend on the threads


def job_id(run: Run, varied: Collection[str] = ()) -> str:
    """Return the identity of a job: 16 hex digits; a job need not be run where one of equal identity is done.

    It follows from what the identity of a run follows from, but no data are read: a folder or file that a
    setting names counts by the names, sizes and times of what is in it. Besides, it follows from what is
    measured and drawn (`evaluate`), from a checkpoint to start from, and from the number of threads where
    seconds or memory are the objective.

    Args:
        varied: keys that a sweep varies: they count even if they cannot change a number of the result.
    """
    outside = {each.name for each in fields(run) if each.metadata.get("in_job_id", True)} - set(RECIPE)
    varied_names = {key.lstrip("+~").partition(".")[0] for key in varied} & outside
    extra = {
        "evaluate": to_config(run.evaluate) | {"lpips_weights": ""},
        "resume": run.resume if run.resume != "auto" else "",
        "threads": run.threads if TIMING_OBJECTIVES & set(run.objectives) else 0,
        "varied": {key: to_config(getattr(run, key)) for key in sorted(varied_names)},
        "files": dict(_files(run)),
    }
    return run_id(run.config(), "", json.dumps(extra, sort_keys=True, default=str))


def _files(part: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings that name a file or folder, each with the fingerprint of what is there."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.metadata.get("unit") == "path" and value and at + field.name != "job_cache":
            yield at + field.name, fingerprint(value)
        for name, each in (value if isinstance(value, dict) else {"": value}).items():
            if is_dataclass(each):
                yield from _files(each, f"{at}{field.name}.{name}.")
