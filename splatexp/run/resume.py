"""The state that a run goes on from: its newest checkpoint, also with settings that have changed since."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from splatexp.provenance.environment import code_hash
from splatexp.run.checkpoint import Checkpoint, found, newest, read
from splatexp.run.state import State
from splatexp.settings.renames import migrate
from splatexp.settings.serialize import flat
from splatexp.train.initialization import Model
from splatexp.train.recipe import RECIPE, Recipe

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

BANDED = ("shN", "grad.shN", "exp_avg.shN", "exp_avg_sq.shN")


Contents = tuple[Path, dict[str, Tensor], dict[str, Any]]  # of a checkpoint: its file, tensors, notes


def pick(folder: Path, wish: str) -> Contents | None:
    """The checkpoint that `resume=<wish>` means for a run in `folder`; None where auto finds none.

    wish: auto, the folder of a run, or a checkpoint file.
    Raises: FileNotFoundError; ValueError where a run would leave later checkpoints of its own behind.
    """
    own = folder / "checkpoints"
    if wish == "auto":
        return newest(own)
    path = Path(wish)
    if path.is_dir():
        chosen = newest(path / "checkpoints")
    else:
        chosen = (path, *read(path)) if path.is_file() else None
    if chosen is None:
        raise FileNotFoundError(f"resume: expected auto, a run's folder or a checkpoint, got {wish}")
    mine = found(own)
    if mine and chosen[0].resolve() != mine[0][1].resolve():
        raise ValueError(
            f"resume: {folder} has checkpoints of its own up to step {mine[0][0]}; branch into another folder"
        )
    return chosen


def resumed(recipe: Recipe, resume: str, checkpoint: Checkpoint, scene: Scene, folder: Path) -> State | None:
    """The state that a run goes on from, whose `news` tell what was done; None where there is none.

    Raises: OSError; ValueError for a broken checkpoint or one that does not fit the settings.
    """
    chosen = pick(folder, resume)
    if chosen is None:
        return None
    path, tensors, notes = chosen
    if not isinstance(notes.get("config"), dict):
        raise ValueError(f"{path}: it does not tell its settings")
    now, before = flat(recipe.config()), flat(migrate(notes["config"]))
    step = notes["step"]
    if step > recipe.steps:
        raise ValueError(f"steps: expected at least {step}, as {path.name} is there, got {recipe.steps}")
    for name, usual in (("importance", None), ("camera", "Fixed")):
        if now[name] != (had := before.get(name, usual)):
            raise ValueError(f"{name}: expected {had} as in {path.name}, got {now[name]}")
    lines = [f"resumed at step {step} of {recipe.steps} from {path}"]
    lines += _changes(before, now)
    bands = ""
    if isinstance(recipe.model, Model):
        tensors, bands = _with_bands(tensors, recipe.model.sh_degree, checkpoint.cut_sh)
    try:
        state = State.of(tensors, notes, recipe.raster.device)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name in ("isotropic", "form"):
        had, wanted = getattr(state.splats, name, None), getattr(recipe.model, name, None)
        if had != wanted:
            raise ValueError(f"model.{name}: expected {had} as in {path.name}, got {wanted}")
    recipe.raster.equipped(state.splats)
    lines += [bands] if bands else []
    if notes.get("data_sha256") != scene.fingerprint:
        lines.append("the data are not those that it was trained on so far")
    if notes.get("code_sha256") != code_hash():
        lines.append("the code has changed since: the same bits as without the break are not promised")
    state.resumed.append(step)
    state.news = lines
    return state


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting that has changed and has a say in what is trained from here on."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "none"), now.get(key, "none")
        if old == new or key.partition(".")[0] not in RECIPE:
            continue
        idle = "; without effect, for the rows are there" if key.startswith("model.init") else ""
        lines.append(f"{key}: {old} -> {new}{idle}")
    return lines


def _with_bands(tensors: dict[str, Tensor], degree: int, cut: bool) -> tuple[dict[str, Tensor], str]:
    """Bands above the SH degree of the checkpoint begin at 0, with their moments; too many may be cut.

    Returns: the tensors, and a line that tells, or "".
    Raises: ValueError for a lower degree where cutting was not asked for.
    """
    import torch

    shN = tensors.get("splats.shN")
    bands = (degree + 1) ** 2 - 1
    if shN is None or shN.ndim != 3 or shN.shape[1] == bands:
        return tensors, ""
    had = int((shN.shape[1] + 1) ** 0.5 + 0.5) - 1
    if bands < shN.shape[1] and not cut:
        raise ValueError(
            f"model.sh_degree: expected at least {had} as in the checkpoint, got {degree}; "
            "checkpoint.cut_sh=true drops the bands above it"
        )
    fitted = dict(tensors)
    for name in (f"splats.{name}" for name in BANDED):
        if name in tensors:
            missing = max(0, bands - shN.shape[1])
            fitted[name] = torch.nn.functional.pad(tensors[name][:, :bands], (0, 0, 0, missing)).contiguous()
    done = "bands above it are dropped" if bands < shN.shape[1] else "the new bands begin at 0"
    return fitted, f"SH degree {had} -> {degree}: {done}"
