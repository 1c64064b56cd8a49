"""Reading and writing image files: grey or RGB, each with or without alpha, 8 or 16 bits; needs no torch.

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
from splatexp.io.atomic import atomic_write

MODES = ("", "L", "LA", "RGB", "RGBA")  # Pillow's names by the number of channels
CHANNEL_NAMES = ("", "grey", "grey and alpha", "RGB", "RGBA")
READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "PPM", "TIFF", "TGA", "QOI")
SAVE_OPTIONS: dict[
    str, dict[str, Any]
] = {  # how each kind of file is written: as near to the pixels as it goes
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
MAX_SRGB_ERROR = 2  # 8-bit levels; a profile that changes no colour by more counts as sRGB


@dataclass(frozen=True)
class ImageData:
    """An image: pixels float32 [H,W,D] in [0,1], upright, sRGB, and the bits of its file, 8 or 16."""

    pixels: np.ndarray
    bits: int = 8
    name: str = ""

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """Return the number of channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
        return self.pixels.shape[2]

    def integers(self) -> np.ndarray:
        """Return the pixels as the file has them: uint8 or uint16 [H,W,D]."""
        return to_integers(self.pixels, self.bits)


def to_integers(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Round values in [0,1] (others are clamped) to the nearest of 8 or 16 bits: uint8 or uint16, same
    shape.
    """
    top = _top(bits)
    values = np.floor(np.clip(np.asarray(pixels, np.float64), 0, 1) * top + 0.5)
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def read_image(path: str | os.PathLike[str]) -> ImageData:
    """Read an image file, turned as its EXIF orientation says, with colours converted from its ICC profile to
    sRGB.

    Raises: FileNotFoundError; ValueError, one line that names the file, for one that is broken or not
        supported: CMYK and other colour spaces, more than 8 bits in colour except in PNG, profiles at 16
        bits, several frames.
    """
    path = Path(path)
    with _reading(path), Image.open(path) as file:
        if file.format not in READ_FORMATS:
            raise ValueError(f"{file.format} is not supported: expected one of {', '.join(READ_FORMATS)}")
        frames = getattr(file, "n_frames", 1)
        if frames > 1 and file.format != "MPO":  # MPO, of phones: the first frame is the photo
            raise ValueError(f"expected one frame, got {frames}")
        values, bits = _values(path, file)
        turn = file.getexif().get(
            ORIENTATION, 1
        )  # after loading, since the TIFF reader turns the image itself
        if profile := file.info.get("icc_profile"):
            values = _to_srgb(values, bits, profile)
    pixels = np.ascontiguousarray(_upright(values, turn)).astype(np.float32) / np.float32(_top(bits))
    return ImageData(pixels, bits, path.name)


def write_image(path: str | os.PathLike[str], pixels: np.ndarray, bits: int = 8) -> None:
    """Write [H,W,D], whole or not at all; floats in [0,1] are rounded, integers must have `bits` bits.

    Raises: ValueError for what the file format cannot hold, such as 16 bits in any format but PNG; OSError.
    """
    path = Path(path)
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or not pixels.size:
        raise ValueError(f"pixels: expected [H, W, 1 to 4], got {tuple(pixels.shape)}")
    values = to_integers(pixels, bits) if pixels.dtype.kind == "f" else pixels
    if values.dtype != (np.uint8 if _top(bits) == 255 else np.uint16):
        raise ValueError(f"pixels: expected float or {bits}-bit integers, got {values.dtype}")
    kind, name = path.suffix.lower(), CHANNEL_NAMES[pixels.shape[2]]
    if bits == 16:
        if kind != ".png":
            raise ValueError(f"{path}: expected .png for 16 bits, got {kind}")
        data = png16.encode(values)
        with atomic_write(path) as temp:
            temp.write_bytes(data)
        return
    if kind not in Image.registered_extensions():
        raise ValueError(
            f"{path}: expected an image format such as .png, .jpg, .webp, .avif or .tif, got {kind}"
        )
    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, MODES[values.shape[2]])
    with atomic_write(path) as temp:
        try:
            image.save(temp, **SAVE_OPTIONS.get(kind, {}))
        except (KeyError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ValueError(f"{path}: {name} cannot be written as {kind}: {error}") from error


def _top(bits: int) -> int:
    if bits not in (8, 16):
        raise ValueError(f"bits: expected 8 or 16, got {bits}")
    return (1 << bits) - 1


def _values(path: Path, file: Image.Image) -> tuple[np.ndarray, int]:
    """Return the pixels as stored, uint8 or uint16 [H,W,D], and their bits.

    Raises: ValueError, and as Pillow.
    """
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
    """Return whether a colour file has more bits than Pillow would read."""
    if file.format == "TIFF":
        return max(file.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
    if file.format == "PPM":
        told = file.tile[0].args  # type: ignore[attr-defined]  # the mode, or that and the largest value
        return isinstance(told, tuple) and isinstance(told[-1], int) and told[-1] > 255
    return False


def _to_srgb(values: np.ndarray, bits: int, profile: bytes) -> np.ndarray:
    """Return the pixels with their colours converted from an ICC profile; alpha does not change.

    Raises: ValueError, which names the profile, where it is broken or of another kind, or where the image has
        16 bits.
    """
    from PIL import ImageCms

    grey = values.shape[2] <= 2
    mode, colours = ("L", 1) if grey else ("RGB", 3)
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(given).strip()
        made = ImageCms.buildTransform(
            given,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its ICC profile cannot be used for {CHANNEL_NAMES[colours]}: {error}") from error

    def through(part: np.ndarray) -> np.ndarray:
        image = Image.fromarray(part[..., 0] if grey else np.ascontiguousarray(part), mode)
        found = ImageCms.applyTransform(image, made)
        assert found is not None  # not in place
        return np.asarray(found)[..., 1:2] if grey else np.asarray(found)

    levels = [np.linspace(0, 255, 17).astype(np.uint8)] * colours
    probe = np.stack(np.meshgrid(*levels, indexing="ij"), -1).reshape(1, -1, colours)
    if np.abs(through(probe).astype(int) - probe).max() <= MAX_SRGB_ERROR:
        return values
    if bits == 16:
        raise ValueError(f"the ICC profile {name!r} at 16 bits is not supported: convert it to sRGB first")
    return np.concatenate([through(values[..., :colours]), values[..., colours:]], -1)


def _upright(values: np.ndarray, turn: int) -> np.ndarray:
    """Return pixels turned as EXIF's orientation says, 1 to 8; any other value changes nothing."""
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    return values[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn all that Pillow raises for a broken file into one ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{path}: cannot read the image: its format is not known") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot read the image: {error}") from error
