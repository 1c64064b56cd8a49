"""Finished runs, opened again, and the small command lines that do it: `key=value` words, one-line errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp.explain import unknown

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.rows import Rows
    from splatexp.run import Run

SWITCH = {"true": True, "false": False}


def open_run(folder: str | Path) -> tuple[Run, Scene, Rows]:
    """The run that wrote `folder`, its scene loaded anew, and its Gaussians from point_cloud.ply.

    Those of a picture come from its last checkpoint; coded, they are drawn as the file has them.

    Raises: FileNotFoundError for a missing folder, config, .ply or checkpoint; ValueError for broken ones.
    """
    from splatexp.checkpoint import newest
    from splatexp.config import load_run
    from splatexp.export import load_ply
    from splatexp.image.fit import is_picture
    from splatexp.poses.files import load_cameras
    from splatexp.splats import Splats
    from splatexp.state import State

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: expected the folder of a run, got {folder} (no such folder)")
    run = load_run(folder)
    run.raster = run.raster.alone()
    run.settle()
    if run.raster.why:
        print(run.raster.why, file=sys.stderr)
    if is_picture(run):
        saved = newest(folder / "checkpoints")
        if saved is None:
            raise FileNotFoundError(f"run: {folder} holds no checkpoint; checkpoint.every=0 wrote none")
        scene, rows = run.data.load(), State.of(*saved[1:], run.raster.device).splats
        run.rate.finish(rows, scene, run.raster, None)
        return run, scene, rows
    params = load_ply(folder / "point_cloud.ply")
    scene = run.data.load()
    if run.camera.learns:
        scene = scene.moved(load_cameras(folder, scene))
    return run, scene, Splats(params, scene.extent).to(run.raster.device)


def arguments(words: Sequence[str], known: Mapping[str, type]) -> dict[str, Any]:
    """`key=value` words as keyword arguments, each of its known type.

    Raises: ValueError, one line, for anything else, with the nearest key, and for a key that comes twice.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+-")
        if key not in known:
            raise ValueError(unknown(key, known))
        if key in values:
            raise ValueError(f"{key}: expected once, got it again as {word}")
        if not equals:
            raise ValueError(f"{key}: expected {key}=<value>")
        values[key] = _value(key, text, known[key])
    return values


def command(usage: str, known: Mapping[str, type], act: Callable[..., None]) -> None:
    """Run `act` on the command line's words; --help prints `usage`; bad input is one line, exit status 2."""
    words = sys.argv[1:]
    if {"-h", "--help", "help"} & set(words):
        print(usage.strip())
        return
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        values = arguments(words, known)
        if not values.get("run"):
            raise ValueError("run: expected the folder of a run, say run=<folder>")
        act(**values)
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        print(_line(error), file=sys.stderr)
        sys.exit(2)


def _value(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in SWITCH:
            raise ValueError(f"{key}: expected true or false, got {text!r}")
        return SWITCH[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{key}: expected a whole number, got {text!r}") from None


def _line(error: Exception) -> str:
    """An error in one line, without the number of an OSError that says all in words."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    return " ".join(text.split())
