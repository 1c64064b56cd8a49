"""Images and videos of results, written atomically from arrays [H,W,D], float in [0,1] or uint8."""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from splatexp.io.atomic import atomic_write

if TYPE_CHECKING:
    from os import PathLike

    from PIL import Image
    from torch import Tensor

MAX_ERROR = 0.25  # absolute error at the bright end of the colour map: one scale for all images
BACKGROUND = (250, 250, 248)
TEXT_COLOUR = (30, 30, 34)
GAP = 4  # px between panels


def save_png(path: str | PathLike[str], image: Tensor | np.ndarray) -> None:
    """Write an image as 8-bit PNG."""
    from PIL import Image

    with atomic_write(path) as temp:
        Image.fromarray(_bytes(image)).save(temp)


def save_comparison(
    path: str | PathLike[str], truth: Tensor, render: Tensor, mask: Tensor | None = None, caption: str = ""
) -> None:
    """Write truth | render | error side by side, labelled; `caption` stands under the render.

    The error is the mean absolute difference of the channels, 0 to `MAX_ERROR` on a colour map whose
    lightness rises evenly (legend beside its label); outside `mask` [H,W] it has the background colour.
    """
    error = (render.clamp(0, 1) - truth.clamp(0, 1)).abs().mean(-1)
    levels = np.nan_to_num(_array(error), nan=1.0) * (255 / MAX_ERROR)
    drawn = colormap()[np.clip(np.round(levels), 0, 255).astype(np.uint8)]
    if mask is not None:
        drawn[~(_array(mask) > 0.5)] = BACKGROUND
    height, width = drawn.shape[:2]
    text = max(10, min(18, width // 22))
    band = text + 2 * GAP
    sheet = np.full((height + band, 3 * width + 2 * GAP, 3), BACKGROUND, np.uint8)
    for column, panel in enumerate((_bytes(truth), _bytes(render), drawn)):
        left = column * (width + GAP)
        sheet[:height, left : left + width] = panel
    save_png(path, _labelled(sheet, width, text, caption))


def save_video(path: str | PathLike[str], frames: Iterable[Tensor | np.ndarray], fps: int = 30) -> None:
    """Encode frames of one size, with even width and height, as H.264 (4:2:0), each as it comes.

    Raises: ValueError for no frames and for odd sizes; OSError when the encoder fails, e.g. on a full disk.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("frames: expected at least one, got none")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames: expected an even width and height, got {width} x {height}")
    with atomic_write(path) as temp, tempfile.TemporaryFile() as log:
        encoder = subprocess.Popen(_ffmpeg(width, height, fps, str(temp)), stdin=subprocess.PIPE, stderr=log)
        assert encoder.stdin is not None
        try:
            with suppress(BrokenPipeError), encoder.stdin:  # an encoder that ends early says why in its log
                for frame in chain([first], frames):
                    encoder.stdin.write(_bytes(frame).tobytes())
        except BaseException:
            encoder.kill()
            raise
        finally:
            encoder.wait()
        if encoder.returncode:
            log.seek(0)
            lines = log.read().decode(errors="replace").split("\n")
            raise OSError(f"ffmpeg: {next((line for line in reversed(lines) if line.strip()), 'failed')}")


@lru_cache(maxsize=1)
def colormap() -> np.ndarray:
    """Return a perceptual colour map [256,3] uint8: black-violet over red and orange to pale yellow.

    It is made in OKLab: lightness rises linearly from 0.12 to 0.97 while the hue turns from 295 to 465
    degrees; the chroma is largest in the middle, within what sRGB can show.
    Source: Ottosson 2020, "A perceptual color space for image processing".
    """
    t = np.linspace(0.0, 1.0, 256)
    lightness = 0.12 + 0.85 * t
    hue = np.radians(295 + 170 * t**0.8)
    chroma = 0.03 + 0.17 * np.sin(math.pi * t**0.85)
    shown, beyond = np.zeros_like(chroma), chroma  # bisect for the largest chroma that sRGB can show
    for _ in range(20):
        middle = (shown + beyond) / 2
        linear = _oklab_to_linear(lightness, middle * np.cos(hue), middle * np.sin(hue))
        fits = ((linear >= 0) & (linear <= 1)).all(1)
        shown, beyond = np.where(fits, middle, shown), np.where(fits, beyond, middle)
    linear = _oklab_to_linear(lightness, shown * np.cos(hue), shown * np.sin(hue))
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * curve).astype(np.uint8)


def _oklab_to_linear(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Convert OKLab to linear sRGB, [256,3].  Source: Ottosson 2020."""
    lms = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return lms**3 @ to_rgb.T


def _labelled(sheet: np.ndarray, width: int, text: int, caption: str) -> np.ndarray:
    """Return the sheet with a label under each panel, and the legend of the colours under the third."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(text)
    line = image.height - text / 2 - GAP
    lefts = [column * (width + GAP) for column in range(3)]
    for left, label in zip(lefts, ("truth", f"render  {caption}", "error"), strict=True):
        draw.text(
            (left + GAP, line), _shortened(label, font, width - 2 * GAP), TEXT_COLOUR, font, anchor="lm"
        )
    start = lefts[2] + 2 * GAP + draw.textlength("error 0", font)
    end = lefts[2] + width - GAP - draw.textlength(f"{MAX_ERROR:g}", font) - GAP
    if end - start >= 3 * text:
        draw.text((start - GAP, line), "0", TEXT_COLOUR, font, anchor="rm")
        draw.text((lefts[2] + width - GAP, line), f"{MAX_ERROR:g}", TEXT_COLOUR, font, anchor="rm")
        ramp = colormap()[None].repeat(text - 2, 0)
        image.paste(_resized(ramp, int(end - start)), (int(start), int(line - (text - 2) / 2)))
    return np.asarray(image)


def _shortened(label: str, font, width: float) -> str:
    """Return as many leading words of a label as fit into the width."""
    while font.getlength(label) > width and " " in label:
        label = label.rsplit(" ", 1)[0].rstrip()
    return label


def _resized(ramp: np.ndarray, width: int) -> Image.Image:
    from PIL import Image

    return Image.fromarray(ramp).resize((width, len(ramp)))


def _ffmpeg(width: int, height: int, fps: int, path: str) -> list[str]:
    """Return the encoder's command line: raw RGB in, the frames' own size out (no padding to macro blocks).

    The bundled binary is called directly: imageio's own writer does not look at its exit status.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    colours = [
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv"),
        *("-colorspace", "bt709"),
        *("-color_range", "tv"),
    ]
    coding = ["-c:v", "libx264", "-crf", "17", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    return [get_ffmpeg_exe(), "-v", "error", "-y", *source, *colours, *coding, path]


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def _bytes(image: Tensor | np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3], contiguous: floats are clamped to [0, 1] and rounded, alpha is composed."""
    array = _array(image)
    if array.shape[-1] in (2, 4):
        top = 255 if array.dtype == np.uint8 else 1
        array = np.clip(array.astype(np.float32) / top, 0, 1)
        alpha = array[..., -1:]
        array = array[..., :-1] * alpha + (1 - alpha) * (BACKGROUND[0] / 255)
    if array.shape[-1] == 1:
        array = array.repeat(3, -1)
    if array.dtype != np.uint8:
        array = np.round(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(array)
