"""A single image as a scene: one view, which is both trained on and measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.data.scene import Scene, View
from splatexp.io.image_file import ImageData, read_image
from splatexp.system.devices import to_device

LEVELS = 65535  # of a background


@dataclass(eq=False)
class ImageView(View):
    """An image of 1 to 4 channels at full precision: float32 [H,W,D] in [0,1]."""

    bits: int = 8  # of a channel in the file

    WHITE_LEVEL: ClassVar[int] = 1

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        shape = tuple(self.image.shape)
        if self.image.dtype != torch.float32 or shape[:2] != size or not 1 <= shape[-1] <= 4:
            raise ValueError(f"{self.name}: image: expected float32 {(*size, '1 to 4')}, got {shape}")

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the values' bytes (float32, rows of pixels) and of the bits."""
        return hashlib.sha256(self.image.cpu().numpy().tobytes() + bytes([self.bits])).hexdigest()

    @property
    def float_image(self) -> Tensor:
        """Return the image [H,W,D] in [0,1]."""
        return self.image

    def to(self, device: torch.device) -> ImageView:
        """Return the view on a device; itself where it is there already."""
        if self.image.device == device:
            return self
        return replace(self, camera=self.camera.to(device), image=to_device(self.image, device), _coarse=None)

    def target(self, factor: int = 1, background: Tensor | None = None) -> tuple[Tensor, None, Camera]:
        """Return image, no mask, and camera, as `View.target`; alpha is a channel like the others, so no
        background shows through.
        """
        if factor == 1:
            return self.image[None], None, self.camera
        image, _, _, camera = self._reduced(factor)
        return image[None], None, camera


@dataclass(kw_only=True)
class SingleImage:
    """Loads one image file, which is fitted by 2D Gaussians."""

    domain: ClassVar[str] = "image"

    path: str = field(default="", metadata={"unit": "path"})  # the image file
    crop: list[int] = field(default_factory=list)  # x, y, width, height, px: the part that is used; []: all

    def __post_init__(self) -> None:
        if self.crop and (len(self.crop) != 4 or min(self.crop) < 0 or min(self.crop[2:]) < 1):
            raise ValueError(f"data.crop: expected x, y, width and height, got {list(self.crop)}")

    def load(self) -> Scene:
        """Return the image as a scene on a background of its mean colour.

        Raises: FileNotFoundError, ValueError, one line, for an image that cannot be read.
        """
        if not self.path:
            raise ValueError("data.path: expected an image file, got none; say data.path=<file>")
        image = read_image(Path(self.path))
        if self.crop:
            x, y, width, height = self.crop
            if x + width > image.width or y + height > image.height:
                got = f"{list(self.crop)} of {image.width} x {image.height}"
                raise ValueError(f"data.crop: expected a part of the image, got {got}")
            image = replace(image, pixels=image.pixels[y : y + height, x : x + width])
        return image_scene(image)


def image_scene(data: ImageData) -> Scene:
    """Return the scene of an image; its background is a colour that 16 bits can represent."""
    image = torch.from_numpy(data.pixels).contiguous()
    mean = (image.double().mean((0, 1)) * LEVELS).round() / LEVELS
    view = ImageView(data.name, image_camera(data.width, data.height), image, bits=data.bits)
    behind: Any = tuple(mean.tolist())
    return Scene(data.name, [view], [view], extent=1.0, background=behind, test_is_train=True)


def image_camera(
    width: int, height: int, zoom: float = 1.0, corner: tuple[float, float] = (0.0, 0.0)
) -> Camera:
    """Return a camera of the image plane that sees `width` x `height` px of an image that is enlarged `zoom`
    times.

    Args:
        corner: (x, y) px of the enlarged image, where the visible part begins.
    """
    matrix = torch.eye(3)
    matrix[0, 0] = matrix[1, 1] = zoom
    matrix[0, 2], matrix[1, 2] = -corner[0], -corner[1]
    return Camera(torch.eye(4)[None], matrix[None], width, height)
