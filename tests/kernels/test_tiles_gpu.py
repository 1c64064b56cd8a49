"""Tile lists of the Triton backend, under the interpreter: equal to the reference's, list by list."""

import pytest
import torch
from kernels.test_tiles import lists, test_boxes_beyond_the_image, test_nothing_visible
from support.kernel_cases import SIZES, flat

from splatexp_kernels.constants import TILE_SIZES
from splatexp_kernels.tiles import tiles

gpu = pytest.importorskip("splatexp_kernels.tiles.gpu", reason="Triton is not installed")
outside, nothing = test_boxes_beyond_the_image, test_nothing_visible
del test_boxes_beyond_the_image, test_nothing_visible  # the CPU's tests run where they stand


def assert_lists_equal(means2d, radii, depths, width, height, **knobs):
    found, expected = (
        tiles(means2d, radii, depths, width, height, backend=name, **knobs) for name in ("gpu", "reference")
    )
    assert torch.equal(found.order, expected.order)
    for name in ("starts", "ends"):
        assert getattr(found, name).dtype == torch.int64
    assert found.ids.dtype == found.order.dtype == torch.int32
    assert lists(found) == lists(expected)
    assert_slots_lead_back(found)
    return found


def assert_slots_lead_back(t):
    """Pairs lie Gaussian after Gaussian, tile after tile: `slots` is where a list's entry was emitted."""
    slots, ranks, offsets, boxes, bounds, _ = t.backend_data
    assert sorted(slots.tolist()) == list(range(len(slots)))
    assert torch.equal(ranks[slots.long()], ranks.new_tensor(sum(whole_lists(t, bounds), [])))
    assert torch.equal(ranks.long(), torch.arange(len(t.order)).repeat_interleave(offsets.diff()))
    columns = boxes[ranks.long(), 2].long()
    place = torch.arange(len(ranks)) - offsets[ranks.long()]
    tile = (boxes[ranks.long(), 1] + place // columns) * t.tiles_x + boxes[ranks.long(), 0] + place % columns
    listed = torch.arange(len(t.starts)).repeat_interleave(bounds.diff()) % (t.tiles_x * t.tiles_y)
    assert torch.equal(tile[slots.long()], listed)


def whole_lists(t, bounds):
    return [t.ids[a:b].tolist() for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


@pytest.mark.parametrize("tile_size", TILE_SIZES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_lists_are_those_of_the_reference(size, tile_size):
    f = flat(*size)
    assert_lists_equal(f.means2d, f.radii, f.depths, f.width, f.height, tile_size=tile_size)


@pytest.mark.parametrize("cap", [1, 3, 1000])
def test_per_tile_max_keeps_the_nearest(cap):
    f = flat(200, 2, 33, 17)
    assert_lists_equal(f.means2d, f.radii, f.depths, 33, 17, per_tile_max=cap)


@pytest.mark.parametrize("C", [1, 2])
def test_depths_of_any_size_sign_and_equal_ones(C):
    f = flat(200, C, 33, 17)
    g = torch.Generator().manual_seed(3)
    depths = torch.exp(torch.rand(C, 200, generator=g) * 40 - 20) * torch.randn(C, 200, generator=g).sign()
    depths[:, ::3] = (depths[:, ::3].clamp(-2, 2) * 2).round() / 2
    depths[:, 1:3], depths[:, 5] = torch.tensor([-0.0, 0.0]), torch.inf
    assert_lists_equal(f.means2d, f.radii, depths, 33, 17)


def test_boxes_that_end_beside_a_pixel_centre():
    """A hair before, on and behind the first and last centres of tiles, and between two tiles' centres."""
    edges = torch.tensor([0.5, 7.5, 8.5, 15.5, 16.5, 23.5, 24.5, 25.5, 26.5])
    edges = torch.cat([edges, edges.nextafter(edges + 1), edges.nextafter(edges - 1), -edges[:2]])
    low, high = torch.meshgrid(edges, edges, indexing="ij")
    low, high = low[low < high], high[low < high]
    middle, half = (low + high) / 2, (high - low) / 2
    means2d = torch.stack([middle, middle.flip(0)], -1)[None]
    radii = torch.stack([half, half.flip(0)], -1)[None]
    assert_lists_equal(means2d, radii, torch.ones(1, len(middle)), 26, 26, tile_size=8)


def test_boxes_far_beyond_the_image_and_nothing_at_all():
    outside("gpu")
    nothing("gpu")


def test_what_is_not_finite_is_not_seen():
    f = flat(60, 1, 33, 17)
    expected = tiles(f.means2d, f.radii, f.depths, 33, 17, backend="reference")
    hidden = (f.radii == 0).any(-1)
    assert hidden.any()
    f.radii[hidden] = torch.tensor([torch.nan, 3.0])
    f.means2d[hidden], f.depths[hidden] = torch.nan, torch.nan
    found = tiles(f.means2d, f.radii, f.depths, 33, 17, backend="gpu")
    assert torch.equal(found.order, expected.order) and lists(found) == lists(expected)


def test_more_tiles_than_16_bits_hold(monkeypatch):
    monkeypatch.setattr(gpu, "SHORT", 4)
    f = flat(60, 2, 33, 33)
    with pytest.raises(
        ValueError, match="tiles: 2 x 60 Gaussians in 33x33 exceed the indices of backend 'gpu'"
    ):
        tiles(f.means2d, f.radii, f.depths, 33, 33, tile_size=8, backend="gpu")
    assert_lists_equal(f.means2d, f.radii, f.depths, 33, 33, tile_size=16)


def test_the_host_reads_once(monkeypatch):
    """How long the lists are, and nothing else: each read waits for all that the device has to do."""
    reads = []
    for name in ("tolist", "item", "__int__", "__bool__", "__index__", "nonzero", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, r=real, n=name, **k: (reads.append(n), r(*a, **k))[1]
        )
    f = flat(60, 2, 33, 33)
    reads.clear()
    # the interpreter reads arrays on its own account: only what is called from the module counts
    monkeypatch.setattr(gpu, "_measure", _Reading(gpu._measure, reads))
    monkeypatch.setattr(gpu, "_emit", _Reading(gpu._emit, reads))
    tiles(f.means2d, f.radii, f.depths, 33, 33, backend="gpu")
    assert reads == ["tolist"]


class _Reading:
    """A kernel whose own reads do not count."""

    def __init__(self, kernel, reads):
        self.kernel, self.reads = kernel, reads

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            before = list(self.reads)
            self.kernel[grid](*args, **kwargs)
            self.reads[:] = before

        return launch
