"""Reading and writing of PNG with 16 bits per channel, which Pillow cuts to 8 in colour images; in numpy.

Source: W3C Recommendation "Portable Network Graphics (PNG) Specification (Third Edition)", 2025.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type
KINDS = {channels: kind for kind, channels in CHANNELS.items()}
PASSES = (  # of an interlaced image: first column, first row, steps
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
NONE, SUB, UP, AVERAGE, PAETH = range(5)


def depth(path: Path) -> int:
    """Return the bits per channel that a PNG file states; 0 for a file that is not a PNG."""
    with path.open("rb") as file:
        head = file.read(25)
    return head[24] if head.startswith(SIGNATURE) and len(head) == 25 else 0


def decode(data: bytes) -> np.ndarray:
    """Return the pixels of a 16-bit PNG file as uint16 [H,W,D]; a transparent colour becomes alpha.

    Raises: ValueError for a file that is broken or does not have 16 bits.
    """
    width = height = kind = interlaced = 0
    packed, clear = [], b""
    for name, payload in _chunks(data):
        if name == b"IHDR":
            width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", payload)
            if bits != 16 or kind not in CHANNELS or not width * height:
                got = f"{bits} bits of colour type {kind}, {width} x {height}"
                raise ValueError(f"expected a PNG of 16 bits, got {got}")
        elif name == b"IDAT":
            packed.append(payload)
        elif name == b"tRNS":
            clear = payload
    channels = CHANNELS[kind]
    steps = PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - row) // down), -(-(width - col) // right)) for col, row, right, down in steps]
    sizes = [(max(rows, 0), max(cols, 0)) for rows, cols in sizes]
    wanted = sum(rows * (1 + 2 * channels * cols) for rows, cols in sizes if cols)
    try:
        flat = zlib.decompressobj().decompress(b"".join(packed), wanted)  # no more than there should be
    except zlib.error as error:
        raise ValueError(f"the PNG's data are broken ({error})") from error
    if len(flat) != wanted:
        raise ValueError(f"expected {wanted} bytes of pixels, got {len(flat)}: the file is cut off")
    pixels, at = np.empty((height, width, channels), np.uint16), 0
    for (rows, cols), (col, row, right, down) in zip(sizes, steps, strict=True):
        if rows and cols:
            size = rows * (1 + 2 * channels * cols)
            lines = np.frombuffer(flat, np.uint8, size, at).reshape(rows, -1)
            pixels[row::down, col::right] = (
                _unfiltered(lines, 2 * channels).view(">u2").reshape(rows, cols, channels)
            )
            at += size
    if clear and channels in (1, 3):
        seen = (pixels != np.frombuffer(clear, ">u2", channels)).any(-1, keepdims=True)
        pixels = np.concatenate([pixels, seen * np.uint16(65535)], -1)
    return pixels


def encode(pixels: np.ndarray) -> bytes:
    """Return a PNG file of uint16 [H,W,D]; each line has the filter that leaves the smallest differences."""
    height, width, channels = pixels.shape
    step = 2 * channels
    now = pixels.astype(">u2").view(np.uint8).reshape(height, -1).astype(np.int16)
    left, up, corner = _shifted(now, 0, step), _shifted(now, 1, 0), _shifted(now, 1, step)
    tried = [now, now - left, now - up, now - (left + up) // 2, now - _paeth(left, up, corner)]
    lines = np.stack([each.astype(np.uint8) for each in tried])
    best = np.abs(lines.view(np.int8).astype(np.int32)).sum(-1).argmin(0)
    chosen = lines[best, np.arange(height)]
    flat = np.concatenate([best[:, None].astype(np.uint8), chosen], 1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, KINDS[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(flat, 6)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, payload) for name, payload in parts)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and payloads of the chunks up to IEND, and check their checksums.

    Raises: ValueError.
    """
    at, name = len(SIGNATURE), b""
    while name != b"IEND":
        size, name = struct.unpack_from(">I4s", data, at)  # struct.error where the file ends
        payload = data[at + 8 : at + 8 + size]
        told = data[at + 8 + size : at + 12 + size]
        if len(told) < 4 or int.from_bytes(told, "big") != zlib.crc32(name + payload):
            raise ValueError(f"the PNG's chunk {name.decode('latin-1')} is broken")
        at += 12 + size
        yield name, payload


def _chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def _shifted(lines: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the bytes that lie `rows` above and `columns` to the left of each byte; 0 outside."""
    moved = np.zeros_like(lines)
    height, width = lines.shape
    if columns < width:
        moved[rows:, columns:] = lines[: height - rows, : width - columns]
    return moved


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return which of the three is closest to left + up - corner; the first where two are equally close."""
    a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, up, corner))


def _unfiltered(lines: np.ndarray, step: int) -> np.ndarray:
    """Return lines [H, 1 + bytes] without their filters; step: bytes of a pixel.

    Each byte needs those to the left, above and above left, so a whole diagonal can be decoded at once.

    Raises: ValueError for an unknown filter.
    """
    filters, lines = lines[:, 0], lines[:, 1:]
    if filters.max() > PAETH:
        raise ValueError(f"the PNG has an unknown filter {filters.max()}")
    height, width = len(lines), lines.shape[1] // step
    given, out = lines.reshape(height, width, step), np.empty((height, width, step), np.uint8)
    masks = [(filters == kind)[:, None] for kind in (SUB, UP, AVERAGE, PAETH)]
    # the last diagonal and the one before it, by rows, with a row of zeros above the image
    last, before = np.zeros((2, height + 1, step), np.int16)
    for at in range(width + height - 1):
        rows = np.arange(max(0, at - width + 1), min(height, at + 1))
        here, above = slice(rows[0] + 1, rows[-1] + 2), slice(rows[0], rows[-1] + 1)
        left, up, corner = last[here], last[above], before[above]
        guesses = (left, up, (left + up) >> 1, _paeth(left, up, corner))
        found = given[rows, at - rows] + np.select([mask[above] for mask in masks], guesses, np.int16(0))
        before, last = last, before
        last[here] = out[rows, at - rows] = found & 255
    return out.reshape(height, -1)
