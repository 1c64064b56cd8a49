import math
from functools import lru_cache

import pytest
import torch
from support.kernel_cases import assert_close, beside_cutoffs, flat, run

from splatexp_kernels.blend import blend
from splatexp_kernels.constants import ALPHA_MAX, ALPHA_MIN, T_MIN
from splatexp_kernels.tiles import tiles

GRADED = ("means2d", "conics", "colors", "opacities", "background")
CASES = [  # N, C, width, height, D
    (0, 1, 17, 33, 3),
    (1, 2, 1, 1, 1),
    (63, 2, 17, 33, 2),
    (500, 1, 64, 48, 3),
    (63, 1, 64, 48, 4),
    (500, 2, 33, 17, 5),
    (500, 1, 64, 48, 8),
    (63, 1, 17, 33, 9),
]


def blended(f, backend, dtype, *, background=True, **knobs):
    """Image, alpha and gradients of a flat scene, with `absgrad` among them."""
    names = GRADED if background else GRADED[:-1]
    offered = backend == "reference" or f.colors.shape[2] <= 8
    absgrad = torch.full(f.means2d.shape, 7.0, dtype=dtype) if offered else None  # must be overwritten

    def function(**leaves):
        back = leaves.pop("background", None)
        knobs_ = {"background": back, "absgrad": absgrad, "backend": backend, **knobs}
        image, alpha = blend(*leaves.values(), f.tiles, f.width, f.height, **knobs_)
        return {"image": image, "alpha": alpha}

    found = run(function, {name: getattr(f, name) for name in names}, dtype)
    return {**found, "absgrad": absgrad} if offered else found


@lru_cache(maxsize=32)
def expected_of(case, seed):
    f = flat(*case, seed=seed)
    return f, blended(f, "reference", torch.float64), beside_cutoffs(f)


def hold(actual, expected, f, edges):
    """The boundary band: tight away from cut-offs, at most 2 % of pixels beside one, small flips there."""
    edge, touched = edges
    assert edge.float().mean() <= 0.02 or edge.numel() < 600
    for name in ("image", "alpha"):
        # float32: an exponent of terms up to 30 that cancel is off by 2e-6, and alpha with it
        assert_close(name, actual[name], expected[name], 5e-6, where=~edge)
        assert_close(name, actual[name], expected[name], 2 * (1 - ALPHA_MAX))  # one Gaussian more or less
    for name in ("means2d", "conics", "colors", "opacities"):
        assert_close(f"v_{name}", actual[f"v_{name}"], expected[f"v_{name}"], 1e-5, where=~touched)
    if "absgrad" in actual:
        assert_close("absgrad", actual["absgrad"], expected["absgrad"], 1e-5, where=~touched)
    if not edge.any():
        assert_close("v_background", actual["v_background"], expected["v_background"], 1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_agrees_with_reference(case, isa):
    f, expected, edges = expected_of(case, 0)
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="cpu")
    hold(blended(f, "cpu", torch.float32), expected, f, edges)


@pytest.mark.parametrize("tile_size", [8, 32])
def test_cpu_agrees_with_reference_for_other_tiles(tile_size, isa):
    f, expected, edges = expected_of((500, 1, 64, 48, 3), 0)
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, tile_size=tile_size, backend="cpu")
    hold(blended(f, "cpu", torch.float32), expected, f, edges)


@pytest.mark.parametrize("knobs", [{"per_tile_max": 5}, {"max_splats_per_pixel": 3}], ids=str)
def test_cpu_agrees_with_reference_under_caps(knobs, isa):
    """Both walk the CPU's own tiles, so that the caps strike the same Gaussians."""
    f = flat(500, 2, 33, 17)
    caps = dict(knobs)
    tile_caps = {"per_tile_max": caps.pop("per_tile_max", 0)}
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="cpu", **tile_caps)
    expected, edges = blended(f, "reference", torch.float64, **caps), beside_cutoffs(f)
    hold(blended(f, "cpu", torch.float32, **caps), expected, f, edges)


@pytest.mark.parametrize("tile_size", [8, 16, 32])
def test_cpu_finds_every_pixel_of_a_needle(tile_size, isa):
    """Long thin Gaussians at every angle: a pixel that is passed over would miss 1/255 or more."""
    g = torch.Generator().manual_seed(0)
    f = flat(60, 1, 64, 48, 1)
    angle, long, thin = torch.pi * torch.rand(60, generator=g), *(10 ** torch.rand(2, 60, generator=g))
    R = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(60, 2, 2)
    cov = R @ torch.diag_embed(torch.stack([(4 * long) ** 2, (0.1 * thin) ** 2], -1)) @ R.mT
    conics = torch.linalg.inv(cov.double())
    f.conics = torch.stack([conics[:, 0, 0], conics[:, 0, 1], conics[:, 1, 1]], -1)[None].float()
    f.means2d = (torch.rand(60, 2, generator=g) * torch.tensor([80.0, 60.0]) - 8)[None]
    f.opacities, f.depths = torch.rand(1, 60, generator=g) * 0.6 + 0.05, torch.rand(1, 60, generator=g) + 1
    reach = 2 * torch.log(255 * f.opacities[0])[:, None] * cov.diagonal(dim1=1, dim2=2)
    f.radii = reach.sqrt()[None]
    edge, _ = beside_cutoffs(f, band=1e-2)
    found = {}
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        f.tiles = tiles(f.means2d, f.radii, f.depths, 64, 48, tile_size=tile_size, backend=backend)
        found[backend] = blended(f, backend, dtype)
    assert 0.05 < found["reference"]["alpha"].mean() < 0.95 and edge.float().mean() < 0.2
    assert_close("alpha", found["cpu"]["alpha"], found["reference"]["alpha"], 1e-3, where=~edge)


@pytest.mark.parametrize("loss", ["image", "alpha"])
def test_cpu_agrees_with_reference_when_one_output_is_used(loss, isa):
    """The gradient of the other output never arrives, and that of a sum arrives with strides of 0."""
    f = flat(63)
    found = {}
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
        leaves = [getattr(f, name).to(dtype).requires_grad_() for name in GRADED[:-1]]
        image, alpha = blend(*leaves, f.tiles, f.width, f.height, backend=backend)
        (image if loss == "image" else alpha).sum().backward()
        found[backend] = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    assert found["cpu"][0].abs().max() > 0
    for name, actual, expected in zip(GRADED, found["cpu"], found["reference"], strict=False):
        assert_close(f"v_{name}", actual, expected, 1e-5)


def test_reference_gradients_by_finite_differences():
    """Four wide Gaussians on 6x5 pixels: every alpha lies between the cut-offs, no pixel stops."""
    g = torch.Generator().manual_seed(0)
    f = flat(4, 1, 6, 5, 2)
    f.means2d = 1 + 4 * torch.rand(1, 4, 2, generator=g)
    f.conics = torch.tensor([[[0.08, 0.02, 0.1], [0.05, -0.02, 0.06], [0.1, 0.0, 0.07], [0.06, 0.01, 0.05]]])
    f.opacities = torch.tensor([[0.9, 0.6, 0.3, 0.7]])
    f.radii, f.depths = torch.full((1, 4, 2), 20.0), torch.tensor([[2.0, 1, 4, 3]])
    edge, _ = beside_cutoffs(f)
    assert not edge.any()
    t = tiles(f.means2d, f.radii, f.depths, 6, 5, backend="reference")
    inputs = [getattr(f, name).double().requires_grad_() for name in GRADED]

    def function(*leaves):
        return blend(*leaves[:4], t, 6, 5, background=leaves[4], backend="reference")

    assert torch.autograd.gradcheck(function, inputs)


def test_reference_agrees_with_a_loop_over_pixels():
    f = flat(40, 1, 9, 7, 2, seed=3)
    f.opacities = f.opacities.sqrt()
    found = blended(f, "reference", torch.float64)
    for y in range(f.height):
        for x in range(f.width):
            through, color = 1.0, torch.zeros(2).double()
            for n in f.depths[0].argsort(stable=True).tolist():
                if f.radii[0, n, 0] == 0:
                    continue
                dx, dy = (torch.tensor([x + 0.5, y + 0.5]).double() - f.means2d[0, n].double()).tolist()
                a, b, c = f.conics[0, n].double().tolist()
                power = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
                alpha = min(ALPHA_MAX, f.opacities[0, n].item() * math.exp(-power))
                if alpha < ALPHA_MIN:
                    continue
                if through * (1 - alpha) <= T_MIN:
                    break
                color += through * alpha * f.colors[0, n].double()
                through *= 1 - alpha
            color += through * f.background[0].double()
            assert_close("image", found["image"][0, y, x], color, 1e-12)
            assert abs(found["alpha"][0, y, x, 0].item() - (1 - through)) < 1e-12


def test_pixels_stop_before_they_are_opaque(backend):
    """Four layers over one pixel, until the next would leave T_MIN or less."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(4, 1, 1, 1, 1)
    f.means2d, f.conics = torch.full((1, 4, 2), 0.5), torch.tensor([1.0, 0, 1]).expand(1, 4, 3).contiguous()
    f.radii, f.depths = torch.full((1, 4, 2), 3.0), torch.tensor([[1.0, 2, 3, 4]])
    f.tiles = tiles(f.means2d, f.radii, f.depths, 1, 1, backend=backend)
    for opacity, layers in ((0.98, 2), (0.95, 3), (0.5, 4)):
        f.opacities = torch.full((1, 4), opacity)
        expected = 1 - (1 - opacity) ** layers
        found = blended(f, backend, dtype)
        assert abs(found["alpha"].item() - expected) < 1e-5
        assert (found["v_colors"][0, :, 0] != 0).sum() == layers
    f.opacities = torch.tensor([[1.0, 0.5, 0.5, 0.5]])
    assert blended(f, backend, dtype)["v_opacities"][0, 0] == 0  # clamped


def test_permuting_gaussians_leaves_the_image(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(500, 2, 33, 17, tile_backend=backend)
    before = blended(f, backend, dtype)
    shuffle = torch.randperm(500, generator=torch.Generator().manual_seed(5))
    for name in ("means2d", "conics", "colors", "opacities", "radii", "depths"):
        setattr(f, name, getattr(f, name)[:, shuffle].contiguous())
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend)
    after = blended(f, backend, dtype)
    assert torch.equal(after["image"], before["image"]) and torch.equal(after["alpha"], before["alpha"])
    assert_close("v_means2d", after["v_means2d"], before["v_means2d"][:, shuffle], 1e-6)


def test_weights_sum_to_alpha_and_background_is_linear(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(500, tile_backend=backend)
    back = f.background[:, None, None]
    with_background = blended(f, backend, dtype)
    without = blended(f, backend, dtype, background=False)
    assert torch.equal(with_background["alpha"], without["alpha"])
    expected = without["image"] + (1 - without["alpha"]) * back
    assert_close("image", with_background["image"], expected, 1e-6)
    f.colors = torch.ones_like(f.colors)
    ones = blended(f, backend, dtype, background=False)
    assert_close("image", ones["image"], ones["alpha"].expand(-1, -1, -1, 3), 1e-6)


def test_channels_do_not_disturb_each_other(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(63, 2, 17, 33, 9, tile_backend=backend)
    nine, colors, background = blended(f, backend, dtype), f.colors, f.background
    for begin, end in ((0, 1), (1, 4), (4, 9)):
        f.colors, f.background = colors[..., begin:end].contiguous(), background[:, begin:end].contiguous()
        found = blended(f, backend, dtype)
        assert_close("image", found["image"], nine["image"][..., begin:end], 1e-6)
        assert_close("alpha", found["alpha"], nine["alpha"], 1e-6)


def test_cameras_do_not_disturb_each_other(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(63, 2, 17, 33, tile_backend=backend)
    both = blended(f, backend, dtype)
    for c in range(2):
        one = flat(63, 2, 17, 33)
        for name in (*GRADED, "radii", "depths"):
            setattr(one, name, getattr(f, name)[c : c + 1].contiguous())
        one.tiles = tiles(one.means2d, one.radii, one.depths, 17, 33, backend=backend)
        assert_close("image", blended(one, backend, dtype)["image"], both["image"][c : c + 1], 1e-6)


def test_knobs(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(500, tile_backend=backend)
    plain = blended(f, backend, dtype)
    fewer = blended(f, backend, dtype, max_splats_per_pixel=2)
    assert fewer["alpha"].sum() < 0.95 * plain["alpha"].sum()
    assert torch.equal(blended(f, backend, dtype, max_splats_per_pixel=500)["image"], plain["image"])
    one = blended(f, backend, dtype, max_splats_per_pixel=1, background=False)
    assert (
        one["alpha"].max() <= ALPHA_MAX and (one["image"] <= one["alpha"]).all()
    )  # one weight, colours <= 1
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, per_tile_max=4, backend=backend)
    assert blended(f, backend, dtype)["alpha"].sum() < 0.95 * plain["alpha"].sum()


def test_absgrad_sums_absolute_values_over_pixels(backend):
    """Its definition: the gradient of each pixel's loss alone, absolute, then summed."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(30, 2, 9, 7, 2, tile_backend=backend)
    absgrad = torch.full((2, 30, 2), 7.0, dtype=dtype)
    leaves = [getattr(f, name).to(dtype).requires_grad_() for name in GRADED[:4]]
    image, alpha = blend(*leaves, f.tiles, 9, 7, absgrad=absgrad, backend=backend)
    loss = ((image - 0.5) ** 2).sum(-1) + alpha[..., 0]
    expected = torch.zeros(2, 30, 2, dtype=dtype)
    for pixel in loss.flatten():
        expected += torch.autograd.grad(pixel, leaves[0], retain_graph=True)[0].abs()
    signed = torch.autograd.grad(loss.sum(), leaves[0], retain_graph=True)[0]
    assert_close("absgrad", absgrad, expected, 1e-5)
    assert (absgrad >= signed.abs() - 1e-6).all() and absgrad.sum() > 1.5 * signed.abs().sum()
    torch.autograd.grad(loss.sum(), leaves[0])
    assert_close("absgrad, once more", absgrad, expected, 1e-5)


def test_cpu_says_what_it_cannot_do():
    f = flat(30, D=9, tile_backend="cpu")
    inputs = [f.means2d, f.conics, f.colors, f.opacities]
    with pytest.raises(ValueError, match="absgrad: .* at most 8 channels, got 9"):
        blend(*inputs, f.tiles, f.width, f.height, absgrad=torch.zeros(1, 30, 2))
    other = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend="reference")
    with pytest.raises(ValueError, match="tiles: expected lists of backend 'cpu'"):
        blend(*inputs, other, f.width, f.height)


def test_no_gradient_is_asked_for(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    f = flat(63, tile_backend=backend)
    inputs = [getattr(f, name).to(dtype) for name in GRADED[:4]]
    image, alpha = blend(*inputs, f.tiles, f.width, f.height, backend=backend)
    assert not image.requires_grad and not alpha.requires_grad
    inputs[2].requires_grad_()
    image, _ = blend(*inputs, f.tiles, f.width, f.height, backend=backend)
    image.sum().backward()
    assert inputs[2].grad.abs().sum() > 0
