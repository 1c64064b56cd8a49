"""What a run does when memory has run out: save what there is, then go on with less, or stop with advice."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.run.checkpoint import found
from splatexp.run.memory_budget import CAP, FACTOR, advice, shrink

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.run.checkpointer import Keeper
    from splatexp.run.state import State
    from splatexp.train.recipe import Recipe


class OutOfMemory(MemoryError):
    """Memory has run out, and the message says what is left to go on with."""

    @classmethod
    def outside(cls, error: Exception, folder: Path) -> OutOfMemory:
        """One that came while no step was trained: the last checkpoint in the run's folder is the newest."""
        left = found(folder / "checkpoints")
        kept = f"; resume=auto goes on from {left[0][1]}" if left else ""
        return cls(f"out of memory ({' '.join(str(error).split())[:200]}){kept}")


def shrunken(recipe: Recipe, state: State) -> Recipe:
    """Return the recipe without what memory did not suffice for, as `state` remembers it."""
    taken = {each["setting"]: each["to"] for each in state.shrunk}
    less = copy(recipe)  # not `replace`, which would hold what is left against the whole recipe again
    less.densify = replace(recipe.densify, max_gaussians=taken.get(CAP, recipe.densify.max_gaussians))
    less.schedule = replace(recipe.schedule, least_factor=taken.get(FACTOR, recipe.schedule.least_factor))
    return less


def relieve(recipe: Recipe, error: BaseException, scene: Scene, state: State, keeper: Keeper) -> None:
    """Save what there is after an error that memory has run out; where `oom` is shrink, take something away.

    Raises: OutOfMemory with advice where nothing is left to take, or `oom` is stop.
    """
    text, broken = " ".join(str(error).split())[:200], not state.splats.between
    saved = keeper.rescue(error)
    camera, count = scene.train[0].camera, len(state.splats)
    less_now = shrunken(recipe, state)
    factor = less_now.schedule.fitted(scene.train).factor(state.step)
    size = (camera.width // factor, camera.height // factor)
    degree = state.splats.sh_degree
    less = shrink(count, *size, factor, degree) if saved or not broken else None
    story = f"out of memory at step {state.step} ({text})"
    if recipe.oom == "shrink" and less:
        if broken and saved:
            state.restore(saved)
            story += f", back to step {state.step}"
        setting, value = less
        before = less_now.densify.max_gaussians if setting == CAP else factor
        state.shrunk.append({"step": state.step, "setting": setting, "from": before, "to": value})
        for edit in shrunken(recipe, state).densify.trim(state.step, state.splats):
            state.splats.apply(edit)
        warnings.warn(f"{story}; goes on with {setting}={value}", stacklevel=2)
        return
    tip = advice(
        count, *size, degree, factor=factor, pictures=len(scene.train) + len(scene.test),
        downscale=getattr(recipe.data, "downscale", 0), oom=recipe.oom, device=recipe.raster.device,
    )  # fmt: skip
    kept = f"resume=auto goes on from {saved}" if saved else "no checkpoint was written"
    raise OutOfMemory(f"{story}; {kept}; {tip}")
