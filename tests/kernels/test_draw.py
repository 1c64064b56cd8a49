"""`draw`: the picture of `blend2d` to the bit, from numpy arrays."""

import numpy as np
import pytest
import torch

from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.draw import TILE_SIZE, draw, pairs_of
from splatexp_kernels.tiles import tiles


def gaussians(n, channels, seed=0):
    rng = np.random.default_rng(seed)
    means, s = rng.uniform(-5, 75, (n, 2)), np.exp(rng.uniform(-1, 2.5, (n, 2)))
    conics = np.stack([1 / s[:, 0] ** 2, 0.3 / s.prod(1), 1 / s[:, 1] ** 2], -1)
    radii = np.sqrt(2 * np.log(255) / (1 - 0.3**2)) * s
    parts = (means, conics, radii, rng.normal(0, 0.3, (n, channels)))
    return [part.astype(np.float32) for part in parts]


@pytest.mark.parametrize("mode", ["sum", "normalized"])
@pytest.mark.parametrize(("n", "channels", "top_k"), [(200, 3, 0), (200, 1, 4), (1, 4, 0), (0, 2, 0)])
def test_it_is_blend2d_to_the_bit(n, channels, top_k, mode):
    width, height = 70, 45
    means, conics, radii, colors = gaussians(n, channels)
    tint = np.linspace(0, 1, channels, dtype=np.float32)
    got = draw(means, conics, radii, colors, width, height, mode=mode, top_k=top_k, background=tint)
    m, c, r, k, b = (torch.from_numpy(part)[None] for part in (means, conics, radii, colors, tint))
    lists = tiles(m, r, torch.zeros(1, n), width, height, tile_size=TILE_SIZE)
    ones = torch.ones(1, n)
    want, _ = blend2d(m, c, k, ones, lists, width, height, mode=mode, top_k=top_k, background=b)
    assert np.array_equal(got, want[0].numpy())
    assert pairs_of(means, radii, width, height) >= len(lists.ids)
