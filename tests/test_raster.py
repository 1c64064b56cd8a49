import pytest
import tiny
import torch

from splatexp.raster import CPU, Reference


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
    filtered = Reference(prefilter=True)(splats, camera, sh_degree=0)
    assert filtered.image.sum() < 0.9 * plain.image.sum()


def test_attribution_adds_up_to_the_alpha():
    splats, camera = tiny.splats(), tiny.cameras(1)
    raster = Reference()
    render = raster(splats, camera, sh_degree=0)
    share = raster.attribute(render, torch.ones(1, 16, 20, 1), 0.5)
    assert share.weight_sum.sum().item() == pytest.approx(render.alpha.sum().item(), rel=1e-4)
    torch.testing.assert_close(share.weighted[..., 0], share.weight_sum)


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"tile_size": 12}, "tile_size"), ({"near": 5.0, "far": 1.0}, "near"), ({"eps2d": -1.0}, "eps2d")],
)
def test_knobs_are_held(settings, line):
    with pytest.raises(ValueError, match=line):
        CPU(**settings)


@pytest.mark.parametrize("settings", [{}, {"prefilter": True, "tile_size": 8}, {"max_splats_per_pixel": 5}])
def test_cpu_draws_what_the_reference_draws(settings):
    pytest.importorskip("splatexp_kernels._cpu", exc_type=ImportError, reason="the C++ kernels are not built")
    camera, grads, renders = tiny.cameras(2), [], []
    for kind in (CPU, Reference):
        splats = tiny.splats(sh_degree=2)
        with (
            torch.no_grad()
        ):  # round Gaussians have no gradient for their quaternion, but its rounding errors
            splats.log_scales += torch.linspace(-0.5, 0.5, 3)
            splats.quats += torch.linspace(-0.4, 0.4, 240).reshape(60, 4).sin()
        render = kind(**settings)(splats, camera, sh_degree=2, absgrad=True, depth=True)
        (render.image * torch.linspace(-1, 1, 20)[:, None]).sum().backward()
        renders.append(render)
        grads.append([*(param.grad for param in splats.params.values()), render.means2d.grad, render.absgrad])
    for name in ("image", "alpha", "depth", "radii"):  # float32 against float32, and no cut-off is near
        torch.testing.assert_close(getattr(renders[0], name), getattr(renders[1], name), atol=1e-4, rtol=1e-4)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3 * other.abs().max().item(), rtol=1e-3)
