import pytest
import torch
from support.kernel_cases import assert_close, run, scene

from splatexp_kernels.sh import sh


@pytest.fixture
def backend(any_backend):
    """Every backend: rows are few."""
    return any_backend


def colored(s, degree, backend, dtype, visible=None, coefficients=25):
    centers = -(s.viewmats[:, :3, :3].mT @ s.viewmats[:, :3, 3:])[:, :, 0]
    inputs = {"means": s.means, "centers": centers, "sh0": s.sh0, "shN": s.shN[:, : coefficients - 1]}

    def function(**leaves):
        return {"colors": sh(degree, **leaves, visible=visible, backend=backend)}

    return run(function, inputs, dtype)


@pytest.mark.parametrize("degree", range(5))
def test_reference_gradients_by_finite_differences(degree):
    g = torch.Generator().manual_seed(degree)
    means, centers = torch.randn(3, 3, generator=g).double(), torch.randn(2, 3, generator=g).double() * 4
    sh0, shN = (
        2 + torch.rand(3, 1, 3, generator=g).double(),
        0.1 * torch.randn(3, 24, 3, generator=g).double(),
    )
    inputs = [tensor.requires_grad_() for tensor in (means, centers, sh0, shN)]
    assert (sh(degree, *inputs, backend="reference") > 0.1).all()
    assert torch.autograd.gradcheck(lambda *x: sh(degree, *x, backend="reference"), inputs)


def test_reference_basis_is_orthonormal():
    from splatexp_kernels.sh.reference import basis

    z, weights = map(torch.from_numpy, __import__("numpy").polynomial.legendre.leggauss(8))
    phi = torch.arange(16, dtype=torch.float64) * (torch.pi / 8)
    sine = (1 - z * z).sqrt()[:, None]
    around = torch.stack([sine * phi.cos(), sine * phi.sin(), z[:, None].expand(8, 16)], -1).reshape(-1, 3)
    values = basis(4, around)  # Gauss-Legendre times 16 equal steps is exact up to degree 15
    gram = values.mT @ (values * (weights * torch.pi / 8).repeat_interleave(16)[:, None])
    assert_close("gram", gram, torch.eye(25, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("size", [(0, 1), (1, 2), (63, 2), (500, 1)], ids=str)
def test_cpu_agrees_with_reference(size, degree, isa):
    s = scene(*size)
    visible = torch.rand(size[1], size[0], generator=torch.Generator().manual_seed(1)) < 0.8
    expected = colored(s, degree, "reference", torch.float64, visible)
    actual = colored(s, degree, "cpu", torch.float32, visible)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 3e-6)  # 25 terms of float32


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("size", [(0, 2), (1, 1), (63, 3), (130, 1)], ids=str)
def test_gpu_agrees_with_reference(size, degree):
    s = scene(*size)
    visible = torch.rand(size[1], size[0], generator=torch.Generator().manual_seed(1)) < 0.8
    expected = colored(s, degree, "reference", torch.float64, visible)
    actual, again = (colored(s, degree, "gpu", torch.float32, visible) for _ in range(2))
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, 3e-6)  # as for the CPU
        assert torch.equal(actual[name], again[name]), name


@pytest.mark.parametrize("coefficients", [1, 4, 9, 16, 25])
def test_unused_coefficients(coefficients, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(30)
    degree = int(coefficients**0.5) - 1
    cut = colored(s, degree, backend, dtype, coefficients=coefficients)
    full = colored(s, degree, backend, dtype)
    assert_close("colors", cut["colors"], full["colors"], 1e-6)
    assert (full["v_shN"][:, coefficients - 1 :] == 0).all()


def test_invisible_rows_hold_anything(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(20, 2)
    visible = torch.ones(2, 20, dtype=torch.bool)
    visible[:, 3] = False
    visible[0, 5] = False
    s.means[3] = float("nan")
    s.shN[3] = float("inf")
    found = colored(s, 3, backend, dtype, visible)
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert (found["colors"][:, 3] == 0).all() and (found["colors"][0, 5] == 0).all()
    assert (found["colors"][1, 5] > 0).any()
    assert (found["v_means"][3] == 0).all() and (found["v_shN"][3] == 0).all()


def test_degree_zero_is_the_same_from_everywhere(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(20, 2)
    found = colored(s, 0, backend, dtype)
    assert torch.equal(found["colors"][0], found["colors"][1])
    expected = (0.5 + 0.28209479177387814 * s.sh0[:, 0].double()).clamp_min(0)
    assert_close("colors", found["colors"][0], expected, 1e-6)
    assert (found["v_means"] == 0).all() and (found["v_centers"] == 0).all()
