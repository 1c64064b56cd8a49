"""Attribution by the Triton backend, under the interpreter: every field against the float64 reference."""

import pytest
import torch
from kernels.test_attribute import ALL, attributed, contested, held_against
from kernels.test_attribute import composed as composed_one_by_one
from support.kernel_cases import beside_cutoffs, flat

from splatexp_kernels.blend import DEFAULT_FIELDS, attribute
from splatexp_kernels.tiles import tiles

gpu = pytest.importorskip("splatexp_kernels.blend.gpu_attribute", reason="Triton is not installed")


def tiled(f, backend="gpu", **knobs):
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend, **knobs)
    return f


def compared(f, M, *, tile_size=16, want=ALL, **knobs):
    expected = attributed(
        tiled(f, "reference"), M, "reference", torch.float64, threshold=0.4, want=ALL, **knobs
    )
    tiled(f, tile_size=tile_size)
    found = attributed(f, M, "gpu", torch.float32, threshold=0.4, want=want, **knobs)
    names = {*want, *DEFAULT_FIELDS}
    assert {name for name, value in found._asdict().items() if value is not None} == names
    named = {name: value for name, value in expected._asdict().items() if name in names}
    held_against(found, named, 5e-6, beside_cutoffs(f)[1], contested(f))
    return found


@pytest.mark.parametrize(
    "size, M, tile_size, want",
    [
        ((0, 1, 17, 9), 2, 16, ALL),
        ((1, 2, 1, 1), 1, 16, ALL),
        ((50, 1, 20, 12), 3, 16, ALL),
        ((20, 2, 11, 9), 0, 8, ALL),
        ((50, 1, 20, 12), 5, 16, ()),
        ((30, 1, 33, 9), 1, 32, ("dominant", "distance")),
    ],
    ids=str,
)
def test_gpu_agrees_with_reference(size, M, tile_size, want):
    compared(flat(*size), M, tile_size=tile_size, want=want)


@pytest.mark.parametrize("cap", [0, 2])
def test_gpu_agrees_with_plain_compositing(cap):
    f, expected = composed_one_by_one((17, 2, 9, 11), cap)
    found = attributed(tiled(f), 2, "gpu", torch.float32, threshold=0.4, max_splats_per_pixel=cap, want=ALL)
    held_against(found, expected, 5e-6, beside_cutoffs(f)[1], contested(f))


def stack():
    """60 Gaussians that cover the picture: a tile is opaque after the first few."""
    f = flat(60, 1, 17, 9)
    f.means2d[:], f.conics[:] = torch.tensor([8.0, 4.0]), torch.tensor([0.002, 0, 0.002])
    f.opacities[:], f.radii[:], f.depths[:] = 0.9, 1e3, 1.0 + torch.arange(60)
    return f


def test_a_tile_stops_where_it_is_opaque():
    found = compared(stack(), 1, want=("covered", "dominant"))
    assert (found.pixels[0, :2] > 0).all() and (found.pixels[0, 8:] == 0).all()
    assert found.dominant[0, 0] == 17 * 9


def test_one_gaussian_in_many_tiles(monkeypatch):
    """Whole chunks of its slots are folded first, the largest weight as a largest."""
    monkeypatch.setattr(gpu, "CHUNK", 4)
    f = stack()
    f.opacities[:], f.radii[0, 6:] = 0.3, 0.0
    found = compared(f, 1, tile_size=8, want=("covered",))
    assert found.weight_max[0, 0] < 0.31


def test_only_what_is_wanted_comes():
    f = tiled(flat(12, 1, 9, 5))
    whole = attributed(f, 3, "gpu", torch.float32, want=ALL)
    for name in ("covered", "dominant", "removal_loss"):
        found = attributed(f, 3, "gpu", torch.float32, want={name})
        for other in ALL:
            value = getattr(found, other)
            assert (value is not None) == (other == name or other in DEFAULT_FIELDS), (name, other)
            assert value is None or torch.equal(value, getattr(whole, other)), (name, other)


def test_the_same_bits_every_time_and_nothing_unseen_is_read():
    f = tiled(flat(30, 1, 17, 9))
    first = attributed(f, 1, "gpu", torch.float32, want=("dominant",))
    hidden = (f.radii == 0).any(-1)
    for name in ("means2d", "conics", "opacities"):
        getattr(f, name)[hidden] = torch.nan
    second = attributed(f, 1, "gpu", torch.float32, want=("dominant",))
    for name in (*DEFAULT_FIELDS, "dominant"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
        assert (getattr(second, name)[hidden] == 0).all(), name


def test_gpu_refuses_other_tiles():
    f = tiled(flat(5, 1, 9, 5), "cpu")
    with pytest.raises(ValueError, match="tiles: expected lists of backend 'gpu', got those"):
        attribute(f.means2d, f.conics, f.opacities, f.tiles, 9, 5, torch.rand(1, 5, 9, 1), backend="gpu")
