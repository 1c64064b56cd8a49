"""Pictures from disk to views: decoded once, in parallel, undistorted, reduced, kept as uint8."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

from splatexp.cameras.pinhole import Camera
from splatexp.data.lens import Lens, undistort
from splatexp.data.scene import Colour, View

Item = TypeVar("Item")
Result = TypeVar("Result")

BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
BACKGROUNDS: dict[str, Colour] = {"black": BLACK, "white": WHITE, "random": WHITE}
"""Colour behind images with alpha. `random` is for training; held-out views are then seen on white."""


@dataclass(frozen=True)
class Source:
    """A picture to be read: the view's name, file, pose (world -> camera, [4,4] float64), lens, mask file.

    cut: what the mask leaves out is transparent, instead of unused. upright: turn the picture as its EXIF
    says. side_max: px, a longer side is reduced to this; 0: never.
    """

    name: str
    path: Path
    viewmat: np.ndarray
    lens: Lens
    mask: Path | None = None
    cut: bool = False
    upright: bool = False
    side_max: int = 0


def read_views(sources: Sequence[Source], downscale: int, background: str) -> tuple[list[View], bool]:
    """Reads all pictures; returns the views and whether any picture had an alpha that is not 255 everywhere.

    downscale: pictures become round(size / downscale), by the plain mean over the area in 8-bit values.
    Raises FileNotFoundError and ValueError that name the file: missing, broken, not of its camera's size.
    """
    if downscale < 1:
        raise ValueError(f"downscale: expected 1 or more, got {downscale}")
    if background not in BACKGROUNDS:
        raise ValueError(f"background: expected one of {', '.join(BACKGROUNDS)}, got {background!r}")
    pairs = in_parallel(lambda source: _read_view(source, downscale, background), sources, "reading images")
    return [view for view, _ in pairs], any(clear for _, clear in pairs)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as stored, from its header. Raises as `decode`."""
    with reading(path), Image.open(path) as picture:
        return picture.size


def count_inside(views: Sequence[View]) -> list[View]:
    """Have only what covers its background count, as a mask does; for held-out views that were cut."""
    for view in views:
        if view.alpha is not None:
            inside = view.alpha > 127
            view.mask = inside if view.mask is None else view.mask & inside
    return list(views)


def decode(path: Path, upright: bool = False) -> np.ndarray:
    """A picture as uint8 [H,W,3], or [H,W,4] with straight alpha.

    upright: turned as its EXIF says; else the pixels as stored, which is what camera poses belong to.

    Raises FileNotFoundError, and ValueError for pictures that are broken or have more than 8 bits per
    channel.
    """
    with reading(path), Image.open(path) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits per channel, got mode {picture.mode}")
        clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        if upright:
            picture = ImageOps.exif_transpose(picture)
        return np.array(picture.convert("RGBA" if clear else "RGB"))


def find_masks(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The mask file of each name that has one: same stem, any suffix (also `name.jpg.png`).

    Warns once, with the count, when the folder lacks some of the names: those views are used whole.
    """
    if not folder.is_dir():
        return {}
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    files = {path.with_suffix("").as_posix(): folder / path for path in paths}
    keys = {name: (name, Path(name).with_suffix("").as_posix()) for name in names}
    found = {name: files[key] for name, both in keys.items() for key in both if key in files}
    if len(found) < len(names):
        lost = next(name for name in names if name not in found)
        warnings.warn(
            f"{folder}: {len(names) - len(found)} of {len(names)} images have no mask and are used whole; "
            f"the first is {lost}",
            stacklevel=2,
        )
    return found


def area_mean(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes [H,W,D] to float32 [height,width,D]: a new pixel is the mean over the area that it covers."""
    return _mean_rows(_mean_rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1)


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], label: str) -> list[Result]:
    """[function(item) for item in items] on all cores, with a progress bar where stderr is a terminal."""
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with (
        ThreadPoolExecutor(min(cores(), 16)) as pool,
        Progress(console=console, transient=True, disable=quiet) as bar,
    ):
        jobs = [pool.submit(function, item) for item in items]
        try:
            return [job.result() for job in bar.track(jobs, description=label)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_view(source: Source, downscale: int, background: str) -> tuple[View, bool]:
    image = decode(source.path, source.upright)
    height, width = image.shape[:2]
    if not source.lens.fits(width, height):
        size = f"{source.lens.width} x {source.lens.height}"
        raise ValueError(
            f"{source.path}: the image is {width} x {height}, its camera {size}: not the same aspect"
        )
    lens = source.lens.resized(width, height)
    mask = None if source.mask is None else _read_mask(source.mask, lens)
    alpha = image[..., 3:] if image.shape[2] == 4 and image[..., 3].min() < 255 else None
    if source.cut and mask is not None:
        inside, mask = mask[..., None].astype(np.uint8) * 255, None
        alpha = inside if alpha is None else np.minimum(alpha, inside)
    clear = alpha is not None
    image = image[..., :3] if alpha is None else _compose(image[..., :3], alpha, BACKGROUNDS[background])
    if lens.distorted:
        image, inside = undistort(image, lens)
        alpha = None if alpha is None else undistort(alpha, lens)[0]
        mask = inside if mask is None else inside & (undistort(mask[..., None], lens)[0][..., 0] > 0.999)
        mask = None if mask.all() else mask
    reduction = downscale * max(1.0, max(width, height) / source.side_max if source.side_max else 1.0)
    if reduction > 1:
        width, height = (max(1, int(n / reduction + 0.5)) for n in (width, height))
        image = area_mean(image, height, width)
        alpha = None if alpha is None else area_mean(alpha, height, width)
        mask = None if mask is None else area_mean(mask[..., None], height, width)[..., 0] > 0.999
    view = View(
        name=source.name,
        camera=Camera(
            torch.tensor(source.viewmat, dtype=torch.float32)[None],
            torch.tensor(lens.resized(width, height).matrix, dtype=torch.float32)[None],
            width,
            height,
        ),
        image=torch.from_numpy(_bytes(image)),
        mask=None if mask is None else torch.from_numpy(mask),
        alpha=None if alpha is None else torch.from_numpy(_bytes(alpha)[..., 0]),
        background=BACKGROUNDS[background] if clear else BLACK,
    )
    view.sha256  # noqa: B018  hashed here, in parallel
    return view, clear


def _read_mask(path: Path, lens: Lens) -> np.ndarray:
    """bool [H,W] of the lens's size, True = use: where the picture is lighter than mid-grey."""
    mask = decode(path)[..., :3].mean(2, keepdims=True) > 127
    height, width = mask.shape[:2]
    if not lens.fits(width, height):
        raise ValueError(f"{path}: the mask is {width} x {height}, its image {lens.width} x {lens.height}")
    same = (height, width) == (lens.height, lens.width)
    return (mask if same else area_mean(mask, lens.height, lens.width) > 0.5)[..., 0]


def _compose(image: np.ndarray, alpha: np.ndarray, background: Colour) -> np.ndarray:
    """Straight colours [H,W,3] with alpha [H,W,1], both 0-255, over a background in [0,1]; float32, 0-255."""
    cover = alpha.astype(np.float32) / 255
    return image * cover + np.array(background, np.float32) * 255 * (1 - cover)


def _bytes(image: np.ndarray) -> np.ndarray:
    """uint8 from 0-255, rounded to nearest, contiguous."""
    if image.dtype != np.uint8:
        image = np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def _mean_rows(image: np.ndarray, count: int) -> np.ndarray:
    """Resizes the first axis to `count` by the mean over what each new row covers."""
    rows = len(image)
    if rows % count == 0:
        return image.reshape(count, rows // count, *image.shape[1:]).mean(1, dtype=np.float32)
    top = np.arange(count) * (rows / count)
    total = np.zeros((count, *image.shape[1:]), np.float32)
    for tap in range(int(np.ceil(rows / count)) + 1):
        row = top.astype(np.int64) + tap
        cover = np.minimum(row + 1, top + rows / count) - np.maximum(row, top)
        weight = np.clip(cover, 0, None).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))
        total += weight * image[np.minimum(row, rows - 1)]
    return total * np.float32(count / rows)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Pillow raises for a broken file into one ValueError that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the image: {error}") from error
