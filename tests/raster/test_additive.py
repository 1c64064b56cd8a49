"""Plain sums instead of compositing, and the loss and penalties that its method trained with."""

import pytest
import torch
from support import tiny
from train import test_loop

from splatexp.config.build import build, compose
from splatexp.densify import NoDensification
from splatexp.losses.photometric import Loss
from splatexp.losses.regularizers import BoundingBox, Opacity, ScaleBounds
from splatexp.raster.additive import Additive
from splatexp.raster.backends import CPU
from splatexp_kernels.project import project


def summed(splats, camera, gain):
    """The picture [H,W,3] by its definition, in float64."""
    scales, opacities = splats.render_params()
    means2d, conics, _, radii, _ = project(
        splats.means, splats.quats, scales, opacities, camera.viewmats, camera.Ks, camera.width, camera.height
    )
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y], -1).double()
    away = pixels[:, :, None] - means2d[0].double()
    a, b, c = conics[0].double().unbind(-1)
    power = 0.5 * (a * away[..., 0] ** 2 + c * away[..., 1] ** 2) + b * away[..., 0] * away[..., 1]
    weights = opacities.double() * torch.exp(-power)
    weights = torch.where((weights >= 1 / 255) & (radii[0, :, 0] > 0), weights, 0)
    colors = (0.5 + 0.28209479177387814 * splats.sh0[:, 0]).clamp_min(0).double()
    return gain * weights @ colors, weights.sum(-1)


def test_it_is_the_sum_whatever_the_order():
    splats, camera = tiny.splats(), tiny.cameras()[0]
    with torch.no_grad():
        image, total = summed(splats, camera, 0.3)
        render = Additive(gain=0.3)(splats, camera, sh_degree=0, depth=True)
        assert torch.allclose(render.image[0].double(), image, atol=1e-4)
        assert torch.allclose(render.alpha[0, ..., 0].double(), total.clamp_max(1), atol=1e-4)
        shuffled = tiny.splats()
        order = torch.randperm(len(shuffled), generator=torch.Generator().manual_seed(1))
        for name in ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN"):
            getattr(shuffled, name).copy_(getattr(splats, name)[order])
        again = Additive(gain=0.3)(shuffled, camera, sh_degree=0)
        assert torch.allclose(render.image, again.image, atol=1e-6)
        depth = CPU()(splats, camera, sh_degree=0, depth=True).depth
        inside = render.alpha > 0.5
        assert (render.depth - depth)[inside].abs().max() < 2, "in world units, of a cube that is 2 wide"


def test_it_trains_with_the_loss_of_its_method():
    scene, splats = tiny.scene(), tiny.splats()
    before = splats.means.detach().clone()
    penalties = {
        "opacity": Opacity(power=2, target=0.8),
        "scale_bounds": ScaleBounds(),
        "bounding_box": BoundingBox(),
    }
    parts = {
        "raster": Additive(),
        "loss": Loss(0, 0, 1),
        "densify": NoDensification(),
        "regularizer": penalties,
    }
    first = test_loop.fit(splats, scene, 1, **parts).loss
    assert test_loop.fit(splats, scene, 60, start=1, **parts).loss < 0.7 * first
    assert not torch.equal(splats.means, before)


def test_what_a_sum_has_not_is_refused():
    with pytest.raises(ValueError, match=r"raster\.max_splats_per_pixel: expected 0 with raster=additive"):
        Additive(max_splats_per_pixel=3)
    with pytest.raises(
        ValueError, match="raster: expected one that computes absgrad, which densify reads, got additive"
    ):
        Additive()(tiny.splats(), tiny.cameras()[0], sh_degree=0, absgrad=True)
    with pytest.raises(ValueError, match="expected scores that raster=additive can gather"):
        build(compose(["raster=additive", "densify=budgeted", "preset=[]"]))
    render = Additive()(tiny.splats(), tiny.cameras()[0], sh_degree=0)
    with pytest.raises(NotImplementedError, match="raster: expected one with attribution, got additive"):
        Additive().attribute(render, torch.ones(1, 16, 20, 1))


def test_mean_squares_and_masks():
    image, target = torch.rand(1, 16, 16, 3), torch.rand(1, 16, 16, 3)
    terms = Loss(0, 0, 0.5)(image, target, backend="reference")
    assert list(terms) == ["l2"] and terms["l2"] == 0.5 * (image - target).square().mean()
    mask = (torch.rand(1, 16, 16, 1) > 0.5).float()
    inside = (image - target).square()[mask.expand_as(image) > 0].mean()
    assert Loss(0, 0, 0.5)(image, target, mask, backend="reference")["l2"] == pytest.approx(
        0.5 * inside.item()
    )


@torch.no_grad()
def test_the_penalties_are_what_they_say():
    splats = tiny.splats()
    render = CPU()(splats, tiny.cameras()[0], sh_degree=0)
    opacities, scales, means = render.opacities.detach(), render.scales.detach(), splats.means.detach()
    found = Opacity(weight=2.0, power=2, target=0.8)(render, splats, 0, 1)
    assert float(found) == pytest.approx(2 * float((opacities - 0.8).square().mean()), rel=1e-5)
    shares = scales / splats.extent
    expected = (1 - shares / 0.05).clamp_min(0).square() + (shares / 0.1 - 1).clamp_min(0).square()
    found = ScaleBounds(weight=1.0, low=0.05, high=0.1)(render, splats, 0, 1)
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-5) and found > 0
    center = torch.tensor([0.5, 0.0, 0.0])
    expected = ((means - center).abs() / (0.2 * splats.extent) - 1).clamp_min(0).square().mean()
    found = BoundingBox(weight=1.0, half_size=0.2, center=center.tolist())(render, splats, 0, 1)
    assert float(found) == pytest.approx(float(expected), rel=1e-5) and found > 0
    with pytest.raises(
        ValueError, match=r"regularizer\.bounding_box\.center: expected three numbers, got \[1\.0\]"
    ):
        BoundingBox(center=[1.0])
    with pytest.raises(
        ValueError, match=r"regularizer\.scale_bounds\.high: expected at least 0\.2, got 0\.1"
    ):
        ScaleBounds(low=0.2, high=0.1)


def test_a_batch_is_the_mean_of_its_views():
    scene = tiny.scene()
    one, both = tiny.splats(), tiny.splats()
    grads = {}
    from splatexp.train.optimizer import Adam

    still = Adam(means=0, quats=0, log_scales=0, opacity_logits=0, sh0=0, shN=0)

    class Keeping(NoDensification):
        def observe(self, step, splats, render, camera):
            grads.setdefault(id(splats), []).append((splats.sh0.grad.clone(), render.means2d.grad.clone()))

    for splats, batch, steps in ((one, 1, 2), (both, 2, 1)):
        test_loop.fit(splats, scene, steps, batch=batch, optimizer=still, densify=Keeping(), raster=CPU())
    (first, at), (second, _) = grads[id(one)]
    (sum_, at_both), (_, _) = grads[id(both)]
    assert torch.allclose(sum_, (first + second) / 2, atol=1e-7)
    assert torch.allclose(at, at_both, atol=1e-7), "density control sees the loss of each view"
