import pytest
import torch
from support.kernel_cases import SIZES, assert_close, run, scene

from splatexp_kernels.constants import ALPHA_MIN
from splatexp_kernels.project import project

GRADED = ("means", "quats", "scales", "viewmats")


@pytest.fixture
def backend(any_backend):
    """Every backend: rows are few."""
    return any_backend


def projected(s, backend, dtype, **knobs):
    """Outputs and gradients of `project` for a scene."""

    def function(**leaves):
        fixed = (s.opacities.to(dtype), leaves.pop("viewmats"), s.Ks.to(dtype), s.width, s.height)
        return project(*leaves.values(), *fixed, backend=backend, **knobs)._asdict()

    return run(function, {name: getattr(s, name) for name in GRADED}, dtype)


def hand_placed():
    """Four Gaussians inside the frame and one beyond the Jacobian's clamp, all far from being culled."""
    d = torch.float64
    s = scene(5, 2, 40, 30, dtype=d)
    s.means = torch.tensor(
        [[0.1, 0.2, 0], [-0.8, 0.3, 1], [0.7, -0.5, -1], [0, 0, 2.0], [3.6, 0.2, 0.3]], dtype=d
    )
    s.scales = torch.tensor(
        [[0.3, 0.2, 0.4], [0.5, 0.1, 0.2], [0.2, 0.3, 0.1], [0.4, 0.4, 0.5], [0.9, 0.7, 0.8]]
    ).to(d)
    s.opacities = torch.tensor([0.9, 0.5, 0.7, 0.8, 0.95], dtype=d)
    return s


@pytest.mark.parametrize("prefilter", [False, True])
def test_reference_gradients_by_finite_differences(prefilter):
    s = hand_placed()

    def function(means, quats, scales, viewmats):
        p = project(
            means,
            quats,
            scales,
            s.opacities,
            viewmats,
            s.Ks,
            40,
            30,
            prefilter=prefilter,
            backend="reference",
        )
        return p.means2d, p.conics, p.depths, p.compensations

    assert (projected(s, "reference", torch.float64)["radii"] > 0).all()
    assert torch.autograd.gradcheck(function, [getattr(s, name).requires_grad_() for name in GRADED])


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_cpu_agrees_with_reference(size, prefilter, isa):
    s = scene(*size)
    expected = projected(s, "reference", torch.float64, prefilter=prefilter)
    actual = projected(s, "cpu", torch.float32, prefilter=prefilter)
    assert torch.equal(actual["radii"] > 0, expected["radii"] > 0)
    for name, tensor in expected.items():
        # float32 keeps 6e-8 a step; a covariance's determinant loses up to two digits of them
        assert_close(name, actual[name], tensor, 1e-5)


@pytest.mark.parametrize("prefilter", [False, True])
@pytest.mark.parametrize("size", [(0, 2, 17, 33), (1, 1, 1, 1), (63, 2, 17, 33), (130, 3, 64, 48)], ids=str)
def test_gpu_agrees_with_reference(size, prefilter):
    s = scene(*size)
    expected = projected(s, "reference", torch.float64, prefilter=prefilter)
    actual = projected(s, "gpu", torch.float32, prefilter=prefilter)
    again = projected(s, "gpu", torch.float32, prefilter=prefilter)
    assert torch.equal(actual["radii"] > 0, expected["radii"] > 0)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 1e-5)  # as for the CPU
        assert torch.equal(actual[name], again[name]), name


@pytest.mark.parametrize("output", ["means2d", "conics", "depths", "compensations"])
def test_each_output_alone_has_its_gradients(output, backend):
    s = scene(70, 2)

    def function(**leaves):
        dtype = leaves["means"].dtype
        opacities, Ks = s.opacities.to(dtype), s.Ks.to(dtype)
        inputs = [leaves["means"], leaves["quats"], leaves["scales"], opacities, leaves["viewmats"], Ks]
        p = project(*inputs, s.width, s.height, prefilter=True, backend=name)
        return {output: getattr(p, output)}

    inputs, found = {key: getattr(s, key) for key in GRADED}, {}
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        found[name, dtype] = run(function, inputs, dtype)
    for key, tensor in found["reference", torch.float64].items():
        assert_close(key, found[backend, torch.float32][key], tensor, 1e-5)


def test_extent_is_where_alpha_fades(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(100)
    p = projected(s, backend, dtype)
    seen = (p["radii"] > 0).all(-1)
    (a, b, c), (rx, ry) = p["conics"][seen].double().unbind(-1), p["radii"][seen].double().unbind(-1)
    opacities = s.opacities.double().expand(1, -1)[seen]
    # on the line through the rightmost point of the ellipse, and through the lowest
    for power in (0.5 * rx**2 * (a - b * b / c), 0.5 * ry**2 * (c - b * b / a)):
        assert_close("alpha", opacities * torch.exp(-power), torch.full_like(power, ALPHA_MIN), 2e-3)


def broken_rows():
    nan, inf = float("nan"), float("inf")
    return {
        "NaN mean": ("means", [nan, 0, 0]),
        "infinite mean": ("means", [0, inf, 0]),
        "behind": ("means", [0, 0, -9]),
        "at the camera": ("means", [0, 0, -4]),
        "off screen": ("means", [90, 0, 0]),
        "zero quaternion": ("quats", [0, 0, 0, 0]),
        "NaN quaternion": ("quats", [1, nan, 0, 0]),
        "NaN scale": ("scales", [0.1, nan, 0.1]),
        "infinite scale": ("scales", [0.1, inf, 0.1]),
        "NaN opacity": ("opacities", nan),
        "infinite opacity": ("opacities", inf),
        "faint": ("opacities", 0.003),
    }


@pytest.mark.parametrize("what", broken_rows())
def test_culls_what_cannot_be_drawn(what, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(40)
    s.viewmats = torch.eye(4)[None].clone()
    s.viewmats[0, 2, 3] = 4
    whole = projected(s, backend, dtype)
    name, value = broken_rows()[what]
    getattr(s, name)[7] = torch.tensor(value)
    p = projected(s, backend, dtype)
    others = torch.arange(40) != 7
    for key in ("means2d", "conics", "depths", "radii", "compensations"):
        assert (p[key][:, 7] == 0).all(), key
        assert torch.equal(p[key][:, others], whole[key][:, others]), key
    for key in ("v_means", "v_quats", "v_scales"):
        assert (p[key][7] == 0).all(), key
        assert torch.equal(p[key][others], whole[key][others]), key
    assert p["v_viewmats"].isfinite().all()


def test_zero_scales_are_a_point(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(1)
    s.means, s.scales, s.opacities = torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1)
    p = projected(s, backend, dtype, prefilter=True)
    assert_close("conics", p["conics"], torch.tensor([[[1 / 0.3, 0, 1 / 0.3]]]), 1e-6)
    assert_close("compensations", p["compensations"], torch.tensor([[0.005]]), 1e-6)
    assert all(v.isfinite().all() for v in p.values())


@pytest.mark.parametrize("size", [1e6, 1e12, 1e18])
def test_huge_scales_stay_finite(size, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(20)
    s.scales[3], s.scales[4, 1], s.quats[5] = size, size, torch.tensor([1e-12, 0, 0, 0])
    for prefilter in (False, True):
        for name, tensor in projected(s, backend, dtype, prefilter=prefilter).items():
            assert tensor.isfinite().all(), name


def test_knobs(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(200)
    plain = projected(s, backend, dtype)
    seen = plain["radii"][0, :, 0] > 0
    depths = plain["depths"][0]

    def seen_with(**knobs):
        return projected(s, backend, dtype, **knobs)["radii"][0, :, 0] > 0

    assert torch.equal(seen_with(near=3.0), seen & (depths > 3))
    assert torch.equal(seen_with(far=4.0), seen & (depths < 4))
    assert torch.equal(seen_with(cull_radius_px=4.0), seen & (plain["radii"][0].amax(-1) > 4))
    filtered = projected(s, backend, dtype, prefilter=True)
    factors = filtered["compensations"][0][filtered["radii"][0, :, 0] > 0]
    assert (plain["compensations"][0][seen] == 1).all()
    assert (factors >= 0.005).all() and (factors < 1).all() and factors.min() < 0.7
    assert (filtered["radii"] <= plain["radii"]).all() and (filtered["radii"] < plain["radii"]).any()
    blurred = projected(s, backend, dtype, eps2d=2.0)
    assert (blurred["conics"][0, seen, 0] < plain["conics"][0, seen, 0]).all()


def test_length_of_quaternions_does_not_matter(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(50)
    before = projected(s, backend, dtype)
    s.quats = s.quats * 8
    after = projected(s, backend, dtype)
    assert_close("conics", after["conics"], before["conics"], 1e-5)
    assert_close("v_quats", after["v_quats"] * 8, before["v_quats"], 1e-5)


def test_cameras_do_not_disturb_each_other(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(63, 2)
    both = projected(s, backend, dtype)
    for c in range(2):
        one = scene(63, 2)
        one.viewmats, one.Ks = one.viewmats[c : c + 1], one.Ks[c : c + 1]
        alone = projected(one, backend, dtype)
        for key in ("means2d", "conics", "depths", "radii"):
            assert_close(key, both[key][c : c + 1], alone[key], 1e-6)
