"""Measure the held-out views of a finished run again.

    python -m splatexp.evaluate run=<folder> [lpips_weights=<folder>] [renders=true|false]
        [turntable=true|false] [turntable_frames=120] [turntable_fps=30] [align=true|false] [align_steps=100]

This replaces the run's metrics.json; its times and overrides stay what they were.
"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from splatexp.evaluation.evaluate import Evaluate, assess, read_result, write_result
from splatexp.evaluation.summary import summary

# from evaluation to evaluation
CARRIED = ("train_seconds", "wall_seconds", "peak_memory_bytes", "peak_device_bytes", "overrides")


CARRIED += ("run",)


ORIGIN = ("command", "code_sha256", "git", "packages", "hardware", "raster")


def again(folder: str, **changes: Any) -> dict[str, Any]:
    """Measure the finished run in `folder` again, some settings changed.

    Times and overrides stay; code, packages and machine of the training move to `trained_with`.
    Warns when the data are no longer those of the training.
    Raises: OSError, ValueError with one line for a folder that is not a finished run.
    """
    from splatexp.commands.open_run import open_run

    run, scene, splats = open_run(folder)
    before = read_result(folder)
    more = run.rate.finish(splats, scene, run.raster, None)
    settings = replace(run.evaluate, **changes)
    result = assess(splats, run.raster, scene, folder, settings, data=run.data, more=more)
    if before:
        result |= {name: before[name] for name in CARRIED if name in before}
        result["trained_with"] = before.get("trained_with") or {name: before.get(name) for name in ORIGIN}
        if before.get("scene", {}).get("data_sha256") != scene.fingerprint:
            warnings.warn(f"{folder}: the data are not those it was trained on", stacklevel=2)
    write_result(Path(folder), result)
    return result


def main() -> None:
    """The command `python -m splatexp.evaluate`."""
    from splatexp.settings.arguments import command

    known = {"run": str} | {setting.name: type(setting.default) for setting in fields(Evaluate)}
    del known["every"], known["pictures"]
    command(__doc__ or "", known, lambda run, **changes: summary(again(run, **changes), run))
