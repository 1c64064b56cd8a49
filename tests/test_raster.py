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
