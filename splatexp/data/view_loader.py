"""From image files to views: images are decoded in parallel, undistorted, reduced, and kept as uint8."""

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
"""The colour behind images with alpha. With `random`, which is for training, held-out views are on white."""


@dataclass(frozen=True)
class ImageSource:
    """An image file to be read, with the camera that took it."""

    name: str  # of the view
    path: Path
    viewmat: np.ndarray  # [4,4] float64, world -> camera
    lens: Lens
    mask: Path | None = None  # file of the mask, white = use
    mask_as_alpha: bool = False  # pixels outside the mask are transparent, instead of unused
    upright: bool = False  # turn the image as its EXIF orientation says
    max_side: int = 0  # px, a longer side is reduced to this; 0: never


def read_views(sources: Sequence[ImageSource], downscale: int, background: str) -> tuple[list[View], bool]:
    """Read all images; return the views, and whether any image has an alpha that is not 255 everywhere.

    Args:
        downscale: images become round(size / downscale), by the mean over the area in 8-bit values.
        background: a name in BACKGROUNDS.

    Raises: FileNotFoundError, ValueError that names the file: missing, broken, or not of its camera's size.
    """
    if downscale < 1:
        raise ValueError(f"downscale: expected 1 or more, got {downscale}")
    if background not in BACKGROUNDS:
        raise ValueError(f"background: expected one of {', '.join(BACKGROUNDS)}, got {background!r}")
    pairs = map_parallel(lambda source: _read_view(source, downscale, background), sources, "reading images")
    return [view for view, _ in pairs], any(clear for _, clear in pairs)


def image_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as stored, from its header. Raises as `decode_image`."""
    with image_errors(path), Image.open(path) as image:
        return image.size


def mask_by_alpha(views: Sequence[View]) -> list[View]:
    """Mask each view by its alpha, so that only pixels that cover the background count; for held-out
    views.
    """
    for view in views:
        if view.alpha is not None:
            inside = view.alpha > 127
            view.mask = inside if view.mask is None else view.mask & inside
    return list(views)


def decode_image(path: Path, upright: bool = False) -> np.ndarray:
    """Return an image as uint8 [H,W,3], or [H,W,4] with straight alpha.

    Args:
        upright: turn the image as its EXIF orientation says; else return the pixels as stored, which is what
            camera poses refer to.

    Raises: FileNotFoundError; ValueError for images that are broken or have more than 8 bits per channel.
    """
    with image_errors(path), Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits per channel, got mode {image.mode}")
        clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if upright:
            image = ImageOps.exif_transpose(image)
        return np.array(image.convert("RGBA" if clear else "RGB"))


def find_masks(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the mask file of each name that has one: same stem, any suffix (also `name.jpg.png`).

    Warns: once, with the count, where the folder lacks some of the names; those views are used whole.
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


def resize_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [H,W,D] to float32 [height,width,D]: a new pixel is the mean over the area that it covers."""
    return _mean_rows(_mean_rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1)


def map_parallel(function: Callable[[Item], Result], items: Sequence[Item], label: str) -> list[Result]:
    """Return [function(item) for item in items], computed on all cores, with a progress bar where stderr is a
    terminal.
    """
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with (
        ThreadPoolExecutor(min(available_cores(), 16)) as pool,
        Progress(console=console, transient=True, disable=quiet) as bar,
    ):
        jobs = [pool.submit(function, item) for item in items]
        try:
            return [job.result() for job in bar.track(jobs, description=label)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_view(source: ImageSource, downscale: int, background: str) -> tuple[View, bool]:
    image = decode_image(source.path, source.upright)
    height, width = image.shape[:2]
    if not source.lens.same_aspect(width, height):
        size = f"{source.lens.width} x {source.lens.height}"
        raise ValueError(
            f"{source.path}: expected an image of its camera's aspect, {size}, got {width} x {height}"
        )
    lens = source.lens.resized(width, height)
    mask = None if source.mask is None else _read_mask(source.mask, lens)
    alpha = image[..., 3:] if image.shape[2] == 4 and image[..., 3].min() < 255 else None
    if source.mask_as_alpha and mask is not None:
        inside, mask = mask[..., None].astype(np.uint8) * 255, None
        alpha = inside if alpha is None else np.minimum(alpha, inside)
    clear = alpha is not None
    image = image[..., :3] if alpha is None else _compose(image[..., :3], alpha, BACKGROUNDS[background])
    if lens.distorted:
        image, inside = undistort(image, lens)
        alpha = None if alpha is None else undistort(alpha, lens)[0]
        mask = inside if mask is None else inside & (undistort(mask[..., None], lens)[0][..., 0] > 0.999)
        mask = None if mask.all() else mask
    reduction = downscale * max(1.0, max(width, height) / source.max_side if source.max_side else 1.0)
    if reduction > 1:
        width, height = (max(1, int(n / reduction + 0.5)) for n in (width, height))
        image = resize_area(image, height, width)
        alpha = None if alpha is None else resize_area(alpha, height, width)
        mask = None if mask is None else resize_area(mask[..., None], height, width)[..., 0] > 0.999
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
    view.sha256  # noqa: B018  computes the hash here, where it runs in parallel
    return view, clear


def _read_mask(path: Path, lens: Lens) -> np.ndarray:
    """Return a mask as bool [H,W] of the lens's size: True (use) where the image is lighter than mid-grey."""
    mask = decode_image(path)[..., :3].mean(2, keepdims=True) > 127
    height, width = mask.shape[:2]
    if not lens.same_aspect(width, height):
        size = f"{lens.width} x {lens.height}"
        raise ValueError(f"{path}: expected a mask of its image's aspect, {size}, got {width} x {height}")
    same = (height, width) == (lens.height, lens.width)
    return (mask if same else resize_area(mask, lens.height, lens.width) > 0.5)[..., 0]


def _compose(image: np.ndarray, alpha: np.ndarray, background: Colour) -> np.ndarray:
    """Composite straight colours [H,W,3] with alpha [H,W,1], both 0-255, over a background in [0,1]; return
    float32, 0-255.
    """
    cover = alpha.astype(np.float32) / 255
    return image * cover + np.array(background, np.float32) * 255 * (1 - cover)


def _bytes(image: np.ndarray) -> np.ndarray:
    """Return values of 0-255 rounded to the nearest uint8, contiguous."""
    if image.dtype != np.uint8:
        image = np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def _mean_rows(image: np.ndarray, count: int) -> np.ndarray:
    """Resize the first axis to `count` rows; each is the mean over what it covers."""
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
def image_errors(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a broken file into one ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        yield
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the image: {error}") from error
