"""The codecs that .gsi is compared with: JPEG, WebP and AVIF as Pillow writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from splatexp.io.image_file import CHANNEL_NAMES, MODES, ImageData


@dataclass(frozen=True)
class PillowCodec:
    """A codec with its settings."""

    label: str
    kind: str  # Pillow's name of the format
    suffix: str
    library: str  # Pillow's name of the library behind it
    qualities: tuple[int, ...]  # the points of its curve, from the smallest file on
    settings: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (1, 3)

    def encode(self, source: ImageData, quality: int) -> bytes:
        """Return the whole file.

        Raises: ValueError for images that the format cannot hold as they are.
        """
        if source.bits != 8:
            raise ValueError(f"{self.label}: expected an image of 8 bits, got {source.bits}")
        if source.channels not in self.channels:
            raise ValueError(f"{self.label}: cannot hold {CHANNEL_NAMES[source.channels]}")
        values = source.integers()
        image = Image.fromarray(values[..., 0] if source.channels == 1 else values, MODES[source.channels])
        stream = io.BytesIO()
        image.save(stream, self.kind, quality=quality, **self.settings)
        return stream.getvalue()

    def version(self) -> str:
        """Return what its bytes depend on besides the settings.

        Raises: ValueError where Pillow was built without the library.
        """
        if not features.check(self.library) or not features.version(self.library):
            raise ValueError(f"{self.label}: this Pillow was built without {self.library}")
        return f"{self.library} {features.version(self.library)}, Pillow {PIL.__version__}"


def decode(data: bytes, channels: int) -> np.ndarray:
    """Return the pixels of a file of one of these codecs as uint8 [H,W,channels].

    Raises: as Pillow.
    """
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image.convert(MODES[channels]))
    return values[..., None] if values.ndim == 2 else values


JPEG = {"subsampling": "4:2:0", "optimize": True, "progressive": True}
CODECS = {
    "jpeg": PillowCodec(
        "JPEG 4:2:0", "JPEG", ".jpg", "libjpeg_turbo",
        (3, 5, 7, 9, 12, 15, 19, 25, 32, 42, 55, 68, 78, 86, 91), JPEG,
    ),
    "webp": PillowCodec(
        "WebP", "WEBP", ".webp", "webp", (0, 2, 5, 9, 15, 24, 36, 50, 65, 76, 84, 90, 95), {"method": 6},
        (1, 3, 4),
    ),
    "avif": PillowCodec(
        "AVIF 4:2:0", "AVIF", ".avif", "avif", (2, 6, 10, 15, 20, 26, 33, 41, 50, 60, 70, 80, 87, 92),
        {"subsampling": "4:2:0", "speed": 4, "max_threads": 1}, (1, 3, 4),
    ),
}  # fmt: skip
