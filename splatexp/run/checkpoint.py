"""Checkpoints: one file each, whole or not there, that holds all a run needs to go on to the same bits.

A file is safetensors: tensors, and as its metadata a JSON text (the notes) and the SHA-256 of both. Reading
one executes nothing, whatever is in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.io.atomic import replaced
from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "splatexp checkpoint 1"
NAME = re.compile(r"step_(\d{8,})\.safetensors")


@dataclass
class Checkpoint:
    """When checkpoints are written: at a cadence, at the end, and before a run is stopped."""

    every: int = 1000  # steps; 0: none, not even at the end, but for one before a run is stopped
    keep: int = 2  # the last so many
    cut_sh: bool = False  # resuming with a lower model.sh_degree drops the bands above it; else it is refused

    def __post_init__(self) -> None:
        check_range("checkpoint.every", self.every, 0)
        check_range("checkpoint.keep", self.keep, 1)


class Broken(ValueError):
    """A file that is no checkpoint, or no longer one."""


def write(
    folder: Path, step: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], keep: int
) -> Path:
    """Save what there is after so many steps, then drop all but the last `keep` files.  Returns: the file.

    Raises: OSError when it cannot be written whole; then all that was there still is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"step_{step:08d}.safetensors"
    text = json.dumps({**notes, "step": step}, allow_nan=False)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    meta = {"format": FORMAT, "notes": text, "sha256": _digest(plain, text)}
    with replaced(path) as temp:
        try:
            save_file(plain, temp, meta)
        except SafetensorError as error:  # the library has no OSError of its own
            full = "os error 28" in str(error)
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, os.strerror(code) if full else str(error)) from error
    for _, old in found(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the notes.

    Raises: Broken, one line, for anything but what `write` wrote; OSError for a file that cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):
        pass  # what cannot be opened is an OSError; all that follows is about what is in it
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise Broken(f"{path}: no checkpoint of this format ({meta.get('format', 'unmarked')})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, Broken):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Broken(f"{path}: not a readable checkpoint ({reason})") from error
    text = meta.get("notes", "")
    if _digest(tensors, text) != meta.get("sha256"):
        raise Broken(f"{path}: damaged: its contents are not those that were written")
    try:
        notes = json.loads(text)
        if not isinstance(notes, dict) or type(notes["step"]) is not int or notes["step"] < 0:
            raise ValueError("no step")
    except (ValueError, KeyError, RecursionError) as error:
        raise Broken(f"{path}: its notes cannot be read ({type(error).__name__})") from error
    return tensors, notes


def found(folder: Path) -> list[tuple[int, Path]]:
    """Checkpoints in a folder by their names, newest first, each with its step."""
    matches = [(NAME.fullmatch(path.name), path) for path in folder.glob("step_*.safetensors")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that is whole, and what `read` gives of it; None where there is none.

    A broken one before it is set aside, with a warning.
    """
    for leftover in folder.glob(".step_*.safetensors"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    for _, path in found(folder):
        try:
            return path, *read(path)
        except Broken as error:
            aside = path.with_suffix(".broken")
            os.replace(path, aside)
            warnings.warn(f"{error}; skipped, and kept as {aside.name}", stacklevel=2)
    return None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over the notes and, by name, every tensor's type, shape and bytes."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
