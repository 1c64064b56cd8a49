"""How good a file is, and every prefix of its layers, as a decoder sees it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from splatexp.image.decode import decode
from splatexp.image.gsi import load

if TYPE_CHECKING:
    from splatexp.data.scene import Scene


def measured(data: bytes, scene: Scene) -> dict[str, float]:
    """A file's bits, bits per pixel and, where it has layers, the PSNR of every prefix and their mean."""
    file, view = load(data), scene.train[0]
    top = (1 << view.bits) - 1
    truth = (view.values.double().cpu().numpy() * top).round() / top
    found = {"bits": 8.0 * len(data), "bpp": 8.0 * len(data) / (truth.shape[0] * truth.shape[1])}
    if len(file.layers) == 1:
        return found
    reached = []
    for count in range(1, len(file.layers) + 1):
        away = decode(file, layers=count).reshape(truth.shape) / top - truth
        reached.append(-10 * math.log10(max(float((away * away).mean()), 1e-12)))
    found |= {f"psnr_layers_{count}": value for count, value in enumerate(reached, 1)}
    return found | {"psnr_layers": sum(reached) / len(reached)}
