"""From a .gsi file to its image: whole or in part, at any scale, of some or all layers. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from splatexp.image.codec.gsi import LIMITS, File, LimitError, Limits, load
from splatexp.image.codec.symbols import Gaussians, Header, Symbols, gaussians
from splatexp_kernels.draw import draw, pairs_of

ROWS = 2**16  # Gaussians that are computed at once
MAX_WINDOW, MAX_SIDE = 2**20, 2**14  # px, and px of a side, that are drawn at once
MAX_PAIRS = 2**21  # pairs of tile and Gaussian that are listed at once
Box = tuple[int, int, int, int]  # x, y, width, height, px


def decode(
    data: bytes | File,
    *,
    layers: int | None = None,
    scale: float = 1.0,
    crop: Box | None = None,
    limits: Limits = LIMITS,
) -> NDArray:
    """Return the image of a file.

    Args:
        data: the bytes of the file, or the result of `load`.
        layers: decode only the first `layers` layers, at most as many as the whole file has; None: all. Of a
            truncated file, those that are there.
        scale: render the image at `scale` times its size. Enlarged it is as sharp as its Gaussians are;
            reduced, in mode sum, it is nearly the mean over what a pixel covers (normalized: the value at its
            centre).
        crop: x, y, width, height of a part of the scaled image; nothing else is rendered.
        limits: files beyond them are refused.

    Returns: [height,width,channels], uint8 or uint16.
    Raises: GsiError for a file, ValueError for arguments.
    """
    file = data if isinstance(data, File) else load(data, limits=limits)
    header = file.header
    if layers is not None and not 1 <= layers <= file.declared:
        raise ValueError(f"layers: expected 1 to {file.declared}, got {layers}")
    x, y, width, height = _window(header, scale, crop)
    size = width * height * header.channels * header.bits // 8
    if size > limits.image_bytes:
        raise LimitError(
            f"image: expected at most {limits.image_bytes} bytes, got {size} (the limit "
            "`image_bytes`); take a crop or a smaller scale"
        )
    drawn = _gather(header, file.layers[:layers], scale, (x, y, width, height))
    work = int(_boxes(drawn, (x, y, width, height)).sum())
    if work > limits.work:
        raise LimitError(
            f"work: expected at most {limits.work} px of boxes, got {work} (the limit `work`); "
            "take a crop or a smaller scale"
        )
    image = np.empty((height, width, header.channels), np.uint8 if header.bits == 8 else np.uint16)
    for part, found in _parts(drawn, (x, y, width, height)):
        left, top = part[0] - x, part[1] - y
        image[top : top + part[3], left : left + part[2]] = _draw(header, found, part)
    return image


def _window(header: Header, scale: float, crop: Box | None) -> Box:
    if not 0 < scale <= 65535:
        raise ValueError(f"scale: expected a number above 0, at most 65535, got {scale}")
    width, height = (max(1, int(side * scale + 0.5)) for side in (header.width, header.height))
    if crop is None:
        return 0, 0, width, height
    x, y, w, h = crop
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise ValueError(f"crop: expected x, y, width, height in {width} x {height} px, got {tuple(crop)}")
    return x, y, w, h


def _gather(header: Header, layers: tuple[Symbols, ...], scale: float, window: Box) -> Gaussians:
    """Return the Gaussians whose boxes reach the window, in the order of the file; means relative to its
    corner.
    """
    found = [Gaussians(*(np.zeros((0, k), np.float32) for k in (2, 3, 2, header.channels)))]
    for symbols in layers:
        for start in range(0, len(symbols), ROWS):
            some = gaussians(header, symbols.take(slice(start, start + ROWS)), scale, origin=window[:2])
            found.append(_reaching(some, (0, 0, *window[2:])))
    return Gaussians(*map(np.concatenate, zip(*found, strict=True)))


def _boxes(drawn: Gaussians, window: Box) -> NDArray:
    """Return approximately the pixels of each Gaussian's box inside a window at the origin."""
    low, high = drawn.means - drawn.radii, drawn.means + drawn.radii
    return (np.minimum(high + 1, window[2:]) - np.maximum(low - 1, 0)).clip(0).astype(np.float64).prod(1)


def _reaching(drawn: Gaussians, part: Box) -> Gaussians:
    corner, size = np.array(part[:2], np.float32), np.array(part[2:], np.float32)
    reaches = (drawn.means + drawn.radii > corner) & (drawn.means - drawn.radii < corner + size)
    rows = reaches.all(1)
    return drawn if rows.all() else Gaussians(*(values[rows] for values in drawn))


def _parts(drawn: Gaussians, window: Box) -> Iterator[tuple[Box, Gaussians]]:
    """Yield the window in parts that are small enough to be drawn at once, each with its Gaussians relative
    to its corner.
    """
    waiting = [(window, drawn)]
    while waiting:
        part, found = waiting.pop()
        x, y, width, height = part
        many = len(found.means) and pairs_of(found.means, found.radii, width, height) > MAX_PAIRS
        whole = width * height <= MAX_WINDOW and max(width, height) <= MAX_SIDE and not many
        if whole or max(width, height) <= 16:
            yield part, found
            continue
        half = -(-max(width, height) // 32) * 16
        halves = [(0, 0, half, height), (half, 0, width - half, height)]
        if height >= width:
            halves = [(0, 0, width, half), (0, half, width, height - half)]
        for left, top, w, h in halves:
            some = _reaching(found, (left, top, w, h))
            moved = some._replace(means=some.means - np.array([left, top], np.float32))
            waiting.append(((x + left, y + top, w, h), moved))


def _draw(header: Header, found: Gaussians, part: Box) -> NDArray:
    tint = header.background_color.astype(np.float32)
    image = draw(*found, part[2], part[3], mode=header.mode, top_k=header.top_k, background=tint)
    most = (1 << header.bits) - 1
    np.clip(image, 0, 1, out=image)
    image *= most
    image += 0.5
    return image.astype(np.uint8 if header.bits == 8 else np.uint16)
