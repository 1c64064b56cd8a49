"""What a run does when memory has run out: save what there is, then go on with less, or stop with advice."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.run.checkpoint import found
from splatexp.run.memory_budget import CAP, FACTOR, advice, shrink

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.densify.strategy import Strategy
    from splatexp.run.checkpointer import Keeper
    from splatexp.run.run import Run
    from splatexp.run.state import State
    from splatexp.schedules.schedule import Schedule


class OutOfMemory(MemoryError):
    """Memory has run out, and the message says what is left to go on with."""

    @classmethod
    def outside(cls, error: Exception, folder: Path) -> OutOfMemory:
        """One that came while no step was trained: the last checkpoint in the run's folder is the newest."""
        left = found(folder / "checkpoints")
        kept = f"; resume=auto goes on from {left[0][1]}" if left else ""
        return cls(f"out of memory ({' '.join(str(error).split())[:200]}){kept}")


def shrunken(run: Run, state: State) -> tuple[Strategy, Schedule]:
    """Density control and schedule with what was taken from them for want of memory."""
    taken = {each["setting"]: each["to"] for each in state.shrunk}
    densify = replace(run.densify, max_gaussians=taken.get(CAP, run.densify.max_gaussians))
    schedule = replace(run.schedule, least_factor=taken.get(FACTOR, run.schedule.least_factor))
    return densify, schedule


def relieve(run: Run, error: BaseException, scene: Scene, state: State, keeper: Keeper) -> None:
    """Save what there is after an error that memory has run out; where `oom` is shrink, take something away.

    Raises: OutOfMemory with advice where nothing is left to take, or `oom` is stop.
    """
    text, broken = " ".join(str(error).split())[:200], not state.splats.between
    saved = keeper.rescue(error)
    camera, count = scene.train[0].camera, len(state.splats)
    densify, schedule = shrunken(run, state)
    factor = schedule.fitted(scene.train).factor(state.step)
    size = (camera.width // factor, camera.height // factor)
    degree = state.splats.sh_degree
    less = shrink(count, *size, factor, degree) if saved or not broken else None
    story = f"out of memory at step {state.step} ({text})"
    if run.oom == "shrink" and less:
        if broken and saved:
            state.restore(saved)
            story += f", back to step {state.step}"
        setting, value = less
        before = densify.max_gaussians if setting == CAP else factor
        state.shrunk.append({"step": state.step, "setting": setting, "from": before, "to": value})
        for edit in shrunken(run, state)[0].trim(state.step, state.splats):
            state.splats.apply(edit)
        warnings.warn(f"{story}; goes on with {setting}={value}", stacklevel=2)
        return
    tip = advice(
        count, *size, degree, factor=factor, pictures=len(scene.train) + len(scene.test),
        downscale=getattr(run.data, "downscale", 0), oom=run.oom, device=run.raster.device,
    )  # fmt: skip
    kept = f"resume=auto goes on from {saved}" if saved else "no checkpoint was written"
    raise OutOfMemory(f"{story}; {kept}; {tip}")
