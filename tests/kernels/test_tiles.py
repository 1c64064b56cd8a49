import pytest
import torch
from support.kernel_cases import SIZES, alphas_by_pixel, flat

from splatexp_kernels.constants import ALPHA_MIN, TILE_SIZES
from splatexp_kernels.tiles import tiles


def lists(t):
    """Every tile's Gaussians, as indices into [C,N] flattened."""
    return [
        t.order[t.ids[a:b].long()].tolist() for a, b in zip(t.starts.tolist(), t.ends.tolist(), strict=True)
    ]


def pixel_tiles(t, C, width, height):
    """The tile of every pixel, [C,H,W]."""
    ys, xs = torch.arange(height)[:, None], torch.arange(width)
    grid = ys // t.tile_height * t.tiles_x + xs // t.tile_width
    return torch.arange(C)[:, None, None] * (t.tiles_x * t.tiles_y) + grid


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lists_what_a_pixel_needs_front_to_back(size, tile_size, backend):
    N, C, width, height = size
    f = flat(*size)
    t = tiles(f.means2d, f.radii, f.depths, width, height, tile_size=tile_size, backend=backend)
    assert t.tile_width * t.tile_height == tile_size**2
    assert t.tiles_x == -(-width // t.tile_width) and t.tiles_y == -(-height // t.tile_height)
    assert len(t.starts) == len(t.ends) == C * t.tiles_x * t.tiles_y
    assert t.order.dtype == t.ids.dtype == torch.int32 and t.starts.dtype == t.ends.dtype == torch.int64

    seen = (f.radii > 0).all(-1).flatten()
    assert set(t.order.tolist()) == set(seen.nonzero().flatten().tolist())
    camera, depth = t.order // max(N, 1), f.depths.flatten()[t.order.long()]
    ahead = (camera[1:] > camera[:-1]) | ((camera[1:] == camera[:-1]) & (depth[1:] >= depth[:-1]))
    assert ahead.all()

    needed = alphas_by_pixel(f) >= ALPHA_MIN * 1.001  # [C,HW,N]
    of_pixel = pixel_tiles(t, C, width, height).view(C, -1)
    ranks = {g: rank for rank, g in enumerate(t.order.tolist())}
    for tile, held in enumerate(lists(t)):
        assert held == sorted(set(held), key=ranks.get)
        assert all(g // N == tile // (t.tiles_x * t.tiles_y) for g in held)
        in_tile = (of_pixel == tile)[..., None] & needed
        assert set(in_tile.any(1).flatten().nonzero().flatten().tolist()) <= set(held)


def test_equal_depths_go_by_index(backend):
    f = flat(200)
    depths = torch.where(f.depths > 0, (f.depths * 2).round() / 2, f.depths)
    t = tiles(f.means2d, f.radii, depths, f.width, f.height, backend=backend)
    pairs = list(zip(depths[0][t.order.long()].tolist(), t.order.tolist(), strict=True))
    assert pairs == sorted(pairs)


def test_depths_of_any_size_are_sorted(backend):
    f = flat(200)
    g = torch.Generator().manual_seed(3)
    depths = torch.exp(torch.rand(1, 200, generator=g) * 40 - 20)
    t = tiles(f.means2d, f.radii, depths, f.width, f.height, backend=backend)
    assert (depths[0][t.order.long()].diff() >= 0).all()


@pytest.mark.parametrize("cap", [1, 3, 1000])
def test_per_tile_max_keeps_the_nearest(cap, backend):
    f = flat(500)
    whole = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
    capped = tiles(f.means2d, f.radii, f.depths, f.width, f.height, per_tile_max=cap, backend=backend)
    assert max(map(len, lists(whole))) > 3
    assert lists(capped) == [held[:cap] for held in lists(whole)]


def test_boxes_beyond_the_image(backend):
    """Boxes that cover everything, that stick out on each side, and that are far away on either side."""
    means2d = torch.tensor([[[20.0, 20], [-5, 20], [45, 20], [20, -5], [20, 1e9], [-1e9, 20], [20.2, 20.7]]])
    radii = torch.tensor([[[1e9, 1e9], [8, 2], [8, 2], [2, 8], [3, 3], [9, 9], [0.2, 0.1]]])
    t = tiles(means2d, radii, torch.ones(1, 7), 40, 40, tile_size=8, backend=backend)
    counts = torch.tensor(lists(t) and sum(lists(t), [])).bincount(minlength=7).tolist()
    assert counts[0] == t.tiles_x * t.tiles_y
    assert (
        all(counts[1:4]) and counts[4] == counts[5] == 0
    )  # the last may hold no pixel's centre: either will do


def test_nothing_visible(backend):
    t = tiles(torch.zeros(2, 5, 2), torch.zeros(2, 5, 2), torch.zeros(2, 5), 33, 17, backend=backend)
    assert len(t.order) == len(t.ids) == 0 and (t.starts == t.ends).all()
