"""The container .gsi: a header, layers of Gaussians and other sections, each with a checksum
(docs/gsi.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from splatexp.image.codec import streams
from splatexp.image.codec.symbols import MODES, GsiError, Header, LimitError, Quantizer, Symbols, check
from splatexp_kernels.entropy import Decoder, Encoder, EntropyError, Models, crc32c

__all__ = [
    "ChecksumError",
    "DamageError",
    "File",
    "GsiError",
    "LIMITS",
    "LimitError",
    "Limits",
    "NotGsiError",
    "Section",
    "UnsupportedError",
    "bits_by_stream",
    "dump",
    "load",
]

MAGIC = b"\x89GSI\r\n\x1a\n"  # a high bit and both line endings: a transfer as text would damage it
VERSION = (1, 0)
LAYERS_MAX = 16
SECTIONS_MAX = 64
METADATA_MAX = 2**20
FRAME = 12  # bytes of a section besides its payload
_FIXED = struct.Struct("<BBHHBBBBBB")
_STEPS = struct.Struct("<BHHh")


class NotGsiError(GsiError):
    """The data are not a .gsi file, or not even its header is complete."""


class ChecksumError(GsiError):
    """A section is damaged: its checksum differs."""


class UnsupportedError(GsiError):
    """The file has a later version, or a critical section that this reader does not know."""


class DamageError(GsiError):
    """A section's checksum is right, but its content is no layer or no header."""


class Limits(NamedTuple):
    """The largest files that a reader accepts; a file beyond a limit is refused before anything is allocated.

    Attributes:
        gaussians: number of all layers together.
        image_bytes: bytes of the decoded image.
        work: pixels of the boxes of all Gaussians, clipped to what is drawn.
    """

    gaussians: int = 2**19
    image_bytes: int = 100_000_000
    work: int = 2**32


LIMITS = Limits()


class Section(NamedTuple):
    """A part of a file: its name ("magic", four letters, or "cut" for an incomplete one), and its bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class File:
    """The contents of a file.

    Attributes:
        header: of all layers.
        layers: the layers that are there, in the order of the file; the image is their sum.
        declared: number of layers of the whole file.
        truncated: whether the file ends early.
        sections: names and sizes, which add up to the file's.
        metadata: any bytes; the image does not depend on them.
    """

    header: Header
    layers: tuple[Symbols, ...]
    declared: int
    truncated: bool
    sections: tuple[Section, ...]
    metadata: bytes = b""

    @property
    def truncation(self) -> str:
        """Return what a truncated file lacks, in words; empty for a whole file."""
        if len(self.layers) < self.declared:
            return f"truncated: {len(self.layers)} of {self.declared} layers are there"
        if self.truncated:
            size = self.sections[-1].size
            return (
                f"all layers are there, followed by {size} byte{'s' * (size != 1)} that are no whole section"
            )
        return ""


def dump(header: Header, layers: Sequence[Symbols], *, metadata: bytes = b"") -> bytes:
    """Return the file of 1 to 16 layers; each may hold its Gaussians in any order.

    Raises: GsiError for symbols that the format cannot hold.
    """
    if not 1 <= len(layers) <= LAYERS_MAX:
        raise LimitError(f"layers: expected 1 to {LAYERS_MAX}, got {len(layers)}")
    if len(metadata) > METADATA_MAX:
        raise LimitError(f"metadata: expected at most {METADATA_MAX} bytes, got {len(metadata)}")
    models, parts = Models(), [MAGIC, _frame(b"HEAD", _head(header, len(layers)))]
    for symbols in layers:
        check(header, symbols)
        encoder = Encoder(models)
        streams.code_layer(encoder, header, len(symbols), symbols.sorted())
        data = encoder.finish()
        if len(symbols) > _max_gaussians(len(data)):
            raise LimitError(
                f"layers: expected at most {_max_gaussians(len(data))} Gaussians of so little "
                f"information, got {len(symbols)}"
            )
        parts.append(_frame(b"LAYR", struct.pack("<I", len(symbols)) + data))
    if metadata:
        parts.append(_frame(b"meta", metadata))
    return b"".join(parts)


def load(data: bytes, *, limits: Limits = LIMITS) -> File:
    """Read a file, or as many whole layers as there are of one that was truncated behind its header.

    Raises: GsiError, whatever the bytes; nothing is allocated that `limits` and the bytes do not allow.
    """
    data = bytes(data)
    if data[: len(MAGIC)] != MAGIC:
        raise NotGsiError(f"expected a .gsi file, got one that begins with {data[: len(MAGIC)]!r}")
    header, declared, metadata = None, 0, b""
    sections, layers, models, budget = [Section("magic", len(MAGIC))], [], Models(), limits.gaussians
    for name, payload in _sections(data):
        if (name == b"HEAD") != (header is None):
            raise DamageError(f"expected one section HEAD in front of all others, got {name.decode()}")
        if payload is None:
            break
        sections.append(Section(name.decode(), len(payload) + FRAME))
        if header is None:
            header, declared = _read_head(payload)
        elif name == b"LAYR":
            if len(layers) == declared:
                raise DamageError(f"layers: expected {declared}, got more")
            layers.append(_read_layer(payload, header, models, budget))
            budget -= len(layers[-1])
        elif name == b"meta":
            if len(payload) > METADATA_MAX:
                raise LimitError(f"metadata: expected at most {METADATA_MAX} bytes, got {len(payload)}")
            metadata = payload
        elif name[:1].isupper():
            raise UnsupportedError(f"section {name.decode()}: critical, and not known to this reader")
    if header is None:
        raise NotGsiError("expected a whole header, got a file that ends inside it")
    rest = len(data) - sum(section.size for section in sections)
    if rest:
        sections.append(Section("cut", rest))
    truncated = bool(rest) or len(layers) < declared
    return File(header, tuple(layers), declared, truncated, tuple(sections), metadata)


def bits_by_stream(header: Header, layers: Sequence[Symbols]) -> list[dict[str, int]]:
    """Return the bits that each attribute of each layer takes when it is written alone, which is nearly its
    share.
    """
    models, found = Models(), []
    for symbols in layers:
        tally = _Tally(models)
        streams.code_layer(tally, header, len(symbols), symbols.sorted())
        found.append({name: 8 * len(coder.finish()) for name, coder in tally.coders.items()})
    return found


class _Tally:
    """A coder that writes the numbers of each bank separately."""

    def __init__(self, models: Models) -> None:
        self.models, self.coders = models, {}

    def _coder(self, name: str) -> Encoder:
        return self.coders.setdefault(name, Encoder(self.models))

    def integers(self, bank, columns, n, values=None, *, shift=None, sign=True):
        return self._coder(bank).integers(bank, columns, n, values, shift=shift, sign=sign)

    def uniform(self, counts, values=None):
        return self._coder("place").uniform(counts, values)


def _frame(name: bytes, payload: bytes) -> bytes:
    body = name + struct.pack("<I", len(payload)) + payload
    return body + struct.pack("<I", crc32c(body))


def _sections(data: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield names and payloads; the last payload is None where the file ends inside the section."""
    at = len(MAGIC)
    for _ in range(SECTIONS_MAX):
        if at == len(data):
            return
        name, left = data[at : at + 4], len(data) - at
        if not name.isalpha() or not name.isascii():
            raise DamageError(f"expected the name of a section, four letters, got {name!r}")
        if left < FRAME:
            yield name.ljust(4, b"?") if at > len(MAGIC) else b"HEAD", None
            return
        (length,) = struct.unpack_from("<I", data, at + 4)
        if length > left - FRAME:
            yield name, None
            return
        body = data[at : at + 8 + length]
        if struct.unpack_from("<I", data, at + 8 + length) != (crc32c(body),):
            raise ChecksumError(f"section {name.decode()}: the checksum differs")
        yield name, body[8:]
        at += FRAME + length
    if at < len(data):
        raise LimitError(f"sections: expected at most {SECTIONS_MAX}, got more")


def _head(header: Header, layers: int) -> bytes:
    q, mode = header.quantizer, MODES.index(header.mode)
    fixed = _FIXED.pack(
        *VERSION, header.width, header.height, header.channels, header.bits, mode, header.top_k, 0, layers
    )
    steps = _STEPS.pack(q.cell_shift, q.scale_step, q.shear_step, q.position_index)
    tail = struct.pack(f"<{header.channels}H{header.channels}f", *header.background, *q.color_steps)
    return fixed + steps + tail


def _read_head(payload: bytes) -> tuple[Header, int]:
    if len(payload) < _FIXED.size:
        raise DamageError(f"section HEAD: expected {_FIXED.size} bytes or more, got {len(payload)}")
    major, minor, width, height, channels, bits, mode, top_k, space, layers = _FIXED.unpack_from(payload)
    if major != VERSION[0]:
        raise UnsupportedError(f"version: expected {VERSION[0]}, got {major}.{minor}")
    if space != 0:
        raise UnsupportedError(f"colour space: expected 0, sRGB, got {space}")
    if not 1 <= channels <= 4 or mode >= len(MODES) or not 1 <= layers <= LAYERS_MAX:
        raise DamageError(f"section HEAD: got {channels} channels, mode {mode}, {layers} layers")
    size = _FIXED.size + _STEPS.size + 6 * channels
    if len(payload) < size or (minor == VERSION[1] and len(payload) > size):
        raise DamageError(f"section HEAD: expected {size} bytes, got {len(payload)}")
    cell_shift, scale_step, shear_step, position_index = _STEPS.unpack_from(payload, _FIXED.size)
    tail = struct.unpack_from(f"<{channels}H{channels}f", payload, _FIXED.size + _STEPS.size)
    quantizer = Quantizer(cell_shift, scale_step, shear_step, position_index, tail[channels:])
    return Header(width, height, channels, bits, MODES[mode], top_k, tail[:channels], quantizer), layers


def _read_layer(payload: bytes, header: Header, models: Models, budget: int) -> Symbols:
    if len(payload) < 4:
        raise DamageError(f"section LAYR: expected 4 bytes or more, got {len(payload)}")
    (n,) = struct.unpack_from("<I", payload)
    data = payload[4:]
    if n > _max_gaussians(len(data)):
        raise DamageError(f"section LAYR: expected at most {_max_gaussians(len(data))} Gaussians, got {n}")
    if n > budget:
        raise LimitError(f"Gaussians: expected at most {budget} more, got {n} (the limit `gaussians`)")
    try:
        decoder = Decoder(models, data)
        symbols = streams.code_layer(decoder, header, n)
        decoder.finish()
    except EntropyError as error:
        raise DamageError(f"section LAYR: {error}") from None
    return symbols


def _max_gaussians(size: int) -> int:
    """Return the number of Gaussians that so many bytes may stand for: half a bit each, so that few bytes
    cannot ask for much.
    """
    return 16 * size + 64
