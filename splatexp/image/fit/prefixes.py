"""The strongest rows, and layers of a file: which row is of which, what they take, how good prefixes are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import load

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.plane import Plane


def framing(levels: int, channels: int) -> int:
    """Bytes of a file of so many layers without rows."""
    return 39 + 16 * levels + 6 * channels


def all_but(rows: Plane, gone: int) -> tuple[Tensor, Tensor]:
    """Rows without so many of the weakest, in their order, and that none of them is fresh."""
    kept = rows.strength().argsort(stable=True)[gone:].sort().values
    return kept, torch.zeros_like(kept, dtype=torch.bool)


@torch.no_grad()
def layers_of(rows: Plane, levels: int) -> Tensor:
    """Which layer each row [N] is of, int32: the strongest make the first, each has twice those before it."""
    rank = rows.strength().argsort(descending=True, stable=True).argsort().double()
    ends = torch.tensor([2.0 ** (level + 1 - levels) for level in range(levels - 1)]) * len(rows)
    return torch.bucketize(rank, ends.double(), right=True).to(torch.int32)


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
