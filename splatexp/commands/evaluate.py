"""Measure the held-out views of a finished run again.

    python -m splatexp.evaluate run=<folder> [lpips_weights=<folder>] [renders=true|false]
        [turntable=true|false] [turntable_frames=120] [turntable_fps=30]
        [optimize_poses=true|false] [pose_steps=100]

This replaces the run's metrics.json; its times and overrides stay what they were.
"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from splatexp.evaluation.evaluate import (
    EvaluationSettings,
    compute_result,
    read_result,
    write_result,
)
from splatexp.evaluation.summary import print_summary

# Entries of metrics.json that describe the run and stay when it is measured again.
KEPT = ("train_seconds", "wall_seconds", "peak_memory_bytes", "peak_device_bytes", "overrides", "run")
# Entries that describe the process; those of the training move to `trained_with`.
TRAINED_WITH = ("command", "code_sha256", "git", "packages", "hardware", "raster")


def evaluate_run(folder: str, **changes: Any) -> dict[str, Any]:
    """Measure the finished run in `folder` again and return the contents of metrics.json.

    A warning is given when the data differ from those of the training.

    Args:
        changes: settings of `EvaluationSettings` that are to differ from those of the run.

    Raises: OSError or ValueError, one line, for a folder that is not a finished run.
    """
    from splatexp.commands.open_run import open_run

    run, scene, splats = open_run(folder)
    before = read_result(folder)
    extra_metrics = run.rate.finish(splats, scene, run.raster, None)
    settings = replace(run.evaluate, **changes)
    result = compute_result(
        splats, run.raster, scene, folder, settings, data=run.data, extra_metrics=extra_metrics
    )
    if before:
        result |= {name: before[name] for name in KEPT if name in before}
        result["trained_with"] = before.get("trained_with") or {
            name: before.get(name) for name in TRAINED_WITH
        }
        if before.get("scene", {}).get("data_sha256") != scene.fingerprint:
            warnings.warn(f"{folder}: the data differ from those of the training", stacklevel=2)
    write_result(Path(folder), result)
    return result


def main() -> None:
    """Run the command `python -m splatexp.evaluate`."""
    from splatexp.commands.command_line import run_command

    known = {"run": str} | {setting.name: type(setting.default) for setting in fields(EvaluationSettings)}
    del known["every"], known["train_images_every"]  # these two are about training
    run_command(__doc__ or "", known, lambda run, **changes: print_summary(evaluate_run(run, **changes), run))
