"""The answer of a run to memory that has run out: save the state, then continue with less, or stop with advice."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from splatexp.run.checkpoint import list_checkpoints
from splatexp.run.memory_budget import (
    DOWNSCALE_KEY,
    MAX_GAUSSIANS_KEY,
    next_reduction,
    oom_advice,
)
from splatexp.settings.messages import one_line

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.run.checkpointer import Checkpointer
    from splatexp.run.state import TrainingState
    from splatexp.train.recipe import Recipe

MESSAGE_LENGTH = 200  # characters of a library's message that are shown


class OutOfMemoryError(MemoryError):
    """Memory has run out; the message tells from which checkpoint the run can continue."""

    @classmethod
    def outside_training(cls, error: Exception, folder: Path) -> OutOfMemoryError:
        """Return the error for memory that ran out while no step was trained, as in the evaluation.

        folder: of the run; its newest checkpoint is then the state to continue from.
        """
        existing = list_checkpoints(folder / "checkpoints")
        remedy = f"; resume=auto continues from {existing[0][1]}" if existing else ""
        return cls(f"out of memory ({one_line(error)[:MESSAGE_LENGTH]}){remedy}")


def reduced_recipe(recipe: Recipe, state: TrainingState) -> Recipe:
    """Return the recipe with the settings that `state.oom_reductions` have reduced."""
    reduced = {entry["setting"]: entry["to"] for entry in state.oom_reductions}
    max_gaussians = reduced.get(MAX_GAUSSIANS_KEY, recipe.densify.max_gaussians)
    min_downscale = reduced.get(DOWNSCALE_KEY, recipe.schedule.min_downscale)
    result = copy(recipe)  # `replace` would check the parts, which are resolved already, once more
    result.densify = replace(recipe.densify, max_gaussians=max_gaussians)
    result.schedule = replace(recipe.schedule, min_downscale=min_downscale)
    return result


def handle_out_of_memory(
    recipe: Recipe, error: BaseException, scene: Scene, state: TrainingState, checkpointer: Checkpointer
) -> None:
    """Save the state after memory has run out in training; with oom=shrink, reduce a setting and return.

    Raises: OutOfMemoryError, with advice, where `oom` is stop or nothing is left to reduce.
    """
    message = one_line(error)[:MESSAGE_LENGTH]
    mid_step = not state.splats.consistent
    saved = checkpointer.save_after_oom(error)
    camera, count = scene.train[0].camera, len(state.splats)
    reduced = reduced_recipe(recipe, state)
    factor = reduced.schedule.fitted(scene.train).downscale(state.step)
    size = (camera.width // factor, camera.height // factor)
    degree = state.splats.sh_degree
    reduction = next_reduction(count, *size, factor, degree) if saved or not mid_step else None
    event = f"out of memory at step {state.step} ({message})"
    if recipe.oom == "shrink" and reduction:
        if mid_step and saved:
            state.roll_back(saved)
            event += f", back to step {state.step}"
        setting, value = reduction
        before = reduced.densify.max_gaussians if setting == MAX_GAUSSIANS_KEY else factor
        state.oom_reductions.append({"step": state.step, "setting": setting, "from": before, "to": value})
        for edit in reduced_recipe(recipe, state).densify.prune_to_cap(state.step, state.splats):
            state.splats.apply(edit)
        warnings.warn(f"{event}; continuing with {setting}={value}", stacklevel=2)
        return
    advice = oom_advice(
        count,
        *size,
        degree,
        factor=factor,
        views=len(scene.train) + len(scene.test),
        downscale=getattr(recipe.data, "downscale", 0),
        oom=recipe.oom,
        device=recipe.raster.device,
    )
    remedy = f"resume=auto continues from {saved}" if saved else "no checkpoint was written"
    raise OutOfMemoryError(f"{event}; {remedy}; {advice}")
