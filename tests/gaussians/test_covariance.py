import math

import pytest
import torch

from splatexp.gaussians.covariance import PARAMETRIZATIONS, Covariance, conics
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.constants import ALPHA_MIN
from splatexp_kernels.tiles import tiles

WIDTH, HEIGHT = 24, 20
KINDS = [("sum", 0), ("normalized", 0), ("normalized", 3), ("alpha", 0)]


def covariances(count=40, *, seed=0, least=0.3, most=6.0):
    """Positive definite ones of all shapes and directions, float64, axes from `least` to `most` px."""
    g = torch.Generator().manual_seed(seed)
    u, v, t = torch.rand(3, count, generator=g, dtype=torch.float64)
    u, v, t = (least * (most / least) ** (2 * u)).clamp_max(most), least * (most / least) ** v, math.pi * t
    x, y, u, v = t.cos(), t.sin(), u * u, v * v
    return Covariance(x * x * u + y * y * v, x * y * (u - v), y * y * u + x * x * v, u * v)


def picture(count=40, *, dtype=torch.float64):
    """Means, colours and weights."""
    g = torch.Generator().manual_seed(1)
    means2d = torch.rand(1, count, 2, generator=g) * torch.tensor([WIDTH, HEIGHT])
    drawn = means2d, torch.randn(1, count, 3, generator=g), 0.1 + 0.8 * torch.rand(1, count, generator=g)
    return [tensor.to(dtype) for tensor in drawn]


def rendered(form, shapes, means2d, colors, weights, *, lists=None, backend="reference", **knobs):
    found, radii = conics(form, shapes, weights)
    lists = lists or tiles(
        means2d, radii, torch.ones_like(weights), WIDTH, HEIGHT, backend=backend, tile_size=8
    )
    return blend2d(means2d, found, colors, weights, lists, WIDTH, HEIGHT, backend=backend, **knobs)[0]


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_there_and_back(form):
    given = covariances()
    found = PARAMETRIZATIONS[form].covariance(PARAMETRIZATIONS[form].shapes(given))
    for name, expected in given._asdict().items():
        torch.testing.assert_close(getattr(found, name), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_gradients_by_finite_differences(form):
    shapes = PARAMETRIZATIONS[form].shapes(covariances())
    weights = torch.linspace(0.1, 2, 40, dtype=torch.float64)
    variance = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)

    def function(shapes, variance):
        return conics(form, shapes, weights, variance=variance)[0]

    inputs = shapes.requires_grad_(), variance.requires_grad_()
    assert torch.autograd.gradcheck(function, inputs)
    found = function(*inputs)
    plain = covariances()
    det = (plain.xx + variance) * (plain.yy + variance) - plain.xy**2
    expected = torch.stack([plain.yy + variance, -plain.xy, plain.xx + variance], -1) / det[..., None]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode,top_k", KINDS)
@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_gradients_through_a_picture(form, mode, top_k):
    """Each form's numbers to the picture's loss: tile lists held fixed, steps too small to pass a cut-off."""
    means2d, colors, weights = picture(12)
    shapes = PARAMETRIZATIONS[form].shapes(covariances(12, least=1.5)).expand(1, 12, 3).contiguous()
    _, radii = conics(form, shapes, weights)
    lists = tiles(means2d, radii, torch.ones_like(weights), WIDTH, HEIGHT, backend="reference", tile_size=8)
    noise = torch.randn(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def loss(shapes):
        knobs = {"lists": lists, "mode": mode, "top_k": top_k}
        return (rendered(form, shapes, means2d, colors, weights, **knobs) * noise).sum()

    assert torch.autograd.gradcheck(loss, shapes.requires_grad_(), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("mode,top_k", KINDS)
def test_one_covariance_is_one_picture_in_every_form(mode, top_k, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    means2d, colors, weights = picture(dtype=dtype)
    knobs = {"mode": mode, "top_k": top_k, "backend": backend}
    found = {}
    for form in PARAMETRIZATIONS:
        shapes = PARAMETRIZATIONS[form].shapes(covariances()).to(dtype).expand(1, 40, 3)
        found[form] = rendered(form, shapes, means2d, colors, weights, **knobs)
    largest = found["cholesky"].abs().max()
    for form, image in found.items():
        error = (image - found["cholesky"]).abs() / largest
        # float32: what lies beside a cut-off may come or go, with 1/255 of a colour
        assert (error > 1e-5).float().mean() < (1e-9 if backend == "reference" else 5e-3), form
        assert error.max() < 0.02, form


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_the_box_is_exact(form):
    """The ellipse on which a weight is ALPHA_MIN touches all four sides, and crosses none."""
    cov, weights = covariances(), torch.linspace(0.01, 2, 40, dtype=torch.float64)
    found, radii = conics(form, PARAMETRIZATIONS[form].shapes(cov), weights)
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:, None]
    x, y = angle.cos(), angle.sin()
    a, b, c = found.unbind(-1)
    along = (2 * torch.log(weights / ALPHA_MIN) / (a * x * x + 2 * b * x * y + c * y * y)).sqrt()
    furthest = torch.stack([(along * x).amax(0), (along * y).amax(0)], -1)
    assert (furthest <= radii * (1 + 1e-12)).all()
    torch.testing.assert_close(furthest, radii, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_what_is_culled_has_gradients_of_zero(form):
    nan, inf = math.nan, math.inf
    good = PARAMETRIZATIONS[form].shapes(covariances(3)).float()
    bad = torch.tensor([[nan, 0, 1], [1, inf, 1], [0, 0, 0], [1e30, 1e30, 1e30], [-1, 5, 1], [1, 1, 1]])
    shapes = torch.cat([good, bad]).requires_grad_()
    weights = torch.tensor([0.5, 0.9 * ALPHA_MIN, nan, *[0.5] * 6])
    found, radii = conics(form, shapes, weights)
    seen = (radii > 0).all(-1)
    assert seen[0] and not seen[1:5].any() and not seen[6]
    assert ((radii > 0) == seen[:, None]).all() and found.isfinite().all()
    v_shapes = torch.autograd.grad(found, shapes, torch.ones_like(found))[0]
    assert (v_shapes[~seen] == 0).all() and (v_shapes[seen] != 0).any() and v_shapes.isfinite().all()
    positive = PARAMETRIZATIONS[form].covariance(bad[4:].double())
    assert seen[7:].tolist() == ((positive.det > 0) & positive.det.isfinite()).tolist()


@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_what_shrinks_to_nothing_keeps_finite_gradients(form):
    """In float32, from 1 px down to 1e-20, in one direction or in both."""
    size = 10 ** -torch.linspace(0, 20, 101, dtype=torch.float64)
    for other in (size, torch.ones_like(size)):
        cov = Covariance(size**2, torch.zeros_like(size), other**2, (size * other) ** 2)
        shapes = PARAMETRIZATIONS[form].shapes(cov).float().requires_grad_()
        found, radii = conics(form, shapes, torch.ones(101))
        assert found.isfinite().all() and (radii[:15] > 0).all() and (radii[-1] == 0).all()
        v_shapes = torch.autograd.grad(found, shapes, torch.zeros_like(found))[0]
        assert (v_shapes == 0).all()


def test_a_needle_keeps_its_determinant_in_float32():
    """0.1 px by 1000 px at a slant: from float32's xx yy - xy^2 nothing would be left of 1e4."""
    shapes = torch.tensor([[1000.0, 0.1, 0.7]])
    found, _ = conics("rotation_scale", shapes, torch.ones(1))
    expected, _ = conics("rotation_scale", shapes.double(), torch.ones(1).double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_an_unknown_form_is_refused():
    with pytest.raises(
        ValueError, match="parametrization: expected one of cholesky, .*, got 'choleski'; did you mean"
    ):
        conics("choleski", torch.zeros(1, 3), torch.ones(1))
