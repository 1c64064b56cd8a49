import math
from functools import cache

import pytest
import torch
from support.kernel_cases import alphas_by_pixel, assert_close, beside_cutoffs, flat

from splatexp_kernels.blend import DEFAULT_FIELDS, LEAVE_ONE_OUT_FIELDS, Attribution, attribute, blend
from splatexp_kernels.constants import ALPHA_MAX, ALPHA_MIN, T_MIN
from splatexp_kernels.tiles import tiles

ALL = Attribution._fields


def maps_of(f, M, dtype):
    g = torch.Generator().manual_seed(2)
    return torch.rand(len(f.means2d), f.height, f.width, M, generator=g).to(dtype)


def target_of(f, dtype):
    g = torch.Generator().manual_seed(5)
    return torch.rand(len(f.means2d), f.height, f.width, 3, generator=g).to(dtype)


def attributed(f, M, backend, dtype, *, want=(), **knobs):
    geometry = [tensor.to(dtype) for tensor in (f.means2d, f.conics, f.opacities)]
    if set(want) & set(LEAVE_ONE_OUT_FIELDS):
        cap = knobs.get("max_splats_per_pixel", 0)
        colors, background = f.colors.to(dtype), f.background.to(dtype)
        image, _ = blend(
            *geometry[:2], colors, geometry[2], f.tiles, f.width, f.height, background=background,
            max_splats_per_pixel=cap, backend=backend,
        )  # fmt: skip
        knobs |= {"colors": colors, "image": image, "target": target_of(f, dtype)}
    maps = maps_of(f, M, dtype)
    return attribute(*geometry, f.tiles, f.width, f.height, maps, want=want, backend=backend, **knobs)


def held_against(actual, expected, tolerance, touched, contested):
    """All fields but for Gaussians beside a cut-off; `dominant` but for those whose weights all but tie."""
    for name, tensor in expected.items():
        found, counted = getattr(actual, name), tensor.dtype == torch.int32
        assert found.dtype == torch.int32 if counted else found.is_floating_point(), name
        where = ~(touched | contested) if name == "dominant" else ~touched
        allowed = (
            2 * tolerance if name in LEAVE_ONE_OUT_FIELDS else tolerance
        )  # a square has twice the relative error
        assert_close(name, found, tensor, 0 if counted else allowed, where=where)


def contested(f, band=1e-4):
    """Gaussians [C,N] that in some pixel come within the band of the largest weight."""
    alphas, by_depth = alphas_by_pixel(f), f.depths.argsort(stable=True)
    strong = torch.where(alphas >= ALPHA_MIN, alphas.clamp_max(ALPHA_MAX), 0.0)
    order = by_depth[:, None].expand_as(strong)
    sorted_ = strong.gather(2, order)
    through = torch.cumprod(1 - sorted_, 2)
    weights = torch.zeros_like(strong).scatter(2, order, sorted_ * through / (1 - sorted_))
    if weights.shape[2] < 2:
        return torch.zeros(f.opacities.shape, dtype=torch.bool)
    best = weights.topk(2, -1).values
    near = (best[..., 1] > (1 - band) * best[..., 0]) & (best[..., 0] > 0)
    return (near[..., None] & (weights >= best[..., 1:])).any(1)


@pytest.mark.parametrize("M", [0, 1, 2, 3, 6, 7])
@pytest.mark.parametrize("size", [(0, 1, 17, 33), (1, 2, 1, 1), (63, 2, 17, 33), (500, 1, 64, 48)], ids=str)
def test_cpu_agrees_with_reference(size, M, isa):
    f = flat(*size)
    expected = attributed(f, M, "reference", torch.float64, threshold=0.4, want=ALL)
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="cpu")
    cheap = attributed(f, M, "cpu", torch.float32, threshold=0.4)
    whole = attributed(f, M, "cpu", torch.float32, threshold=0.4, want=ALL)
    touched, undecided = beside_cutoffs(f)[1], contested(f)
    held_against(whole, expected._asdict(), 5e-6, touched, undecided)
    held_against(cheap, {name: getattr(expected, name) for name in DEFAULT_FIELDS}, 5e-6, touched, undecided)


@cache
def composed(size, cap):
    """Every field, from pixels composited one by one in plain float64, and again without each Gaussian."""
    f = flat(*size)
    (C, N), M = f.opacities.shape, 2
    maps, target = maps_of(f, M, torch.float64), target_of(f, torch.float64)
    found = {name: torch.zeros(C, N, dtype=torch.float64) for name in ALL}
    found |= {name: torch.zeros(C, N, M, dtype=torch.float64) for name in ("weighted", "hits", "covered")}
    for c in range(C):
        order = [k for k in f.depths[c].argsort(stable=True).tolist() if (f.radii[c, k] > 0).all()]
        rows = [torch.cat([f.means2d[c, k], f.conics[c, k], f.opacities[c, k, None]]).tolist() for k in order]
        colors, background = f.colors[c].double(), f.background[c].double()
        for y in range(f.height):
            for x in range(f.width):
                pixel = _taken(order, rows, x + 0.5, y + 0.5, cap)
                image = _blended([(a, colors[k]) for k, a, _, _ in pixel], background)
                residual = image - target[c, y, x]
                through, weights = 1.0, {}
                for place, (k, a, falloff, distance) in enumerate(pixel):
                    w = weights[k] = through * a
                    through *= 1 - a
                    others = [(a, colors[k]) for k, a, _, _ in pixel[:place] + pixel[place + 1 :]]
                    loss = image - _blended(others, background)
                    found["weight_sum"][c, k] += w
                    found["weight_max"][c, k] = max(found["weight_max"][c, k].item(), w)
                    found["weighted"][c, k] += w * maps[c, y, x]
                    found["hits"][c, k] += maps[c, y, x] > 0.4
                    found["pixels"][c, k] += 1
                    found["covered"][c, k] += maps[c, y, x]
                    found["distance"][c, k] += distance
                    found["removal"][c, k] += loss.square().sum()
                    found["removal_loss"][c, k] += (residual - loss).square().sum() - residual.square().sum()
                    found["sensitivity"][c, k] += (loss.sum() / falloff) ** 2 if a < ALPHA_MAX else 0
                if weights:
                    found["dominant"][c, max(weights, key=weights.__getitem__)] += 1
    counts = {name: found[name].int() for name in ("hits", "pixels", "dominant")}
    return f, found | counts


def _taken(order, rows, x, y, cap):
    """Index, alpha, falloff and distance of each Gaussian that a pixel takes, front to back."""
    taken, through = [], 1.0
    for k, (mean_x, mean_y, a, b, c, opacity) in zip(order, rows, strict=True):
        dx, dy = x - mean_x, y - mean_y
        falloff = math.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
        alpha = min(ALPHA_MAX, opacity * falloff)
        if alpha < ALPHA_MIN:
            continue
        if through * (1 - alpha) <= T_MIN or (cap and len(taken) == cap):
            break
        through *= 1 - alpha
        taken.append((k, alpha, falloff, math.hypot(dx, dy)))
    return taken


def _blended(layers, background):
    color = background
    for alpha, layer in reversed(layers):
        color = alpha * layer + (1 - alpha) * color
    return color


@pytest.mark.parametrize("cap", [0, 2])
@pytest.mark.parametrize("size", [(0, 1, 5, 3), (1, 2, 3, 5), (17, 2, 9, 11), (64, 1, 17, 21)], ids=str)
def test_every_backend_agrees_with_plain_compositing(size, cap, backend):
    f, expected = composed(size, cap)
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
    dtype, tolerance = (torch.float64, 1e-10) if backend == "reference" else (torch.float32, 5e-6)
    found = attributed(f, 2, backend, dtype, threshold=0.4, max_splats_per_pixel=cap, want=ALL)
    held_against(found, expected, tolerance, beside_cutoffs(f)[1], contested(f))


def test_removal_is_what_leaving_out_does(backend):
    """Also before and behind a Gaussian whose alpha is clamped."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(30, 1, 17, 21)
    f.opacities = 0.2 * f.opacities  # so faint that no pixel ever stops
    f.opacities[0, 0] = 1.0
    a, b, c = f.conics.double().unbind(-1)
    variances = torch.stack([c, a], -1) / (a * c - b * b)[..., None]
    radii = (2 * torch.log(255 * f.opacities[..., None]) * variances).sqrt()
    f.radii = torch.where(f.radii > 0, radii.nan_to_num(0, 0, 0), 0).float()
    exact = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="reference")
    geometry = [tensor.double() for tensor in (f.means2d, f.conics, f.colors)]

    def image(opacities):
        back = f.background.double()
        return blend(*geometry, opacities, exact, 17, 21, background=back, backend="reference")[0]

    whole, target = image(f.opacities.double()), target_of(f, torch.float64)
    removal, removal_loss = torch.zeros(2, 1, 30, dtype=torch.float64)
    for k in range(30):
        opacities = f.opacities.double()
        opacities[0, k] = 0
        without = image(opacities)
        removal[0, k] = (whole - without).square().sum()
        removal_loss[0, k] = (without - target).square().sum() - (whole - target).square().sum()
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
    found = attributed(f, 0, backend, dtype, want=("removal", "removal_loss"))
    _, touched = beside_cutoffs(f)
    assert touched.float().mean() < 0.5
    tolerance = 1e-10 if backend == "reference" else 5e-6
    assert_close("removal", found.removal, removal, tolerance, where=~touched)
    assert_close("removal_loss", found.removal_loss, removal_loss, tolerance, where=~touched)
    assert removal_loss.min() < 0 < removal_loss.max()


def test_only_what_is_wanted_comes(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(20, tile_backend=backend)
    whole = attributed(f, 3, backend, dtype, want=ALL)
    for name in ALL:
        found = attributed(f, 3, backend, dtype, want={name})
        for other in ALL:
            value = getattr(found, other)
            assert (value is not None) == (other == name or other in DEFAULT_FIELDS), (name, other)
            assert value is None or torch.equal(value, getattr(whole, other)), (name, other)


def test_reference_refuses_what_it_cannot_give():
    f = flat(5)
    inputs = [f.means2d, f.conics, f.opacities, f.tiles, f.width, f.height, maps_of(f, 1, torch.float32)]
    with pytest.raises(ValueError, match="want: expected names among weight_sum, .*, got 'depth'"):
        attribute(*inputs, want=("depth",), backend="reference")
    with pytest.raises(ValueError, match="target: expected a tensor where want has removal, got None"):
        image = torch.zeros(1, f.height, f.width, 3)
        attribute(*inputs, want=("removal",), colors=f.colors, image=image, backend="reference")
    with pytest.raises(ValueError, match="target: expected .C, H, W, 3."):
        attribute(*inputs, target=torch.zeros(1, 3, 3, 3), backend="reference")


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
