"""Resuming: the state from which a run continues, including with settings that have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from splatexp.provenance.environment import code_hash
from splatexp.run.checkpoint import (
    CheckpointSettings,
    list_checkpoints,
    load_checkpoint,
    load_latest_checkpoint,
)
from splatexp.run.state import TrainingState
from splatexp.settings.renames import migrate
from splatexp.settings.serialize import flatten_config
from splatexp.train.initialization import SceneModel
from splatexp.train.recipe import RECIPE, Recipe

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

SH_TENSORS = ("shN", "grad.shN", "exp_avg.shN", "exp_avg_sq.shN")  # those that have one entry per SH band


Contents = tuple[Path, dict[str, Tensor], dict[str, Any]]  # of a checkpoint: its file, tensors, metadata


def choose_checkpoint(folder: Path, resume: str) -> Contents | None:
    """Load the checkpoint that `resume` names for a run in `folder`; None where `auto` finds none.

    Args:
        resume: `auto`, the folder of a run, or a checkpoint file.

    Raises: FileNotFoundError where there is no such checkpoint; ValueError where the run's own folder already
    has other checkpoints, which the new ones would contradict.
    """
    own = folder / "checkpoints"
    if resume == "auto":
        return load_latest_checkpoint(own)
    path = Path(resume)
    if path.is_dir():
        chosen = load_latest_checkpoint(path / "checkpoints")
    elif path.is_file():
        chosen = (path, *load_checkpoint(path))
    else:
        chosen = None
    if chosen is None:
        raise FileNotFoundError(f"resume: expected auto, the folder of a run or a checkpoint, got {resume}")
    existing = list_checkpoints(own)
    if existing and chosen[0].resolve() != existing[0][1].resolve():
        raise ValueError(
            f"resume: {folder} has its own checkpoints up to step {existing[0][0]}; "
            "branch into another folder with hydra.run.dir=<folder>"
        )
    return chosen


def resume_state(
    recipe: Recipe, resume: str, settings: CheckpointSettings, scene: Scene, folder: Path
) -> TrainingState | None:
    """Return the state from which a run continues, or None where there is no checkpoint.

    The state's `messages` tell from where it was resumed and which settings have changed.

    Raises: OSError; ValueError for a damaged checkpoint or one that does not fit the settings.
    """
    chosen = choose_checkpoint(folder, resume)
    if chosen is None:
        return None
    path, tensors, metadata = chosen
    if not isinstance(metadata.get("config"), dict):
        raise ValueError(f"{path}: expected metadata with the run's config, got none")
    now, before = flatten_config(recipe.config()), flatten_config(migrate(metadata["config"]))
    step = metadata["step"]
    if step > recipe.steps:
        raise ValueError(f"steps: expected at least {step}, the step of {path.name}, got {recipe.steps}")
    for name, default in (("importance", None), ("camera", "Fixed")):
        saved = before.get(name, default)
        if now[name] != saved:
            raise ValueError(f"{name}: expected {saved} as in {path.name}, got {now[name]}")
    messages = [f"resumed at step {step} of {recipe.steps} from {path}"]
    messages += _changed_settings(before, now)
    sh_message = ""
    if isinstance(recipe.model, SceneModel):
        tensors, sh_message = _resize_sh(tensors, recipe.model.sh_degree, settings.truncate_sh)
    try:
        state = TrainingState.from_checkpoint(tensors, metadata, recipe.raster.device)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for attribute, key in (("isotropic", "isotropic"), ("parametrization", "covariance")):
        saved, wanted = getattr(state.splats, attribute, None), getattr(recipe.model, key, None)
        if saved != wanted:
            raise ValueError(f"model.{key}: expected {saved} as in {path.name}, got {wanted}")
    recipe.raster.with_required_params(state.splats)
    if sh_message:
        messages.append(sh_message)
    if metadata.get("data_sha256") != scene.fingerprint:
        messages.append("the data differ from those of the training so far")
    if metadata.get("code_sha256") != code_hash():
        messages.append("the code has changed: the result may differ from that of an uninterrupted run")
    state.resumed_at.append(step)
    state.messages = messages
    return state


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that has changed and that affects training."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "none"), now.get(key, "none")
        if old == new or key.partition(".")[0] not in RECIPE:
            continue
        unused = "; without effect, since the Gaussians exist already" if key.startswith("model.init") else ""
        lines.append(f"{key}: {old} -> {new}{unused}")
    return lines


def _resize_sh(tensors: dict[str, Tensor], degree: int, truncate: bool) -> tuple[dict[str, Tensor], str]:
    """Fit the spherical harmonics of a checkpoint to an SH degree.

    Bands that the checkpoint lacks start at 0, as do their moments; surplus ones are dropped if `truncate` is
    set.

    Returns: the tensors, and a message for people, "" where nothing was to be done.
    Raises: ValueError for a lower degree without `truncate`.
    """
    import torch

    shN = tensors.get("splats.shN")
    bands = (degree + 1) ** 2 - 1
    if shN is None or shN.ndim != 3 or shN.shape[1] == bands:
        return tensors, ""
    saved_degree = int((shN.shape[1] + 1) ** 0.5 + 0.5) - 1
    if bands < shN.shape[1] and not truncate:
        raise ValueError(
            f"model.sh_degree: expected at least {saved_degree} as in the checkpoint, got {degree}; "
            "checkpoint.truncate_sh=true drops the bands above"
        )
    resized = dict(tensors)
    missing = max(0, bands - shN.shape[1])
    for name in (f"splats.{name}" for name in SH_TENSORS):
        if name in tensors:
            resized[name] = torch.nn.functional.pad(tensors[name][:, :bands], (0, 0, 0, missing)).contiguous()
    action = "the bands above are dropped" if bands < shN.shape[1] else "the new bands start at 0"
    return resized, f"SH degree {saved_degree} -> {degree}: {action}"
