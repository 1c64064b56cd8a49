"""raster=triton draws and trains as raster=cpu does: under Triton's interpreter where there is no GPU."""

import numpy
import pytest
import torch
from support import tiny
from support.training import fit

from splatexp.densify import NoDensification
from splatexp.raster.backends import CPU, Triton
from splatexp.schedules.schedule import Schedule
from splatexp_kernels import dispatch

pytest.importorskip("splatexp_kernels._cpu", exc_type=ImportError, reason="the C++ kernels are not built")
if not dispatch.interpreted() and dispatch.gpu_missing():
    pytest.skip(dispatch.gpu_missing(), allow_module_level=True)


@pytest.fixture(autouse=True)
def silent_division():
    """The interpreter is numpy, which warns of lanes whose results a kernel masks out; a GPU does not."""
    with numpy.errstate(all="ignore"):
        yield


def shaped():
    """Twenty Gaussians, none round."""
    splats = tiny.splats(20, sh_degree=1)
    with torch.no_grad():
        splats.log_scales += torch.linspace(-0.5, 0.5, 3)
        splats.quats += torch.linspace(-0.4, 0.4, 80).reshape(20, 4).sin()
    return splats


def close(name, found, expected):
    """float32 against float32, with sums in another order; no cut-off is near."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        found.detach().cpu(),
        expected.detach(),
        atol=1e-4 * scale + 1e-7,
        rtol=1e-3,
        msg=lambda m: f"{name}: {m}",
    )


def drawn(raster, **knobs):
    """A render with the gradients of everything."""
    splats, camera = shaped().to(raster.device), tiny.cameras(1).to(raster.device)
    camera.viewmats.requires_grad_()
    camera.Ks.requires_grad_()
    behind = torch.tensor([[0.1, 0.5, 0.9]], device=raster.device)
    render = raster(splats, camera, sh_degree=1, background=behind, absgrad=True, depth=True, **knobs)
    weights = torch.linspace(-1, 1, 20, device=raster.device)[:, None]
    ((render.image * weights).sum() + 0.1 * (render.depth * weights).sum()).backward()
    grads = {name: leaf.grad for name, leaf in splats.params.items()}
    grads |= {"viewmats": camera.viewmats.grad, "Ks": camera.Ks.grad, "means2d.grad": render.means2d.grad}
    return render, grads | {"absgrad": render.absgrad}


@pytest.mark.parametrize("knobs", [{}, {"antialiased": True, "tile_size": 8, "max_splats_per_pixel": 3}])
def test_it_draws_what_the_cpu_draws(knobs):
    (found, grads), (expected, exact) = drawn(Triton(**knobs)), drawn(CPU(**knobs))
    assert torch.equal(found.visible.cpu(), expected.visible) and found.visible.any()
    for name in ("image", "alpha", "depth", "means2d", "conics", "radii", "blended_opacities", "colors"):
        close(name, getattr(found, name), getattr(expected, name))
    for name, grad in exact.items():
        assert grad.any(), name
        close(name, grads[name], grad)


def test_shares_in_pixels_are_those_of_the_cpu():
    maps, target, shares = torch.rand(1, 16, 20, 2), torch.rand(1, 16, 20, 3), []
    for raster in (Triton(), CPU()):
        splats, camera = shaped().to(raster.device), tiny.cameras(1).to(raster.device)
        render = raster(splats, camera, sh_degree=1)
        there = maps.to(raster.device), 0.5, target.to(raster.device)
        shares.append(raster.attribute(render, *there, want=raster.attribution_fields)._asdict())
    assert all(value is not None for value in shares[0].values())
    for name, exact in shares[1].items():
        close(name, shares[0][name].float(), exact.float())


def test_two_steps_of_training_are_those_of_the_cpu():
    """Loss with SSIM, gradients, fused Adam and the moments it leaves."""
    scene, ends = tiny.scene(), []
    for raster in (Triton(), CPU()):
        splats = shaped().to(raster.device)
        result = fit(
            splats,
            scene,
            raster=raster,
            schedule=Schedule(sh_degree_interval=1),
            densify=NoDensification(),
            steps=2,
        )
        ends.append((result.loss, splats))
    (loss, found), (exact, expected) = ends
    assert loss == pytest.approx(exact, rel=1e-4)
    for name in expected.params:
        close(name, getattr(found, name), getattr(expected, name))
        close(f"exp_avg.{name}", found.exp_avg[name], expected.exp_avg[name])
        assert not torch.equal(getattr(expected, name), getattr(shaped(), name)), name
