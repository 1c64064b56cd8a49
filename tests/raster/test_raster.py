import pytest
import torch
from support import tiny

from splatexp.raster.backends import CPU, Reference
from splatexp.raster.precision import PRECISIONS, round_trip
from splatexp.raster.rasterizer import attribute_by_autograd
from splatexp_kernels.blend import DEFAULT_FIELDS, LEAVE_ONE_OUT_FIELDS, blend


def test_depth_alpha_and_background_agree():
    splats, camera = tiny.splats(), tiny.cameras(2)
    red = torch.tensor([[1.0, 0.0, 0.0]]).repeat(2, 1)
    black = Reference()(splats, camera, sh_degree=1, depth=True)
    lit = Reference()(splats, camera, sh_degree=1, background=red, depth=True)
    assert black.image.shape == (2, 16, 20, 3) and black.depth.shape == black.alpha.shape == (2, 16, 20, 1)
    behind = (1 - black.alpha) * red[:, None, None]
    torch.testing.assert_close(lit.image, black.image + behind, atol=1e-6, rtol=0)
    covered = black.alpha > 0.5
    assert (black.depth[covered] > 2).all() and (black.depth[covered] < 6.5).all()
    torch.testing.assert_close(lit.depth, black.depth)


def test_gradients_reach_every_parameter_and_the_screen():
    splats = tiny.splats()
    render = Reference()(splats, tiny.cameras(1), sh_degree=1, absgrad=True)
    (render.image * torch.linspace(-1, 1, 20)[:, None]).sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in splats.params.values())
    assert (render.absgrad >= render.means2d.grad.abs() - 1e-5).all() and render.absgrad.any()


def test_degree_zero_leaves_the_other_bands_alone():
    splats = tiny.splats()
    Reference()(splats, tiny.cameras(1), sh_degree=0).image.sum().backward()
    assert splats.shN.grad is None and splats.sh0.grad is not None


def test_prefilter_dims():
    splats, camera = tiny.splats(init_scale=0.05), tiny.cameras(1)
    plain = Reference()(splats, camera, sh_degree=0)
    filtered = Reference(antialiased=True)(splats, camera, sh_degree=0)
    assert filtered.image.sum() < 0.9 * plain.image.sum()


def test_attribution_adds_up_to_the_alpha():
    splats, camera = tiny.splats(), tiny.cameras(1)
    raster = Reference()
    render = raster(splats, camera, sh_degree=0)
    share = raster.attribute(render, torch.ones(1, 16, 20, 1), 0.5)
    assert share.weight_sum.sum().item() == pytest.approx(render.alpha.sum().item(), rel=1e-4)
    torch.testing.assert_close(share.weighted[..., 0], share.weight_sum)


def test_attribution_gives_what_is_asked_for():
    splats, camera, maps = tiny.splats(), tiny.cameras(2), torch.rand(2, 16, 20, 2)
    raster, target = Reference(max_splats_per_pixel=4), torch.rand(2, 16, 20, 3)
    render = raster(splats, camera, sh_degree=1, background=torch.rand(2, 3), depth=True)
    fields = {"want": {"removal", "dominant"}}
    asked = [{}, {"target": target}, {"target": target, **fields}, {"want": {"covered"}}]
    more = ((), LEAVE_ONE_OUT_FIELDS, ("removal", "dominant"), ("covered",))
    given = [{*DEFAULT_FIELDS, *names} for names in more]
    for question, names in zip(asked, given, strict=True):
        shares = raster.attribute(render, maps, 0.5, **question)._asdict()
        assert (
            {name for name, tensor in shares.items() if tensor is not None}
            == names
            <= raster.attribution_fields
        )
    with pytest.raises(ValueError, match="target: expected a tensor"):
        raster.attribute(render, maps, **fields)


def test_removal_is_the_loss_of_leaving_a_gaussian_out():
    splats, camera, raster = tiny.splats(init_opacity=0.1), tiny.cameras(1), Reference()
    target, background = torch.rand(1, 16, 20, 3), torch.tensor([[0.2, 0.5, 0.9]])

    def drawn(**more):
        return raster(splats, camera, sh_degree=1, background=background, **more)

    whole = drawn()
    shares = raster.attribute(whole, target[..., :0], target=target)
    for row in (0, 7, 59):
        without = drawn(dropout=(torch.arange(60) != row).float())
        change = (without.image - whole.image).square().sum()
        loss = (without.image - target).square().sum() - (whole.image - target).square().sum()
        torch.testing.assert_close(shares.removal[0, row], change, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shares.removal_loss[0, row], loss, atol=1e-4, rtol=1e-4)


def test_autograd_finds_the_linear_shares():
    splats, camera, raster = tiny.splats(), tiny.cameras(2), Reference()
    render, maps = raster(splats, camera, sh_degree=1), torch.rand(2, 16, 20, 3)

    def draw(features):
        geometry = (
            render.means2d.detach(),
            render.conics.detach(),
            features,
            render.blended_opacities.detach(),
        )
        return blend(*geometry, render.tiles, 20, 16, backend="reference")[0]

    with torch.no_grad():  # as density control asks
        found = attribute_by_autograd(draw, len(splats), maps)
    exact = raster.attribute(render, maps)
    torch.testing.assert_close(found.weight_sum, exact.weight_sum)
    torch.testing.assert_close(found.weighted, exact.weighted)
    assert found.pixels is None and found.weight_max is None and splats.means.grad is None
    torch.testing.assert_close(attribute_by_autograd(draw, 60, maps[..., :0]).weight_sum, exact.weight_sum)


def test_dropout_factors_the_opacities():
    splats, camera, raster = tiny.splats(), tiny.cameras(1), Reference(antialiased=True)
    plain = raster(splats, camera, sh_degree=1)
    factors = torch.where(torch.arange(60) % 3 == 0, 0.0, 1.5)
    render = raster(splats, camera, sh_degree=1, dropout=factors)
    assert torch.equal(render.opacities, plain.opacities)  # the parameters stay as they are
    assert not render.visible[0, ::3].any() and not render.blended_opacities[0, ::3].any()
    seen = render.visible[0] & plain.visible[0]
    ratio = (render.blended_opacities / plain.blended_opacities)[0, seen]
    expected = (1.5 * plain.opacities[seen]).clamp_max(1) / plain.opacities[seen]
    torch.testing.assert_close(ratio, expected)
    ones = raster(splats, camera, sh_degree=1, dropout=torch.ones(60))
    assert torch.equal(ones.image, plain.image)
    with pytest.raises(ValueError, match=r"dropout: expected \[60\], got \(59,\)"):
        raster(splats, camera, sh_degree=1, dropout=torch.ones(59))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"tile_size": 12}, "tile_size"),
        ({"near": 5.0, "far": 1.0}, "near"),
        ({"eps2d": -1.0}, "eps2d"),
        ({"amp": "fp8"}, "raster.amp: expected one of none, bf16, fp16, got 'fp8'"),
    ],
)
def test_knobs_are_held(settings, line):
    with pytest.raises(ValueError, match=line):
        CPU(**settings)


@pytest.mark.parametrize("settings", [{}, {"antialiased": True, "tile_size": 8}, {"max_splats_per_pixel": 5}])
def test_cpu_draws_what_the_reference_draws(settings):
    pytest.importorskip("splatexp_kernels._cpu", exc_type=ImportError, reason="the C++ kernels are not built")
    grads, renders, cameras = [], [], []
    for kind in (CPU, Reference):
        splats = tiny.splats(sh_degree=2)
        with (
            torch.no_grad()
        ):  # round Gaussians have no gradient for their quaternion, but its rounding errors
            splats.log_scales += torch.linspace(-0.5, 0.5, 3)
            splats.quats += torch.linspace(-0.4, 0.4, 240).reshape(60, 4).sin()
        camera = tiny.cameras(2)
        matrices = camera.viewmats.requires_grad_(), camera.Ks.requires_grad_()
        render = kind(**settings)(splats, camera, sh_degree=2, absgrad=True, depth=True)
        (render.image * torch.linspace(-1, 1, 20)[:, None]).sum().backward()
        renders.append(render)
        cameras.append([matrix.grad for matrix in matrices])
        assert all(grad.any() for grad in cameras[-1])
        grads.append([*(param.grad for param in splats.params.values()), render.means2d.grad, render.absgrad])
    for name in ("image", "alpha", "depth", "radii"):  # float32 against float32, and no cut-off is near
        torch.testing.assert_close(getattr(renders[0], name), getattr(renders[1], name), atol=1e-4, rtol=1e-4)
    for one, other in zip(grads[0] + cameras[0], grads[1] + cameras[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * other.abs().max().item(), rtol=1e-3)


HALVES = [("bf16", 2**-8), ("fp16", 2**-11)]  # what rounding to nearest costs at most


def gradient(amp, weights):
    """What reaches the colours when `weights` come back."""
    colors = torch.ones_like(weights, requires_grad=True)
    round_trip(colors, amp).backward(weights)
    return colors.grad


@pytest.mark.parametrize(("amp", "share"), HALVES)
def test_lower_precision_rounds_as_torch_does(amp, share):
    colors = torch.rand(2, 50, 3) * 4
    assert torch.equal(round_trip(colors, amp), colors.to(PRECISIONS[amp]).float())
    for size in (1e-37, 1e-30, 1e-12, 1.0, 1e12, 3e38):  # to the ends of float32
        weights = (torch.rand(2, 50, 3) + 1) * (size / 2)
        weights[0, 0] = torch.tensor([size, -size, 0.0])
        found = gradient(amp, weights)
        torch.testing.assert_close(found, weights, rtol=share, atol=0)
        assert found[0, 0, 2] == 0 and found.unique().numel() < weights.unique().numel()
    assert not gradient(amp, torch.zeros(1, 4, 3)).any() and not gradient(amp, torch.ones(1, 0, 3)).numel()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_powers_of_two_come_back_as_they_are(amp):
    for exponent in range(-126, 128):  # no scale adds an error of its own
        weights = torch.tensor([[[2.0**exponent, -(2.0**exponent), 0.0]]])
        assert torch.equal(gradient(amp, weights), weights)
    small = torch.tensor([[[1.0, 1e-6, 1e-8]]])  # beside a large one: fp16 has room for nine digits
    torch.testing.assert_close(gradient(amp, small), small, rtol=2**-7, atol=0)
    broken = gradient(amp, torch.tensor([[[float("nan"), 1.0, 2.0]]]))
    assert broken[0, 0, 0].isnan()  # it is not hidden


@pytest.mark.parametrize(("amp", "share"), HALVES)
def test_colours_alone_are_lowered(amp, share):
    camera, target, found = tiny.cameras(2), torch.linspace(-1, 1, 20)[:, None], {}
    for name in ("none", amp):
        splats = tiny.splats()
        render = Reference(amp=name)(splats, camera, sh_degree=1, depth=True)
        (render.image * target).sum().backward()
        found[name] = render, splats
    (plain, exact), (half, rounded) = found.values()
    for name in ("alpha", "depth", "means2d", "conics", "blended_opacities"):
        assert torch.equal(getattr(half, name), getattr(plain, name))
    assert torch.equal(half.colors, plain.colors.to(PRECISIONS[amp]).float())
    torch.testing.assert_close(half.image, plain.image, rtol=share, atol=1e-6)
    assert not torch.equal(half.image, plain.image)
    large = exact.sh0.grad.abs().max().item()
    torch.testing.assert_close(rounded.sh0.grad, exact.sh0.grad, rtol=share, atol=share * large)
    assert not torch.equal(rounded.sh0.grad, exact.sh0.grad)


def test_full_precision_is_the_tensor_itself():
    colors = torch.rand(1, 5, 3, requires_grad=True)
    assert round_trip(colors, "none") is colors and CPU().amp == "none"
