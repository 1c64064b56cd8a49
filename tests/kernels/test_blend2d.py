"""Blending without an order: every backend against the float64 reference, and what must hold of all."""

import math
import re

import pytest
import torch
from support.blend2d_cases import GRADED, KINDS, blended, edges_of, expected_of, hold, listed, picture
from support.kernel_cases import assert_close

import splatexp_kernels as sk
from splatexp_kernels.blend import blend
from splatexp_kernels.blend2d import MODES, blend2d
from splatexp_kernels.constants import ALPHA_MIN, NORMALIZER_EPS

CASES = [  # N, C, width, height, D
    (0, 1, 17, 33, 3),
    (1, 2, 1, 1, 1),
    (63, 2, 17, 33, 2),
    (300, 1, 48, 40, 3),
    (300, 2, 33, 17, 4),
    (63, 1, 48, 40, 5),
    (63, 1, 31, 7, 6),
    (63, 1, 33, 9, 7),
    (300, 1, 48, 40, 8),
    (63, 1, 17, 33, 9),
]


@pytest.mark.parametrize("mode,top_k", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_agrees_with_reference(case, mode, top_k, isa):
    f, expected, edges = expected_of(case, mode, top_k)
    hold(blended(listed(f, "cpu"), "cpu", mode=mode, top_k=top_k), expected, edges)


@pytest.mark.parametrize("mode,top_k", KINDS)
@pytest.mark.parametrize("tile_size", [8, 32])
def test_cpu_agrees_with_reference_for_other_tiles(tile_size, mode, top_k, isa):
    f, expected, edges = expected_of((300, 1, 48, 40, 3), mode, top_k)
    hold(blended(listed(f, "cpu", tile_size=tile_size), "cpu", mode=mode, top_k=top_k), expected, edges)


@pytest.mark.parametrize("mode,top_k", KINDS)
@pytest.mark.parametrize("knobs", [{"background": False}, {"total": False}], ids=str)
def test_cpu_agrees_with_reference_without_what_is_optional(knobs, mode, top_k, isa):
    f = picture(63, 2, 17, 33)
    expected = blended(listed(f, "reference"), "reference", mode=mode, top_k=top_k, **knobs)
    actual = blended(listed(f, "cpu"), "cpu", mode=mode, top_k=top_k, **knobs)
    hold(actual, expected, edges_of(f, mode, top_k))


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_cpu_agrees_with_reference_under_a_cap(mode, top_k, isa):
    """What a cut list leaves out gets gradients of 0, not what its memory held before."""
    f = listed(picture(300), "cpu", per_tile_max=20)
    expected = blended(f, "reference", mode=mode, top_k=top_k)
    hold(blended(f, "cpu", mode=mode, top_k=top_k), expected, edges_of(f, mode, top_k))
    assert (expected["v_colors"] == 0).all(-1).sum() > 10


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_reference_gradients_by_finite_differences(mode, top_k):
    """Five wide Gaussians on 5x4 pixels: every weight lies above the cut, and in one order at each pixel."""
    g = torch.Generator().manual_seed(2)
    f = picture(5, 1, 5, 4, 2)
    f.means2d = 1 + 3 * torch.rand(1, 5, 2, generator=g)
    f.conics = torch.tensor([[0.08, 0.02, 0.1], [0.05, -0.02, 0.06], [0.1, 0, 0.07], [0.06, 0.01, 0.05]])
    f.conics = torch.cat([f.conics, torch.tensor([[0.07, 0.03, 0.09]])])[None]
    f.weights = f.opacities = torch.tensor([[0.9, 0.6, 0.31, 0.75, 0.2]])
    f.radii = torch.full((1, 5, 2), 20.0)
    assert not edges_of(f, mode, top_k)[0].any()
    listed(f, "reference")
    inputs = [getattr(f, name).double().requires_grad_() for name in GRADED]

    def function(*leaves):
        knobs = {"mode": mode, "top_k": top_k, "background": leaves[4], "backend": "reference"}
        return blend2d(*leaves[:4], f.tiles, 5, 4, **knobs)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("mode,top_k", KINDS[:4])
def test_reference_agrees_with_a_loop_over_pixels(mode, top_k):
    f = listed(picture(30, 1, 9, 7, 2, seed=3, most=2.0), "reference")
    found = blended(f, "reference", mode=mode, top_k=top_k)
    for row in range(f.height):
        for column in range(f.width):
            pairs = []
            for n in range(1, 30):
                dx, dy = (torch.tensor([column + 0.5, row + 0.5]).double() - f.means2d[0, n]).tolist()
                a, b, c = f.conics[0, n].double().tolist()
                w = f.weights[0, n].item() * math.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
                pairs += [(w, f.colors[0, n].double())] if w >= ALPHA_MIN else []
            pairs = sorted(pairs, key=lambda pair: -pair[0])[: top_k or None]
            color = sum((w * c for w, c in pairs), torch.zeros(2).double())
            total, back = sum(w for w, _ in pairs), f.background[0].double()
            if mode == "normalized":
                color = (color + NORMALIZER_EPS * back) / (total + NORMALIZER_EPS)
            else:
                color = color + back
            assert_close("image", found["image"][0, row, column], color, 1e-12)
            assert abs(found["total"][0, row, column, 0].item() - total) < 1e-12


def test_alpha_is_what_blend_does(backend):
    f = listed(picture(300), backend)
    found = blended(f, backend, mode="alpha")
    dtype = found["image"].dtype
    inputs = [getattr(f, name).to(dtype) for name in GRADED]
    knobs = {"background": inputs[4], "backend": backend}
    image, alpha = blend(*inputs[:4], f.tiles, f.width, f.height, **knobs)
    assert_close("image", found["image"], image, 1e-6)
    assert torch.equal(found["total"], alpha)


@pytest.mark.parametrize("mode,top_k", KINDS[:4])
def test_the_order_of_gaussians_does_not_matter(mode, top_k, backend):
    tolerance = 1e-12 if backend == "reference" else 2e-6
    f = listed(picture(300, 2, 33, 17), backend)
    before = blended(f, backend, mode=mode, top_k=top_k)
    shuffle = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    for name in ("means2d", "conics", "colors", "weights", "radii"):  # not the depths
        setattr(f, name, getattr(f, name)[:, shuffle].contiguous())
    after = blended(listed(f, backend), backend, mode=mode, top_k=top_k)
    for name in ("image", "total", "v_background"):
        assert_close(name, after[name], before[name], tolerance)
    for name in GRADED[:4]:
        expected = before[f"v_{name}"][:, shuffle]
        assert_close(f"v_{name}", after[f"v_{name}"], expected, 5 * tolerance)


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_cpu_gives_the_same_bits_for_any_number_of_threads(mode, top_k, isa):
    f = picture(300, 2, 48, 40, most=2.0)
    before, found = sk.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            sk.set_num_threads(threads)
            found.append(blended(listed(f, "cpu"), "cpu", mode=mode, top_k=top_k))
    finally:
        sk.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_nothing_comes_of_the_culled(mode, top_k, backend, size=(48, 40)):
    """Rows 0 (NaN) and 1 (too faint) have radii of 0; a weight of 0, or below, contributes nothing."""
    f = picture(63, 1, *size)
    f.weights[0, 5:8] = torch.tensor([0.0, -1.0, -1e30])
    found = blended(listed(f, backend), backend, mode=mode, top_k=top_k)
    assert all(tensor.isfinite().all() for tensor in found.values())
    for name in GRADED[:4]:
        gradients = found[f"v_{name}"][0]
        assert (gradients[[0, 1, 5, 6, 7]] == 0).all() and (gradients[3:5] != 0).any()


@pytest.mark.parametrize("mode,top_k", KINDS[:4])
def test_a_needle_too_thin_for_float32_stays_bounded(mode, top_k, backend, N=200, size=(48, 40)):
    """Rounding of its conic, of 1e12 or even 1e35, may lift an exponent above 0, or make it NaN."""
    f = picture(N, 1, *size)
    angle = torch.linspace(0, math.pi, N).double()
    x, y = angle.cos(), angle.sin()
    for thin in (1e6, 10**17.5):
        f.conics = torch.stack([y * y, -x * y, x * x], -1)[None].mul(thin**2).float()
        f.means2d = (picture(N, 1, *size, seed=1).means2d.floor() + 0.5).nan_to_num(0.0)  # on pixel centres
        f.radii, f.weights = torch.full((1, N, 2), 60.0), torch.full((1, N), 0.8)
        found = blended(listed(f, backend), backend, mode=mode, top_k=top_k)
        assert found["total"].max() <= 0.8001 * N and (found["total"] > 0).any()
        for name in ("image", "total", "v_colors", "v_weights", "v_conics", "v_background"):
            assert found[name].isfinite().all(), name


def test_equal_weights_are_taken_in_the_order_of_tiles(backend):
    """Five at one place: of the equals those first in the list."""
    f = picture(5, 1, 1, 1, 1)
    f.means2d, f.conics = torch.full((1, 5, 2), 0.5), torch.tensor([1.0, 0, 1]).expand(1, 5, 3).contiguous()
    f.radii, f.depths = torch.full((1, 5, 2), 3.0), torch.tensor([[5.0, 4, 3, 2, 1]])
    f.weights = torch.tensor([[0.5, 0.5, 0.7, 0.5, 0.3]])
    for top_k, taken in ((1, [2]), (2, [2, 3]), (3, [1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        found = blended(listed(f, backend), backend, mode="sum", top_k=top_k)
        assert found["v_colors"][0, :, 0].nonzero().flatten().tolist() == taken
        assert abs(found["total"].item() - f.weights[0, taken].sum().item()) < 1e-6


def test_as_many_as_there_are_is_all(backend):
    f = listed(picture(20), backend)
    for mode in ("sum", "normalized"):
        every, most = (blended(f, backend, mode=mode, top_k=top_k) for top_k in (0, 20))
        assert all(torch.equal(every[name], most[name]) for name in every)


def test_normalized_keeps_a_constant_colour(backend):
    """The picture of Gaussians that all have the background's colour is that colour, whatever they weigh."""
    f = listed(picture(63, most=2.0), backend)
    f.colors = torch.full_like(f.colors, 0.7)
    f.background = torch.full_like(f.background, 0.7)
    for top_k in (0, 2):
        image = blended(f, backend, mode="normalized", top_k=top_k)["image"]
        assert (image - 0.7).abs().max() < 1e-6


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_no_gradient_is_asked_for(mode, top_k, backend):
    f = listed(picture(63), backend)
    inputs = [getattr(f, name).double() if backend == "reference" else getattr(f, name) for name in GRADED]
    knobs = {"mode": mode, "top_k": top_k, "backend": backend}
    image, total = blend2d(*inputs[:4], f.tiles, f.width, f.height, **knobs)
    assert not image.requires_grad and not total.requires_grad
    colors = inputs[2].clone().requires_grad_()
    image, _ = blend2d(*inputs[:2], colors, inputs[3], f.tiles, f.width, f.height, **knobs)
    image.sum().backward()
    assert colors.grad.abs().sum() > 0


def refused(message, f, **knobs):
    inputs = [knobs.pop(name, getattr(f, name)) for name in GRADED[:4]]
    with pytest.raises(ValueError, match=re.escape(message)):
        blend2d(*inputs, f.tiles, knobs.pop("width", f.width), f.height, **{"backend": "reference", **knobs})


def test_what_is_refused():
    f = listed(picture(5), "reference")
    refused("mode: expected one of sum, normalized, alpha, got 'mean'", f, mode="mean")
    refused("top_k: expected at least 0, got -1", f, top_k=-1)
    refused("top_k: expected 0 with mode 'alpha', got 2", f, mode="alpha", top_k=2)
    refused("weights: expected [C, N] with C=1, N=5, got (1, 4)", f, weights=torch.ones(1, 4))
    refused("background: expected [C, D] with C=1, D=3, got (1, 2)", f, background=torch.zeros(1, 2))
    refused("tiles: expected lists for 1 images of 96x40", f, width=96)
    refused("top_k: backend 'cpu' offers at most 32, got 33", listed(f, "cpu"), backend="cpu", top_k=33)
    assert MODES == ("sum", "normalized", "alpha")  # the order that cpp/ops.h counts them in
