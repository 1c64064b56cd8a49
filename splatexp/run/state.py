"""All that a run is made of between two of its steps: what a checkpoint holds besides the settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splatexp.gaussians.plane import Plane
from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import Splats
from splatexp.run.checkpoint import read
from splatexp.system import devices, memory
from splatexp.system.rng import generators, set_generators
from splatexp.train.step_log import Record

KINDS: tuple[type[Rows], ...] = (Splats, Plane)  # of rows that a checkpoint may hold
SHRUNK = {"step", "setting", "from", "to"}


@dataclass
class State:
    """After `step` steps. The splats hold parameters, moments, statistics, tags and gradients that wait;
    sampling, schedules and density control follow from (step, seed) and the settings.
    """

    splats: Rows
    step: int = 0
    record: Record = field(default_factory=Record)
    random: dict[str, Tensor] = field(default_factory=generators)  # global generators, when training goes on
    shrunk: list[dict[str, Any]] = field(default_factory=list)  # what oom=shrink did: step, setting, from, to
    resumed: list[int] = field(default_factory=list)  # where it was interrupted and went on
    wall_seconds: float = 0.0  # of the earlier parts of the run
    peak_bytes: int | None = None  # likewise
    peak_device_bytes: int | None = None  # likewise
    began: float = field(default_factory=time.perf_counter)  # when this part did
    news: list[str] = field(default_factory=list)  # how it came about, for people

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, for a checkpoint."""
        tensors = {f"splats.{name}": tensor for name, tensor in self.splats.state_dict().items()}
        return tensors | {f"random.{name}": tensor for name, tensor in generators().items()}

    def notes(self) -> dict[str, Any]:
        """The rest of it, for JSON."""
        return {
            "record": self.record.state(),
            "shrunk": self.shrunk,
            "resumed": self.resumed,
            "wall_seconds": self.wall(),
            "peak_bytes": self.peak(),
            "peak_device_bytes": self.peak_device(),
        }

    def wall(self) -> float:
        """Seconds of all parts of the run so far."""
        return self.wall_seconds + time.perf_counter() - self.began

    def peak(self) -> int | None:
        """Peak resident memory of all parts, bytes; None where the system does not tell."""
        return max(filter(None, (self.peak_bytes, memory.peak())), default=None)

    def peak_device(self) -> int | None:
        """Peak of what tensors took of the device that trains, of all parts, bytes; None on the CPU."""
        peaks = (self.peak_device_bytes, devices.peak(self.splats.means.device))
        return max(filter(None, peaks), default=None)

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], device: torch.device | None = None
    ) -> State:
        """What `tensors` and `notes` gave, the rows on a device.

        Raises: ValueError for shapes or types that do not fit each other, before anything is touched.
        """
        parts: dict[str, dict[str, Tensor]] = {"splats": {}, "random": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition(".")
            if group not in parts or not rest:
                raise ValueError(f"{name}: no tensor that a run has")
            parts[group][rest] = tensor
        kind = next((kind for kind in KINDS if set(kind.NAMES) <= set(parts["splats"])), Splats)
        splats = kind.of(parts["splats"], device)
        set_generators(parts["random"])
        names = ("shrunk", "resumed", "wall_seconds", "peak_bytes", "peak_device_bytes")
        shrunk, resumed, wall, peak, there = map(notes.get, names)
        well = isinstance(shrunk, list) and isinstance(resumed, list) and isinstance(wall, (int, float))
        if not well or not all(isinstance(each, dict) and SHRUNK <= set(each) for each in shrunk):
            raise ValueError("notes: not as they were written")
        record = Record.of(notes.get("record") or {})
        return cls(splats, notes["step"], record, parts["random"], shrunk, resumed, wall, peak, there)

    def restore(self, path: Path) -> None:
        """Go back to what a checkpoint holds; what has been shrunk since stays so.

        The rows that there are go first: memory is short.
        """
        shrunk, news, device = self.shrunk, self.news, self.splats.means.device
        del self.splats
        vars(self).update(vars(State.of(*read(path), device)) | {"shrunk": shrunk, "news": news})

    def settle(self) -> None:
        """Put the global random generators where they were."""
        set_generators(self.random)
