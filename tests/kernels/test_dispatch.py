"""Wrong arguments are refused at the public dispatch, with one line that names them."""

import re
from pathlib import Path

import pytest
import torch
from support.kernel_cases import flat, scene

import splatexp_kernels as sk
from splatexp_kernels import constants
from splatexp_kernels.adam import adam
from splatexp_kernels.blend import attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import tiles


def project_(s, **knobs):
    named = {name: getattr(s, name) for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks")}
    tensors = {name: knobs.pop(name, tensor) for name, tensor in named.items()}
    size = knobs.pop("width", s.width), knobs.pop("height", s.height)
    return project(*tensors.values(), *size, **{"backend": "reference", **knobs})


PROJECT = {
    "means: expected [N, 3], got (5, 2)": {"means": torch.zeros(5, 2)},
    "quats: expected [N, 4] with N=5, got (4, 4)": {"quats": torch.zeros(4, 4)},
    "scales: expected [N, 3] with N=5, got (5, 1)": {"scales": torch.zeros(5, 1)},
    "opacities: expected [N] with N=5, got (5, 1)": {"opacities": torch.zeros(5, 1)},
    "viewmats: expected [C, 4, 4], got (4, 4)": {"viewmats": torch.eye(4)},
    "Ks: expected [C, 3, 3] with C=1, got (2, 3, 3)": {"Ks": torch.zeros(2, 3, 3)},
    "width: expected at least 1, got 0": {"width": 0},
    "height: expected at least 1, got -3": {"height": -3},
    "eps2d: expected at least 0, got -0.1": {"eps2d": -0.1},
    "near: expected at least 0, got nan": {"near": float("nan")},
    "far: expected at least 2.0, got 1.0": {"near": 2.0, "far": 1.0},
    "cull_radius_px: expected at least 0, got -1": {"cull_radius_px": -1},
    "backend: expected one of reference, cpu, gpu, got 'cuda'": {"backend": "cuda"},
}


@pytest.mark.parametrize("message", PROJECT)
def test_reference_project_refuses(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        project_(scene(5), **PROJECT[message])


def test_reference_refuses_kinds_of_numbers():
    with pytest.raises(TypeError, match="quats: expected float32 on cpu, got float64 on cpu"):
        project_(scene(5), quats=torch.zeros(5, 4).double())
    with pytest.raises(TypeError, match="means: expected int64 on cpu, got int64 on cpu|floating"):
        project_(scene(5), means=torch.zeros(5, 3).long())


def refused(call, message, error=ValueError):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_reference_sh_refuses():
    s = scene(5)
    center = torch.zeros(1, 3)
    refused(
        lambda: sh(5, s.means, center, s.sh0, s.shN, backend="reference"),
        "degree: expected a number in [0, 4]",
    )
    refused(
        lambda: sh(2, s.means, center, s.sh0, s.shN[:, :5], backend="reference"),
        "shN: expected at least 8 rows for degree 2, got 5",
    )
    mask = torch.ones(1, 4, dtype=torch.bool)
    refused(
        lambda: sh(0, s.means, center, s.sh0, s.shN, mask, backend="reference"), "visible: expected [1, 5]"
    )
    mask = torch.ones(1, 5)
    refused(
        lambda: sh(0, s.means, center, s.sh0, s.shN, mask, backend="reference"),
        "visible: expected bool",
        TypeError,
    )


def test_reference_blend_refuses():
    f = flat(5)
    inputs = [f.means2d, f.conics, f.colors, f.opacities]
    other = tiles(f.means2d, f.radii, f.depths, 32, 48, backend="reference")
    refused(
        lambda: blend(*inputs, other, 64, 48, backend="reference"),
        "tiles: expected lists for 1 images of 64x48",
    )
    refused(
        lambda: blend(*inputs, f.tiles, 64, 48, max_splats_per_pixel=-1, backend="reference"),
        "max_splats_per_",
    )
    back = torch.zeros(1, 2)
    refused(lambda: blend(*inputs, f.tiles, 64, 48, background=back, backend="reference"), "with C=1, D=3")
    inputs[2] = f.colors[..., :0]
    refused(
        lambda: blend(*inputs, f.tiles, 64, 48, backend="reference"), "colors.shape[2]: expected at least 1"
    )
    maps = torch.zeros(1, 64, 48, 1)
    inputs = [f.means2d, f.conics, f.opacities, f.tiles]
    refused(lambda: attribute(*inputs, 64, 48, maps, backend="reference"), "maps: expected [C, 48, 64, M]")


def test_reference_tiles_refuses():
    f = flat(5)
    inputs = [f.means2d, f.radii, f.depths, 64, 48]
    refused(
        lambda: tiles(*inputs, tile_size=12, backend="reference"),
        "tile_size: expected one of 8, 16, 32, got 12",
    )
    refused(lambda: tiles(*inputs, per_tile_max=-1, backend="reference"), "per_tile_max: expected at least 0")


def test_reference_ssim_and_adam_refuse():
    x = torch.zeros(1, 5, 4, 3)
    refused(
        lambda: ssim(x, x[:, :4], backend="reference"),
        "target: expected [C, H, W, D] with C=1, H=5, W=4, D=3",
    )
    p, step = torch.zeros(5, 3), {"step": 1, "lr": 0.1, "backend": "reference"}
    refused(lambda: adam(p, p[:4], p, p, **step), "grad: expected [N, 3] with N=5, got (4, 3)")
    refused(lambda: adam(p, p, p, torch.zeros(3, 5).T, **step), "exp_avg_sq: expected a contiguous tensor")
    refused(lambda: adam(p, p, p, p, **{**step, "step": 0}), "step: expected at least 1, got 0")
    refused(lambda: adam(p, p, p, p, beta1=1.0, **step), "beta1: expected a number in [0, 1), got 1.0")


def test_cpu_takes_float32_alone():
    s = scene(5, dtype=torch.float64)
    with pytest.raises(TypeError, match="means: backend 'cpu' takes float32 on cpu, got float64 on cpu"):
        project_(s, backend="cpu")


def test_constants_of_cpp_are_those_of_python():
    header = (Path(sk.__file__).parents[1] / "cpp" / "constants.h").read_text()
    found = dict(re.findall(r"constexpr float (\w+) = ([^;]+);", header))
    assert found
    for name, value in found.items():
        numerator, _, denominator = value.replace("f", "").partition("/")
        assert float(numerator) / float(denominator or 1) == getattr(constants, name), name
    floats = {name for name, value in vars(constants).items() if isinstance(value, float)}
    assert set(found) == floats


def test_cpu_switches():
    assert sk.isa() in sk.isas() and "portable" in sk.isas()
    with pytest.raises(ValueError, match="mmx"):
        sk.set_isa("mmx")
    before = sk.get_num_threads()
    for threads in (1, 2):
        sk.set_num_threads(threads)
        assert sk.get_num_threads() == threads
    sk.set_num_threads(0)
    assert sk.get_num_threads() >= 1
    sk.set_num_threads(before)
