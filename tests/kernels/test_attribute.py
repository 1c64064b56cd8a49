import pytest
import torch
from kernel_cases import assert_close, beside_cutoffs, flat

from splatexp_kernels.blend import attribute, blend
from splatexp_kernels.tiles import tiles


def maps_of(f, M, dtype):
    g = torch.Generator().manual_seed(2)
    return torch.rand(len(f.means2d), f.height, f.width, M, generator=g).to(dtype)


def attributed(f, M, backend, dtype, **knobs):
    geometry = [tensor.to(dtype) for tensor in (f.means2d, f.conics, f.opacities)]
    maps = maps_of(f, M, dtype)
    return attribute(*geometry, f.tiles, f.width, f.height, maps, backend=backend, **knobs)


@pytest.mark.parametrize("M", [0, 1, 2, 3, 6, 7])
@pytest.mark.parametrize("size", [(0, 1, 17, 33), (1, 2, 1, 1), (63, 2, 17, 33), (500, 1, 64, 48)], ids=str)
def test_cpu_agrees_with_reference(size, M, isa):
    f = flat(*size)
    expected = attributed(f, M, "reference", torch.float64, threshold=0.4)
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="cpu")
    actual = attributed(f, M, "cpu", torch.float32, threshold=0.4)
    _, touched = beside_cutoffs(f)
    for name, tensor in expected._asdict().items():
        exact = tensor.dtype == torch.int32
        assert getattr(actual, name).dtype == (torch.int32 if exact else torch.float32)
        assert_close(name, getattr(actual, name), tensor, 0 if exact else 5e-6, where=~touched)


def test_weights_are_those_of_blend(backend):
    """The gradient of sum(image * map) with respect to a Gaussian's colour is its attribution."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(63, 2, 17, 33, 2, tile_backend=backend)
    found = attributed(f, 2, backend, dtype)
    colors = f.colors.to(dtype).requires_grad_()
    geometry = [tensor.to(dtype) for tensor in (f.means2d, f.conics)]
    image, alpha = blend(*geometry, colors, f.opacities.to(dtype), f.tiles, 17, 33, backend=backend)
    (weighted,) = torch.autograd.grad((image * maps_of(f, 2, dtype)).sum(), colors)
    assert_close("weighted", found.weighted, weighted, 2e-6)
    assert_close("weight_sum", found.weight_sum.sum(1), alpha.sum((1, 2, 3)), 1e-5)


def test_meaning_of_the_rest(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(200, tile_backend=backend)
    found = attributed(f, 3, backend, dtype)
    assert torch.equal(found.hits, found.pixels[..., None].expand_as(found.hits))  # every map is above 0
    used = found.pixels > 0
    assert torch.equal(used, found.weight_sum > 0) and torch.equal(used, found.weight_max > 0)
    assert (found.weight_max <= found.weight_sum + 1e-6).all()
    assert (found.weight_sum <= found.pixels * found.weight_max * (1 + 1e-5)).all()
    assert not used[(f.radii == 0).any(-1)].any() and used.any()


def test_knobs(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(200, tile_backend=backend)
    plain = attributed(f, 1, backend, dtype)
    half = attributed(f, 1, backend, dtype, threshold=0.5)
    assert 0.3 * plain.hits.sum() < half.hits.sum() < 0.7 * plain.hits.sum()
    assert torch.equal(half.pixels, plain.pixels) and torch.equal(half.weighted, plain.weighted)
    nearest = attributed(f, 1, backend, dtype, max_splats_per_pixel=1)
    assert nearest.pixels.sum() <= f.width * f.height < plain.pixels.sum()


def test_hidden_gaussians_get_nothing(backend):
    """Behind two nearly opaque layers nothing contributes."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(3, 1, 4, 4)
    f.means2d, f.conics = (
        torch.full((1, 3, 2), 2.0),
        torch.tensor([1e-6, 0, 1e-6]).expand(1, 3, 3).contiguous(),
    )
    f.opacities, f.radii = torch.tensor([[0.98, 0.98, 0.9]]), torch.full((1, 3, 2), 9.0)
    f.tiles = tiles(f.means2d, f.radii, torch.tensor([[1.0, 2, 3]]), 4, 4, backend=backend)
    found = attributed(f, 1, backend, dtype)
    assert found.pixels.tolist() == [[16, 16, 0]]
    assert_close("weight_max", found.weight_max, torch.tensor([[0.98, 0.0196, 0]]), 1e-4)
    assert found.weight_sum[0, 2] == 0 and found.weighted[0, 2, 0] == 0 and found.hits[0, 2, 0] == 0
