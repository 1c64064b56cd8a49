"""Small pictures and the rows that draw them."""

import numpy as np
import torch

from splatexp.data.scene import Scene
from splatexp.data.single_image import image_scene
from splatexp.gaussians.covariance import PARAMETRIZATIONS, Covariance
from splatexp.gaussians.splats2d import Splats2D
from splatexp.io import image_file


def pixels(width: int = 40, height: int = 32, channels: int = 3) -> np.ndarray:
    """A disc before a slope, [H,W,D] in [0,1]; channels differ."""
    y, x = np.mgrid[:height, :width]
    disc = ((x - 0.6 * width) ** 2 + (y - 0.4 * height) ** 2 < (0.25 * height) ** 2) * 1.0
    slopes = [(x + (d + 1) * y) / (width + (d + 1) * height) for d in range(channels)]
    shown = [0.2 + 0.4 * slope + 0.3 * disc * (-1) ** d for d, slope in enumerate(slopes)]
    return np.clip(np.stack(shown, -1), 0, 1).astype(np.float32)


def scene(width: int = 40, height: int = 32, channels: int = 3, bits: int = 8) -> Scene:
    """That picture as a scene, rounded to its bits."""
    top = 2**bits - 1
    values = image_file.to_integers(pixels(width, height, channels), bits).astype(np.float32) / top
    return image_scene(image_file.ImageData(values, bits, "disc.png"))


def save(path, **shape) -> None:
    """Write it as a file."""
    bits = shape.pop("bits", 8)
    image_file.write_image(path, pixels(**shape), bits)


def rows(count: int = 30, channels: int = 3, form: str = "log_cholesky", seed: int = 0) -> Splats2D:
    """Gaussians anywhere in a picture of 40 x 32, of 1 to 4 px, slanted, of colours of either sign."""
    random = torch.Generator().manual_seed(seed)
    means = torch.rand(count, 2, generator=random) * torch.tensor([40.0, 32.0])
    a, b = 1 + 3 * torch.rand(2, count, generator=random)
    slant = torch.randn(count, generator=random)
    covariance = Covariance(a * a, a * slant, slant * slant + b * b, (a * b).square())
    colors = 0.3 * torch.randn(count, channels, generator=random)
    return Splats2D(
        {"means": means, "shapes": PARAMETRIZATIONS[form].shapes(covariance), "colors": colors}, form
    )
