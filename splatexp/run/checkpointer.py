"""Between two steps: writing checkpoints, stopping on signals, and watching memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.run.checkpoint import (
    CheckpointSettings,
    list_checkpoints,
    save_checkpoint,
)
from splatexp.run.memory_budget import gaussian_bytes, step_bytes
from splatexp.system import devices
from splatexp.system.memory import MemorySettings, MemoryWatch, available_memory
from splatexp.system.signals import StoppedBySignal, StopSignals
from splatexp.train.step_log import non_finite_rows

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.run.state import TrainingState
    from splatexp.train.recipe import Recipe


class Checkpointer:
    """Called after every step, it writes checkpoints, obeys signals and watches memory.

    Memory that runs out while density control moves rows leaves the step half done. So where memory is short,
    a checkpoint is written before such a step.

    Args:
        run_metadata: returns what every checkpoint says of the run besides the state.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: CheckpointSettings,
        memory: MemorySettings,
        scene: Scene,
        state: TrainingState,
        folder: Path,
        run_metadata: Callable[[], dict[str, Any]],
        signals: StopSignals,
    ):
        self.state = state
        self.folder = folder / "checkpoints"
        self.run_metadata = run_metadata
        self.signals = signals
        self.settings = settings
        self.steps = recipe.steps
        self.densify_changes_rows = recipe.densify.changes_rows
        self.image_size = scene.train[0].camera.width, scene.train[0].camera.height
        self.memory_watch = MemoryWatch(memory.reserve)
        self.device = recipe.raster.device

    def __call__(self, step: int, splats: Splats) -> None:
        """Do what is due after step `step`.

        Raises: StoppedBySignal; MemoryError; FloatingPointError where parameters are no longer finite.
        """
        done = step + 1
        self.state.step = done
        due = self.settings.every > 0 and (done % self.settings.every == 0 or self._is_last(done))
        if not due and not self._is_last(done) and self.densify_changes_rows(done):
            due = self._memory_is_short()
        saved = self.save() if due else None
        if self.signals.poll():
            saved = saved or self.save()
            result = f"saved {saved}, resume=auto continues from it" if saved else "nothing could be saved"
            raise StoppedBySignal(self.signals.caught, f" after step {done}; {result}")
        remaining = self.memory_watch(self._step_bytes())
        if remaining is not None:
            raise MemoryError(f"the next step would leave {remaining >> 20} MiB, less than memory.reserve_mb")

    def _is_last(self, done: int) -> bool:
        return done == self.steps or self.state.step_log.stopped_early

    def _step_bytes(self) -> int:
        """Return about how many bytes of host memory a step takes and frees again."""
        if self.device.type != "cpu":
            return 0
        return step_bytes(len(self.state.splats), self.state.splats.sh_degree, *self.image_size)

    def _memory_is_short(self) -> bool:
        """Return whether memory may not suffice for twice the present number of rows."""
        if not self.memory_watch.reserve:
            return False
        device_memory = devices.memory_use(self.device)
        remaining = device_memory[1] if device_memory else available_memory(self._step_bytes())
        rows = gaussian_bytes(len(self.state.splats), self.state.splats.sh_degree)
        return remaining is not None and remaining < self.memory_watch.reserve + rows

    def save(self) -> Path | None:
        """Write a checkpoint of the state and return its path.

        Where the file cannot be written, warn, keep the older ones, and return None.

        Raises: FloatingPointError where the state, or the last loss, is not finite: it is not saved.
        """
        self.state.step_log.check_pending_loss()
        if bad := non_finite_rows(self.state.splats):
            existing = list_checkpoints(self.folder)
            rows = ", ".join(f"{count} rows of {name}" for name, count in bad.items())
            last = (
                f"the last checkpoint is {existing[0][1]}" if existing else "there is no earlier checkpoint"
            )
            raise FloatingPointError(f"step {self.state.step - 1}: not finite: {rows}; {last}")
        metadata = self.state.metadata() | self.run_metadata()
        try:
            return save_checkpoint(
                self.folder, self.state.step, self.state.tensors(), metadata, self.settings.keep
            )
        except OSError as error:
            warnings.warn(f"no checkpoint at step {self.state.step}: {error.strerror or error}", stacklevel=2)
            return None

    def save_after_oom(self, error: BaseException) -> Path | None:
        """Save the state after memory has run out, if it is consistent; return the newest checkpoint.

        The tensors of the failed step are released first: the frames in the tracebacks of `error` hold them.
        """
        cause: BaseException | None = error
        while cause is not None:
            cause.__traceback__, cause = None, cause.__context__
        self.memory_watch.stop()
        existing = list_checkpoints(self.folder)
        saved = None
        if self.state.splats.consistent and (not existing or existing[0][0] < self.state.step):
            saved = self.save()
        return saved or (existing[0][1] if existing else None)
