import pytest
import torch

from splatexp.gaussians.covariance import conics
from splatexp.image.fit.solve import BlendOperator, solve_colors

torch.set_num_threads(1)
WIDTH, HEIGHT = 24, 18
KINDS = [("sum", 0), ("normalized", 0), ("normalized", 3), ("alpha", 0)]


def blend(count=30, *, mode="sum", top_k=0, backend="cpu", dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    u, v, w = (torch.rand(count, n, generator=g).to(dtype) for n in (2, 3, 1))
    means, shapes = u * torch.tensor([WIDTH, HEIGHT], dtype=dtype), v * 3 + 0.7
    weights = w[:, 0] * 0.6 + 0.3
    knobs = {"mode": mode, "top_k": top_k, "backend": backend}
    return BlendOperator(
        means, *conics("cholesky", shapes, weights), weights, (WIDTH, HEIGHT), tile_size=8, **knobs
    )


def target(dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    return torch.rand(HEIGHT, WIDTH, 2, generator=g).to(dtype)


def dense(operator, dtype=torch.float64):
    """A itself, [H W, N], column by column."""
    eye = torch.eye(len(operator), dtype=dtype)
    return torch.stack([operator.draw(row[:, None])[..., 0].flatten() for row in eye], 1)


@pytest.mark.parametrize("mode,top_k", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gather_is_the_transpose_of_draw(mode, top_k, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    operator = blend(mode=mode, top_k=top_k, backend=backend, dtype=dtype)
    colors = torch.randn(30, 2, generator=torch.Generator().manual_seed(5), dtype=dtype)
    one = (operator.draw(colors) * target(dtype)).sum()
    other = (colors * operator.transpose(target(dtype))).sum()
    torch.testing.assert_close(one, other, rtol=1e-4 if backend == "cpu" else 1e-10, atol=1e-5)
    twice = operator.transpose(target(dtype))
    assert torch.equal(twice, operator.transpose(target(dtype)))


@pytest.mark.parametrize("mode,top_k", KINDS)
def test_least_squares_are_those_of_a_dense_solver(mode, top_k):
    operator = blend(mode=mode, top_k=top_k, backend="reference", dtype=torch.float64)
    y = target(torch.float64)
    found = solve_colors(operator, y, steps=400, ridge=0, tolerance=1e-10)
    expected = torch.linalg.lstsq(dense(operator), y.flatten(0, 1), driver="gelsd").solution
    best = (operator.draw(expected) - y).square().mean()
    assert found.error == pytest.approx(float(best), rel=1e-9)
    torch.testing.assert_close(operator.draw(found.colors), operator.draw(expected), atol=1e-6, rtol=1e-6)


def test_the_ridge_is_that_of_the_normal_equations():
    operator, ridge = blend(backend="reference", dtype=torch.float64), 0.3
    y, start = target(torch.float64), torch.full((30, 2), 0.1, dtype=torch.float64)
    found = solve_colors(operator, y, start, steps=300, ridge=ridge, tolerance=1e-12)
    a, norms = dense(operator), operator.column_norms
    left = a.T @ a + ridge * torch.diag(norms.square())
    right = a.T @ y.flatten(0, 1) + ridge * norms.square()[:, None] * start
    torch.testing.assert_close(found.colors, torch.linalg.solve(left, right), atol=1e-8, rtol=1e-8)


def test_in_float32_it_comes_as_near_and_never_away():
    operator, y = blend(), target()
    begun = operator.initial_colors(y)
    errors = [
        solve_colors(operator, y, begun, steps=steps, ridge=0, tolerance=0).error for steps in (0, 1, 5, 40)
    ]
    assert errors == sorted(errors, reverse=True)
    exact = blend(backend="reference", dtype=torch.float64)
    best = solve_colors(exact, y.double(), steps=400, ridge=0, tolerance=1e-10).error
    assert best <= errors[-1] * (1 + 1e-4) and errors[-1] < best * 1.01


def test_norms_are_those_of_wide_columns():
    weights, means = torch.tensor([1.0, 0.6]), torch.tensor([[32.0, 30.0], [25.0, 31.0]])
    found = conics("cholesky", torch.tensor([[4.0, 1.0, 3.0], [2.0, -1.5, 5.0]]), weights)
    operator = BlendOperator(means, *found, weights, (64, 60))
    columns = torch.stack([operator.draw(row[:, None]) for row in torch.eye(2)])
    exact = columns.square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(operator.column_norms, exact, rtol=1e-2, atol=0)


def test_what_is_not_seen_keeps_its_colour_and_a_black_picture_is_black():
    means = torch.tensor([[5.0, 5.0], [500.0, 5.0]])
    weights = torch.ones(2)
    operator = BlendOperator(means, *conics("cholesky", torch.ones(2, 3), weights), weights, (WIDTH, HEIGHT))
    start = torch.tensor([[0.3], [0.7]])
    found = solve_colors(operator, torch.zeros(HEIGHT, WIDTH, 1), start, steps=20, ridge=0)
    assert float(found.colors[1]) == pytest.approx(0.7) and abs(float(found.colors[0])) < 1e-5
    assert operator.initial_colors(torch.ones(HEIGHT, WIDTH, 1)).isfinite().all()


@pytest.mark.parametrize("name,value", [("steps", -1), ("ridge", -1.0), ("tolerance", float("nan"))])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least 0"):
        solve_colors(blend(3), target(), **{name: value})
