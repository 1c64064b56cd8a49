"""Pictures from files and into files: grey, RGB, each with or without alpha, 8 or 16 bits; needs no torch.

Notation: `pixels` is [H,W,D], D = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; straight alpha; sRGB values.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from splatexp.io import png16
from splatexp.io.atomic import replaced

MODES = ("", "L", "LA", "RGB", "RGBA")  # Pillow's names by the number of channels
NAMES = ("", "grey", "grey and alpha", "RGB", "RGBA")
READ = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "PPM", "TIFF", "TGA", "QOI")
SAVED: dict[str, dict[str, Any]] = {  # how each kind of file is written: as near to the pixels as it goes
    ".png": {"compress_level": 3},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    ".tif": {"compression": "tiff_adobe_deflate"},
    ".tiff": {"compression": "tiff_adobe_deflate"},
}
TO_MODE = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "PA": "RGBA"}
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 0x0102  # tags of EXIF and TIFF
SAME = 2  # a profile that moves no colour by more 8-bit levels than this is sRGB


@dataclass(frozen=True)
class Picture:
    """A picture that was read: pixels float32 [H,W,D] in [0,1], upright, sRGB; bits of its file, 8 or 16."""

    pixels: np.ndarray
    bits: int = 8
    name: str = ""

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
        return self.pixels.shape[2]

    def integers(self) -> np.ndarray:
        """The pixels as the file has them: uint8 or uint16 [H,W,D]."""
        return rounded(self.pixels, self.bits)


def rounded(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Values in [0,1] (others are clamped) as the nearest of 8 or 16 bits: uint8 or uint16, same shape."""
    top = _top(bits)
    values = np.floor(np.clip(np.asarray(pixels, np.float64), 0, 1) * top + 0.5)
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def read(path: str | os.PathLike[str]) -> Picture:
    """A picture file, turned as its EXIF says, its colours converted from its ICC profile to sRGB.

    Raises: FileNotFoundError; ValueError, one line that names the file, for what is broken or not supported:
    CMYK and other colour spaces, more than 8 bits in colour other than PNG, profiles at 16 bits, several
    frames.
    """
    path = Path(path)
    with _reading(path), Image.open(path) as file:
        if file.format not in READ:
            raise ValueError(f"{file.format} is not supported: expected one of {', '.join(READ)}")
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format != "MPO":  # of a phone: the first is the picture, others are extras
            raise ValueError(f"expected one picture, got {frames} frames")
        values, bits = _values(path, file)
        turn = file.getexif().get(ORIENTATION, 1)  # after loading: TIFF's reader turns the picture itself
        if profile := file.info.get("icc_profile"):
            values = _to_srgb(values, bits, profile)
    pixels = np.ascontiguousarray(_upright(values, turn)).astype(np.float32) / np.float32(_top(bits))
    return Picture(pixels, bits, path.name)


def write(path: str | os.PathLike[str], pixels: np.ndarray, bits: int = 8) -> None:
    """Write [H,W,D], whole or not at all; floats in [0,1] are rounded, integers must be of `bits`.

    Raises: ValueError for what the file's kind cannot hold, such as 16 bits in anything but PNG; OSError.
    """
    path = Path(path)
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or not pixels.size:
        raise ValueError(f"pixels: expected [H, W, 1 to 4], got {tuple(pixels.shape)}")
    values = rounded(pixels, bits) if pixels.dtype.kind == "f" else pixels
    if values.dtype != (np.uint8 if _top(bits) == 255 else np.uint16):
        raise ValueError(f"pixels: expected float or {bits}-bit integers, got {values.dtype}")
    kind, name = path.suffix.lower(), NAMES[pixels.shape[2]]
    if bits == 16:
        if kind != ".png":
            raise ValueError(f"{path}: 16 bits can be written as .png alone")
        data = png16.encode(values)
        with replaced(path) as temp:
            temp.write_bytes(data)
        return
    if kind not in Image.registered_extensions():
        raise ValueError(f"{path}: no such kind of picture; expected .png, .jpg, .webp, .avif, .tif ...")
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, MODES[values.shape[2]])
    with replaced(path) as temp:
        try:
            image.save(temp, **SAVED.get(kind, {}))
        except (KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(f"{path}: {name} cannot be written as {kind}: {error}") from error


def _top(bits: int) -> int:
    if bits not in (8, 16):
        raise ValueError(f"bits: expected 8 or 16, got {bits}")
    return (1 << bits) - 1


def _values(path: Path, file: Image.Image) -> tuple[np.ndarray, int]:
    """The pixels as stored, uint8 or uint16 [H,W,D], and their bits.  Raises: ValueError, and as Pillow."""
    mode, kind = file.mode, file.format
    if kind == "PNG" and png16.depth(path) == 16:
        return png16.decode(path.read_bytes()), 16
    if mode.startswith("I;16") or (mode == "I" and kind == "PPM"):
        return np.asarray(file).astype(np.uint16)[..., None], 16
    if mode in ("I", "F"):
        raise ValueError(f"32 bits per channel (mode {mode}) are not supported: expected 8 or 16")
    if _deep(file):
        raise ValueError(f"16 bits per channel in colour are read from PNG alone, not from {kind}")
    clear = "transparency" in file.info
    mode = TO_MODE.get(mode, "RGBA" if mode == "P" and clear else "RGB" if mode == "P" else mode)
    if clear and mode in ("L", "RGB"):
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    if mode not in MODES:
        raise ValueError(f"the colour space {mode} is not supported: convert it to RGB or grey first")
    values = np.asarray(file if mode == file.mode else file.convert(mode))
    return (values[..., None] if values.ndim == 2 else values), 8


def _deep(file: Image.Image) -> bool:
    """Whether a file of colours has more bits than Pillow is about to read."""
    if file.format == "TIFF":
        return max(file.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    if file.format == "PPM":
        told = file.tile[0].args  # type: ignore[attr-defined]  # the mode, or that and the largest value
        return isinstance(told, tuple) and isinstance(told[-1], int) and told[-1] > 255
    return False


def _to_srgb(values: np.ndarray, bits: int, profile: bytes) -> np.ndarray:
    """The pixels with their colours converted from an ICC profile; alpha stays as it is.

    Raises: ValueError, which names the profile, where it is broken, of another kind, or the bits are 16.
    """
    from PIL import ImageCms

    grey = values.shape[2] <= 2
    mode, colours = ("L", 1) if grey else ("RGB", 3)
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(given).strip()
        made = ImageCms.buildTransform(
            given, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its ICC profile cannot be used for {NAMES[colours]}: {error}") from error

    def through(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(part[..., 0] if grey else np.ascontiguousarray(part), mode)
        found = ImageCms.applyTransform(image, made)
        assert found is not None  # not in place
        return np.asarray(found)[..., 1:2] if grey else np.asarray(found)

    levels = [np.linspace(0, 255, 17).astype(np.uint8)] * colours
    probe = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(1, -1, colours)
    if np.abs(through(probe).astype(int) - probe).max() <= SAME:
        return values
    if bits == 16:
        raise ValueError(f"the ICC profile {name!r} at 16 bits is not supported: convert it to sRGB first")
    return np.concatenate([through(values[..., :colours]), values[..., colours:]], -1)


def _upright(values: np.ndarray, turn: int) -> np.ndarray:
    """Pixels turned as EXIF's orientation says, 1 to 8; others mean nothing and change nothing."""
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    return values[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """One ValueError that names the file for all that Pillow raises where it is broken."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture")
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot read the picture: of no kind that is known") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the picture: {error}") from error
