"""The layers of a coded image: which Gaussian belongs to which, what they take, and how good each prefix
is.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import load

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats2d import Splats2D


def overhead_bytes(layers: int, channels: int) -> int:
    """Return the bytes of a file of `layers` layers without Gaussians."""
    return 39 + 16 * layers + 6 * channels


def without_weakest(rows: Splats2D, removed: int) -> tuple[Tensor, Tensor]:
    """Return the rows without the `removed` that contribute least, in their order, and that none of them is
    new.
    """
    kept = rows.contribution().argsort(stable=True)[removed:].sort().values
    return kept, torch.zeros_like(kept, dtype=torch.bool)


@torch.no_grad()
def assign_layers(rows: Splats2D, layers: int) -> Tensor:
    """Return the layer of each row [N], int32: the strongest rows make the first; each layer has as many as
    all before it.
    """
    rank = rows.contribution().argsort(descending=True, stable=True).argsort().double()
    ends = torch.tensor([2.0 ** (index + 1 - layers) for index in range(layers - 1)]) * len(rows)
    return torch.bucketize(rank, ends.double(), right=True).to(torch.int32)


def measure_file(data: bytes, scene: Scene) -> dict[str, float]:
    """Return a file's bits, bits per pixel and, where it has several layers, the PSNR of every prefix and
    their mean.
    """
    file, view = load(data), scene.train[0]
    top = (1 << view.bits) - 1
    truth = (view.float_image.double().cpu().numpy() * top).round() / top
    found = {"bits": 8.0 * len(data), "bpp": 8.0 * len(data) / (truth.shape[0] * truth.shape[1])}
    if len(file.layers) == 1:
        return found
    reached = []
    for count in range(1, len(file.layers) + 1):
        away = decode(file, layers=count).reshape(truth.shape) / top - truth
        reached.append(-10 * math.log10(max(float((away * away).mean()), 1e-12)))
    found |= {f"psnr_layers_{count}": value for count, value in enumerate(reached, 1)}
    return found | {"psnr_layers": sum(reached) / len(reached)}
