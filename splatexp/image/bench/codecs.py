"""The codecs that a bench sets .gsi beside: JPEG, WebP and AVIF as Pillow writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

from splatexp.io.image_file import MODES, NAMES, Picture


@dataclass(frozen=True)
class Coder:
    """A codec with its settings; `qualities` are the points of its curve, from the smallest file on."""

    label: str
    kind: str  # Pillow's name of the format
    suffix: str
    library: str  # Pillow's name of what does the work
    qualities: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (1, 3)

    def encode(self, picture: Picture, quality: int) -> bytes:
        """The whole file.

        Raises: ValueError for pictures that it cannot hold as they are.
        """
        if picture.bits != 8:
            raise ValueError(f"{self.label} holds 8 bits, the picture has {picture.bits}")
        if picture.channels not in self.channels:
            raise ValueError(f"{self.label} cannot hold {NAMES[picture.channels]}")
        values = picture.integers()
        image = Image.fromarray(values[..., 0] if picture.channels == 1 else values, MODES[picture.channels])
        stream = io.BytesIO()
        image.save(stream, self.kind, quality=quality, **self.settings)
        return stream.getvalue()

    def version(self) -> str:
        """What its bytes depend on beside the settings.

        Raises: ValueError where Pillow came without it.
        """
        if not features.check(self.library) or not features.version(self.library):
            raise ValueError(f"{self.label}: this Pillow was built without {self.library}")
        return f"{self.library} {features.version(self.library)}, Pillow {PIL.__version__}"


def decoded(data: bytes, channels: int) -> np.ndarray:
    """The pixels of a file of one of these codecs as uint8 [H,W,channels].  Raises: as Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        values = np.asarray(image.convert(MODES[channels]))
    return values[..., None] if values.ndim == 2 else values


JPEG = {"subsampling": "4:2:0", "optimize": True, "progressive": True}
CODERS = {
    "jpeg": Coder(
        "JPEG 4:2:0", "JPEG", ".jpg", "libjpeg_turbo",
        (3, 5, 7, 9, 12, 15, 19, 25, 32, 42, 55, 68, 78, 86, 91), JPEG,
    ),
    "webp": Coder(
        "WebP", "WEBP", ".webp", "webp", (0, 2, 5, 9, 15, 24, 36, 50, 65, 76, 84, 90, 95), {"method": 6},
        (1, 3, 4),
    ),
    "avif": Coder(
        "AVIF 4:2:0", "AVIF", ".avif", "avif", (2, 6, 10, 15, 20, 26, 33, 41, 50, 60, 70, 80, 87, 92),
        {"subsampling": "4:2:0", "speed": 4, "max_threads": 1}, (1, 3, 4),
    ),
}  # fmt: skip
