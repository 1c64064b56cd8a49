"""raster=gsplat against a stand-in of gsplat made of the reference kernels, as gsplat itself needs CUDA."""

from types import ModuleType, SimpleNamespace

import pytest
import torch
from support import gsplat_stand_in, tiny

from splatexp.densify import Rule, RuleStrategy
from splatexp.raster import gsplat_build
from splatexp.raster.backends import Auto, Reference
from splatexp.raster.gsplat import UNSUPPORTED, Gsplat


@pytest.fixture
def calls(monkeypatch):
    """What is asked of the stand-in; it works on the CPU."""
    monkeypatch.setattr(Gsplat, "device", torch.device("cpu"))
    return gsplat_stand_in.stand_in(monkeypatch)


def shaped(sh_degree=2):
    """Gaussians of all shapes, some of them behind the cameras."""
    splats = tiny.splats(sh_degree=sh_degree)
    with torch.no_grad():
        splats.log_scales += torch.linspace(-0.5, 0.5, 3)
        splats.quats += torch.linspace(-0.4, 0.4, 240).reshape(60, 4).sin()
        splats.shN += torch.linspace(-0.3, 0.3, splats.shN.numel()).reshape(splats.shN.shape).sin()
        splats.means[::9] *= 6
    return splats


def twist(pose):
    """The matrices [C,4,4] whose exponential is a rigid motion: rotation, then translation, of pose [C,6]."""
    x, y, z, *shift = pose.unbind(1)
    o = torch.zeros_like(x)
    rows = [(o, -z, y, shift[0]), (z, o, -x, shift[1]), (-y, x, o, shift[2]), (o, o, o, o)]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def drawn(raster, **asked):
    """A render of two views, with the gradients of everything."""
    splats, camera = shaped(), tiny.cameras(2)
    pose = torch.zeros(2, 6, requires_grad=True)  # off the rigid motions the gradients need not agree
    camera.viewmats = torch.matrix_exp(twist(pose)) @ camera.viewmats
    camera.Ks.requires_grad_()
    render = raster(splats, camera, **{"sh_degree": 2, **asked})
    (render.image * torch.linspace(-1, 1, 20)[:, None]).sum().backward()
    grads = {name: leaf.grad for name, leaf in splats.params.items()}
    grads |= {"pose": pose.grad, "Ks": camera.Ks.grad, "means2d": render.means2d.grad}
    return splats, render, grads


KNOBS = {"near": 3.2, "far": 5.0, "eps2d": 0.5, "tile_size": 8, "cull_radius_px": 1.7}


@pytest.mark.parametrize(
    ("knobs", "asked"),
    [
        ({}, {}),
        (KNOBS, {"background": torch.tensor([[0.2, 0.4, 0.6], [1, 0, 0]]), "sh_degree": 1}),
        ({"antialiased": True}, {"depth": True, "absgrad": True, "background": torch.ones(2, 3)}),
        ({}, {"sh_degree": 0, "dropout": (torch.arange(60) % 3 > 0) * 1.5, "absgrad": True}),
    ],
)
def test_it_draws_what_the_reference_draws(calls, knobs, asked):
    splats, found, grads = drawn(Gsplat(**knobs), **asked)
    _, expected, exact = drawn(Reference(**knobs), **asked)
    assert len(calls) == 1 and calls[0].sparse_grad is False and calls[0].distributed is False
    assert torch.equal(found.visible, expected.visible) and not found.visible.all()
    for name in ("image", "alpha", "depth", "conics", "scales", "opacities", "background"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one is other is None or torch.allclose(one, other, atol=1e-5), name
    torch.testing.assert_close(
        found.blended_opacities[found.visible], expected.blended_opacities[found.visible]
    )
    assert found.radii.dtype == torch.float32 and not found.radii[~found.visible].any()
    assert (found.radii - expected.radii).abs().max() < 1
    for name, grad in exact.items():
        if grad is None:
            assert grads[name] is None, name
        else:
            torch.testing.assert_close(grads[name], grad, atol=1e-4 * grad.abs().max().item(), rtol=1e-3)
    assert (grads["shN"] is None) == (asked.get("sh_degree") == 0) and grads["Ks"].any()
    if asked.get("absgrad"):
        torch.testing.assert_close(found.absgrad, expected.absgrad, atol=1e-3, rtol=1e-3)
        assert found.absgrad.any()
    else:
        assert found.absgrad is None


def test_nothing_is_kept_of_a_picture_without_gradients(calls):
    with torch.no_grad():
        render = Gsplat()(tiny.splats(), tiny.cameras(1), sh_degree=1, absgrad=True)
    assert not render.means2d.requires_grad and not render.absgrad.any()


@pytest.mark.parametrize("knobs", [{}, {"tile_size": 8, "antialiased": True}])
def test_shares_in_pixels_are_those_of_the_cpu(calls, knobs):
    maps, camera = torch.rand(2, 16, 20, 2), tiny.cameras(2)
    found, exact = [
        raster.attribute(raster(shaped(), camera, sh_degree=2), maps)
        for raster in (Gsplat(**knobs), Reference(**knobs))
    ]
    torch.testing.assert_close(found.weight_sum, exact.weight_sum)
    torch.testing.assert_close(found.weighted, exact.weighted)
    given = {name for name, value in found._asdict().items() if value is not None}
    assert given == Gsplat.attribution_fields


def test_density_control_runs_on_what_it_offers(calls):
    from splatexp.densify.context import Context
    from splatexp.densify.survey import Survey

    names = {"error.sum", "weight.sum", "surveyed"}
    seen = []
    for raster in (Gsplat(), Reference()):
        splats = tiny.splats()
        Survey(views=3)(names, splats, 7, Context(steps=100, scene=tiny.scene(), raster=raster))
        seen.append(splats.stats)
    for name in names:
        torch.testing.assert_close(seen[0][name], seen[1][name])


def test_what_it_lacks_is_refused():
    for name, rest in UNSUPPORTED.items():
        with pytest.raises(ValueError, match=f"raster.{name}: expected {rest} with raster=gsplat") as caught:
            Gsplat(**{name: "bf16" if name == "amp" else 5})
        assert "\n" not in str(caught.value)
    assert RuleStrategy(grow=Rule(score="peak_max")).attribution_fields - Gsplat.attribution_fields


def cuda(monkeypatch, there=True):
    """As on a machine with a GPU, as far as files and versions go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def test_why_it_cannot_run(monkeypatch):
    from splatexp_kernels import dispatch

    cuda(monkeypatch, False)
    assert Gsplat.unavailable_reason() == dispatch.gpu_missing()
    cuda(monkeypatch)
    real = gsplat_build.util.find_spec
    monkeypatch.setattr(gsplat_build.util, "find_spec", lambda name: None)
    assert Gsplat.unavailable_reason().startswith("gsplat is not installed; pip install 'gsplat")
    monkeypatch.setattr(gsplat_build.util, "find_spec", real)
    monkeypatch.setattr(gsplat_build, "find_compiled", lambda: "")
    monkeypatch.setattr(gsplat_build, "find_nvcc", lambda: "")
    assert "there is no nvcc" in Gsplat.unavailable_reason() and "; install" in Gsplat.unavailable_reason()
    monkeypatch.setattr(gsplat_build, "find_nvcc", lambda: "/usr/bin/nvcc")
    assert not Gsplat.unavailable_reason() and "raster=gsplat compiles it" in Gsplat.unavailable_reason(
        can_build=False
    )
    monkeypatch.setattr(gsplat_build, "find_compiled", lambda: "gsplat_cuda.so")
    assert not Gsplat.unavailable_reason(can_build=False)


def test_the_extension_is_found_where_torch_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root", lambda: str(tmp_path))
    assert not gsplat_build.find_compiled()
    file = tmp_path / "py311_cu130" / "gsplat_cuda" / "gsplat_cuda.so"
    file.parent.mkdir(parents=True)
    file.touch()
    assert gsplat_build.find_compiled() == str(file)


NINJA = "Ninja is required to load C++ extensions (pip install ninja to get it)"
PAGES = "Error building extension 'gsplat_cuda': [1/27] /usr/local/cuda/bin/nvcc -c x.cu\nFAILED: x.o\n"


@pytest.mark.parametrize(
    ("error", "line", "helps"),
    [
        (RuntimeError(NINJA), "Ninja is required", "pip install ninja"),
        (RuntimeError(PAGES + "x.h: error: -- unsupported GNU version! gcc"), "x.h: error", "-ccbin"),
        (RuntimeError(PAGES + "nvcc fatal : Unsupported gpu architecture"), "nvcc fatal", "newer"),
        (RuntimeError("The CUDA version (%s) mismatches the version", "11.5"), "11.5", "nvcc of"),
        (RuntimeError(PAGES + "a.h:3: fatal error: glm/glm.hpp: No such file"), "glm.hpp", "--force"),
        (RuntimeError(PAGES + "c++: fatal error: Killed signal terminated program"), "Killed", "MAX_JOBS"),
        (RuntimeError(PAGES + "x.cu(3): error: no suitable conversion"), "x.cu(3): error", "VERBOSE=1"),
        (ImportError("csrc.so: undefined symbol: _ZN3c10"), "undefined symbol", "remove"),
        (ValueError(), "ValueError", "VERBOSE=1"),
    ],
)  # fmt: skip
def test_a_failed_compilation_is_one_line_with_a_remedy(monkeypatch, error, line, helps):
    def fails(name):
        raise error

    cuda(monkeypatch)
    monkeypatch.setattr(gsplat_build, "find_compiled", lambda: "/tmp/gsplat_cuda/gsplat_cuda.so")
    monkeypatch.setattr(gsplat_build, "import_module", fails)
    with pytest.raises(ValueError, match="raster: gsplat cannot run here: gsplat's CUDA extension") as caught:
        Gsplat().ensure_available()
    said = str(caught.value)
    assert line in said and helps in said and "\n" not in said and "{" not in said and len(said) < 500


def test_no_toolkit_and_a_working_extension(monkeypatch):
    cuda(monkeypatch)
    monkeypatch.setattr(gsplat_build, "unavailable_reason", lambda can_build=True: "")
    backend = ModuleType("gsplat.cuda._backend")
    backend._C = None
    monkeypatch.setattr(gsplat_build, "import_module", lambda name: backend)
    with pytest.raises(ValueError, match="gsplat found no CUDA toolkit"):
        Gsplat().ensure_available()
    backend._C = SimpleNamespace()
    monkeypatch.setattr("splatexp_kernels.dispatch.gpu_missing", lambda: "Triton cannot be imported (x); pip")
    raster = Gsplat()
    raster.ensure_available()
    assert raster.backend == "reference" and "Triton cannot be imported" in raster.selection_note
    monkeypatch.setattr("splatexp_kernels.dispatch.gpu_missing", lambda: "")
    raster = Gsplat()
    raster.ensure_available()
    assert raster.backend == "gpu" and not raster.selection_note
    assert isinstance(Auto().select(), type(raster)) is False  # Triton is there: it comes first
