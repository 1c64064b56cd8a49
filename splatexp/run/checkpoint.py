"""Checkpoints: one file each, written atomically, that holds all a run needs to continue to the same bits.

A file is in the safetensors format. Its header holds a JSON text (the metadata, under the key `notes`) and
the SHA-256 of the text and the tensors. Reading a checkpoint executes no code, whatever the file contains.
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

from splatexp.io.atomic import atomic_write
from splatexp.settings.checks import check_range
from splatexp.settings.messages import one_line

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "splatexp checkpoint 1"
FILE_NAME = re.compile(r"step_(\d{8,})\.safetensors")


@dataclass
class CheckpointSettings:
    """Settings of checkpoints: when they are written, and how many are kept."""

    every: int = 1000  # steps; 0: none, except one before an interrupted run stops
    keep: int = 2  # number of the latest files that are kept
    truncate_sh: bool = (
        False  # true: resuming with a lower model.sh_degree drops the bands above; false: an error
    )

    def __post_init__(self) -> None:
        check_range("checkpoint.every", self.every, 0)
        check_range("checkpoint.keep", self.keep, 1)


class CheckpointError(ValueError):
    """A file is not a checkpoint, or is damaged."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], keep: int
) -> Path:
    """Save the state after `step` steps, delete all but the latest `keep` files, return the new file.

    Raises: OSError when the file cannot be written completely; all earlier files are then untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"step_{step:08d}.safetensors"
    text = json.dumps({**metadata, "step": step}, allow_nan=False)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "notes": text, "sha256": _digest(contiguous, text)}
    with atomic_write(path) as temp:
        try:
            save_file(contiguous, temp, header)
        except SafetensorError as error:  # the library does not raise OSError
            disk_full = "os error 28" in str(error)
            code = errno.ENOSPC if disk_full else errno.EIO
            raise OSError(code, os.strerror(code) if disk_full else str(error)) from error
    for _, old in list_checkpoints(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint by name, and its metadata.

    Raises: CheckpointError for a file that `save_checkpoint` did not write or that is damaged; OSError for a
    file that cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):
        pass  # raises OSError; any OSError after this point is about the contents
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {header.get('format')!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        reason = one_line(error)
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from error
    text = header.get("notes", "")
    if _digest(tensors, text) != header.get("sha256"):
        raise CheckpointError(f"{path}: damaged: the contents do not match the SHA-256 in the file")
    try:
        metadata = json.loads(text)
        if not isinstance(metadata, dict) or type(metadata["step"]) is not int or metadata["step"] < 0:
            raise ValueError("no step")
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: the metadata cannot be read ({type(error).__name__})") from error
    return tensors, metadata


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return the step and path of every checkpoint in a folder, newest first, by the file names alone."""
    matches = [(FILE_NAME.fullmatch(path.name), path) for path in folder.glob("step_*.safetensors")]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def load_latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """Return path, tensors and metadata of the newest undamaged checkpoint of a folder; None without one.

    A damaged file is renamed to `<name>.broken` with a warning, and the one before it is tried.
    """
    for leftover in folder.glob(".step_*.safetensors"):  # temporary file of a process that was killed
        leftover.unlink(missing_ok=True)
    for _, path in list_checkpoints(folder):
        try:
            return path, *load_checkpoint(path)
        except CheckpointError as error:
            renamed = path.with_suffix(".broken")
            os.replace(path, renamed)
            warnings.warn(f"{error}; skipped, and kept as {renamed.name}", stacklevel=2)
    return None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of the metadata text and, by name, every tensor's type, shape and bytes."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()
