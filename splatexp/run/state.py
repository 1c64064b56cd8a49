"""The state of a run between two steps: everything that a checkpoint holds besides the settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import Splats
from splatexp.gaussians.splats2d import Splats2D
from splatexp.run.checkpoint import load_checkpoint
from splatexp.system import devices, memory
from splatexp.system.rng import get_rng_state, set_rng_state
from splatexp.train.step_log import StepLog

ROW_CLASSES: tuple[type[Rows], ...] = (Splats, Splats2D)  # the kinds of rows that a checkpoint may hold
REDUCTION_KEYS = {"step", "setting", "from", "to"}  # of an entry in `oom_reductions`
# Older checkpoints have these entries under the name on the right.
OLD_KEYS = {
    "oom_reductions": "shrunk",
    "resumed_at": "resumed",
    "peak_memory_bytes": "peak_bytes",
    "step_log": "record",
}


@dataclass
class TrainingState:
    """The state of training after `step` steps.

    The rows hold parameters, Adam's moments, statistics, tags, and gradients that are still being
    accumulated. Sampling, schedules and density control have no state of their own: they follow from the
    settings and from (step, seed).
    """

    splats: Rows
    step: int = 0
    step_log: StepLog = field(default_factory=StepLog)
    rng_state: dict[str, Tensor] = field(default_factory=get_rng_state)  # restored when training continues
    oom_reductions: list[dict[str, Any]] = field(
        default_factory=list
    )  # by oom=shrink: step, setting, from, to
    resumed_at: list[int] = field(default_factory=list)  # the steps at which the run was resumed
    previous_wall_seconds: float = 0.0  # of the earlier sessions of the run
    previous_peak_memory: int | None = None  # bytes, of the earlier sessions
    previous_peak_device_memory: int | None = None  # bytes, of the earlier sessions
    started: float = field(default_factory=time.perf_counter)  # clock reading when this session started
    messages: list[str] = field(default_factory=list)  # for people: how this state came about

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by the names that they have in a checkpoint."""
        tensors = {f"splats.{name}": tensor for name, tensor in self.splats.state_dict().items()}
        return tensors | {f"random.{name}": tensor for name, tensor in get_rng_state().items()}

    def metadata(self) -> dict[str, Any]:
        """Return the part of the state that is not tensors, for the JSON text of a checkpoint."""
        return {
            "step_log": self.step_log.state_dict(),
            "oom_reductions": self.oom_reductions,
            "resumed_at": self.resumed_at,
            "wall_seconds": self.wall_seconds(),
            "peak_memory_bytes": self.peak_memory(),
            "peak_device_bytes": self.peak_device_memory(),
        }

    def wall_seconds(self) -> float:
        """Return the wall-clock seconds of all sessions of the run so far."""
        return self.previous_wall_seconds + time.perf_counter() - self.started

    def peak_memory(self) -> int | None:
        """Return the peak resident memory of all sessions in bytes, or None where it is unknown."""
        return max(filter(None, (self.previous_peak_memory, memory.peak_memory())), default=None)

    def peak_device_memory(self) -> int | None:
        """Return the peak device memory of all sessions' tensors in bytes, or None on the CPU."""
        peaks = (self.previous_peak_device_memory, devices.peak_memory(self.splats.means.device))
        return max(filter(None, peaks), default=None)

    @classmethod
    def from_checkpoint(
        cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], device: torch.device | None = None
    ) -> TrainingState:
        """Rebuild the state from a checkpoint's tensors and metadata, with the rows on `device`.

        Raises: ValueError for shapes or types that do not fit each other, before anything global is changed.
        """
        groups: dict[str, dict[str, Tensor]] = {"splats": {}, "random": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if group not in groups or not rest:
                raise ValueError(f"{name}: expected a tensor named splats.<name> or random.<name>")
            groups[group][rest] = tensor
        rows_class = next(
            (kind for kind in ROW_CLASSES if set(kind.PARAM_NAMES) <= set(groups["splats"])), Splats
        )
        splats = rows_class.from_state_dict(groups["splats"], device)
        set_rng_state(groups["random"])
        values = {name: metadata.get(name, metadata.get(old)) for name, old in OLD_KEYS.items()}
        reductions, resumed_at = values["oom_reductions"], values["resumed_at"]
        wall_seconds = metadata.get("wall_seconds")
        for name, value, expected in (
            ("oom_reductions", reductions, list),
            ("resumed_at", resumed_at, list),
            ("wall_seconds", wall_seconds, (int, float)),
        ):
            if not isinstance(value, expected):
                raise ValueError(f"metadata.{name}: expected {_type_names(expected)}, got {value!r}")
        for entry in reductions:
            if not isinstance(entry, dict) or not set(entry) >= REDUCTION_KEYS:
                keys = ", ".join(sorted(REDUCTION_KEYS))
                raise ValueError(f"metadata.oom_reductions: expected entries with {keys}, got {entry!r}")
        return cls(
            splats=splats,
            step=metadata["step"],
            step_log=StepLog.from_state_dict(values["step_log"] or {}),
            rng_state=groups["random"],
            oom_reductions=reductions,
            resumed_at=resumed_at,
            previous_wall_seconds=wall_seconds,
            previous_peak_memory=values["peak_memory_bytes"],
            previous_peak_device_memory=metadata.get("peak_device_bytes"),
        )

    def roll_back(self, path: Path) -> None:
        """Return to the state in the checkpoint at `path`; what was reduced since then stays reduced.

        The present rows are dropped before the file is read, because memory is short when this is called.
        """
        reductions, messages, device = self.oom_reductions, self.messages, self.splats.means.device
        del self.splats
        restored = vars(TrainingState.from_checkpoint(*load_checkpoint(path), device))
        vars(self).update(restored | {"oom_reductions": reductions, "messages": messages})

    def restore_rng(self) -> None:
        """Put the global random generators back to where this state has them."""
        set_rng_state(self.rng_state)


def _type_names(kinds: type | tuple[type, ...]) -> str:
    return "a list" if kinds is list else "a number"
