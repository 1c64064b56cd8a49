"""What happens between steps so that a run survives: signals, memory that runs out, checkpoints in time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.run.checkpoint import Checkpoint, found, write
from splatexp.run.memory_budget import rows_take, step_takes
from splatexp.system import devices
from splatexp.system.memory import Memory, Watch, available
from splatexp.system.signals import Signals, Stopped
from splatexp.train.step_log import sick

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.run.state import State
    from splatexp.train.recipe import Recipe


class Keeper:
    """Called after every step: writes checkpoints, heeds signals, watches memory.

    notes: what stands in every checkpoint besides the state.
    Memory that runs out while rows move leaves the step half done: where it is short, there is a checkpoint
    before that.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        memory: Memory,
        scene: Scene,
        state: State,
        folder: Path,
        notes: Callable[[], dict[str, Any]],
        signals: Signals,
    ):
        self.state, self.folder, self.notes, self.signals = state, folder / "checkpoints", notes, signals
        self.rule, self.steps, self.moves = checkpoint, recipe.steps, recipe.densify.moves
        self.size = scene.train[0].camera.width, scene.train[0].camera.height
        self.watch, self.device = Watch(memory.reserve), recipe.raster.device

    def __call__(self, step: int, splats: Splats) -> None:
        """Raises: Stopped; MemoryError; FloatingPointError where parameters are no longer finite."""
        self.state.step, done = step + 1, step + 1
        due = self.rule.every > 0 and (done % self.rule.every == 0 or self._last(done))
        due = due or (not self._last(done) and self.moves(done) and self._short())
        saved = self.save() if due else None
        if self.signals.heed():
            saved = saved or self.save()
            where = f"; saved {saved}, resume=auto goes on" if saved else "; nothing could be saved"
            raise Stopped(self.signals.caught, f" after step {done}{where}")
        left = self.watch(self._takes())
        if left is not None:
            raise MemoryError(f"the next step would leave {left >> 20} MiB, less than memory.reserve_mb")

    def _last(self, done: int) -> bool:
        return done == self.steps or self.state.record.ended

    def _takes(self) -> int:
        """Bytes that a step takes of the host and frees, about."""
        if self.device.type != "cpu":
            return 0
        return step_takes(len(self.state.splats), self.state.splats.sh_degree, *self.size)

    def _short(self) -> bool:
        """Whether memory might not do for twice the rows that there are."""
        if not self.watch.reserve:
            return False
        there = devices.room(self.device)
        left = there[1] if there else available(self._takes())
        rows = rows_take(len(self.state.splats), self.state.splats.sh_degree)
        return left is not None and left < self.watch.reserve + rows

    def save(self) -> Path | None:
        """Write a checkpoint of the state; where that fails a warning says why, and the older ones are kept.

        Raises: FloatingPointError where the state, or the last loss, is not finite: it is not kept.
        """
        self.state.record.confirm()
        if bad := sick(self.state.splats):
            last = found(self.folder)
            rows = ", ".join(f"{count} rows of {name}" for name, count in bad.items())
            kept = f"the last checkpoint is {last[0][1]}" if last else "no checkpoint was written before"
            raise FloatingPointError(f"step {self.state.step - 1}: not finite: {rows}; {kept}")
        notes = self.state.notes() | self.notes()
        try:
            return write(self.folder, self.state.step, self.state.tensors(), notes, self.rule.keep)
        except OSError as error:
            warnings.warn(f"no checkpoint at step {self.state.step}: {error.strerror or error}", stacklevel=2)
            return None

    def rescue(self, error: BaseException) -> Path | None:
        """Save what there is after memory has run out, if that is a state between two steps.

        What the failed step has made is let go first. Returns: the newest checkpoint that there is.
        """
        seen: BaseException | None = error
        while seen is not None:  # the frames of its traceback hold the pictures of the step
            seen.__traceback__, seen = None, seen.__context__
        self.watch.lift()
        splats = self.state.splats
        last = found(self.folder)
        if splats.between and (not last or last[0][0] < self.state.step):
            return self.save() or (last[0][1] if last else None)
        return last[0][1] if last else None
