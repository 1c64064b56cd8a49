import math

import pytest
import torch

from splatexp.gaussians.covariance import conics
from splatexp.image.fit import density
from splatexp.image.fit.initial import INITIALIZERS, Initializer
from splatexp.image.fit.solve import BlendOperator
from splatexp.system.rng import generator

torch.set_num_threads(1)


def picture(height=40, width=56, channels=3):
    """Flat on the left, a sharp fine grid on the right."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = 0.5 + 0.4 * torch.sin(x * 1.3) * torch.sin(y * 1.1)
    values = torch.where(x < width // 2, 0.3, grid)
    return (values[..., None] * torch.linspace(0.6, 1, channels)).contiguous()


def drawn(rows, height, width):
    shapes, weights = torch.stack(rows.covariance[:3], -1), torch.ones(len(rows.means))
    return BlendOperator(rows.means, *conics("direct", shapes, weights), weights, (width, height)).draw(
        rows.colors
    )


def error(rows, image):
    return float((drawn(rows, *image.shape[:2]) - image).square().mean())


@pytest.mark.parametrize("kind", INITIALIZERS)
@pytest.mark.parametrize("count", [1, 7, 60, 300])
def test_so_many_inside_and_definite(kind, count):
    image = picture()
    rows = Initializer(kind)(image, count)
    assert rows.means.shape == (count, 2) and rows.colors.shape == (count, 3)
    assert ((rows.means >= 0) & (rows.means <= torch.tensor([56.0, 40.0]))).all()
    xx, xy, yy, det = rows.covariance
    assert (xx > 0).all() and (det > 0).all() and rows.colors.isfinite().all()
    torch.testing.assert_close(det, xx * yy - xy * xy, rtol=1e-2, atol=1e-3)
    again = Initializer(kind)(image, count)
    assert all(torch.equal(*pair) for pair in zip(rows.covariance, again.covariance, strict=True))
    assert torch.equal(rows.means, again.means) and torch.equal(rows.colors, again.colors)


@pytest.mark.parametrize("kind", INITIALIZERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_any_size_and_of_nothing(kind, size, channels):
    rows = Initializer(kind)(torch.full((*size, channels), 0.25), size[0] * size[1])
    assert len(rows.means) == size[0] * size[1] and rows.colors.shape[1] == channels
    assert rows.colors.isfinite().all() and all(part.isfinite().all() for part in rows.covariance)


@pytest.mark.parametrize("kind", INITIALIZERS)
def test_what_it_draws_is_nearer_than_nothing_and_a_solve_nearer_still(kind):
    image = picture()
    behind = image.mean((0, 1))
    plain = Initializer(kind)(image, 250, background=behind)
    solved = Initializer(kind, solve_steps=20)(image, 250, background=behind)
    wanted = image - behind
    nothing = float(wanted.square().mean())
    assert error(solved, wanted) < error(plain, wanted) < nothing
    assert torch.equal(plain.means, solved.means)


@pytest.mark.parametrize("kind", ["gradient", "quadtree", "dither", "delaunay", "network"])
def test_most_lie_where_the_detail_is(kind):
    rows = Initializer(kind)(picture(), 200)
    assert (rows.means[:, 0] > 27).float().mean() > 0.6


@pytest.mark.parametrize("kind", ["grid", "quadtree", "dither"])
def test_a_flat_picture_is_covered_evenly_and_rightly(kind):
    flat = torch.full((48, 48, 1), 0.6)
    rows = Initializer(kind)(flat, 144)
    middle = drawn(rows, 48, 48)[6:-6, 6:-6]
    assert abs(float(middle.mean()) - 0.6) < 0.06
    if kind in ("grid", "quadtree"):
        assert float((middle - 0.6).abs().max()) < 0.15


def test_leaves_of_the_quadtree_tile_the_picture():
    patch = INITIALIZERS["quadtree"](Initializer("quadtree"), picture(), 177, generator("x"))
    across, down = patch.covariance.xx.sqrt(), patch.covariance.yy.sqrt()
    assert float((across * down).sum()) == pytest.approx(40 * 56)
    covered = torch.zeros(40, 56)
    for (x, y), w, h in zip(patch.means.tolist(), across.tolist(), down.tolist(), strict=True):
        covered[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)] += 1
    assert (covered == 1).all()


def test_leaves_of_the_quadtree_are_those_of_the_greedy_way():
    """The dearest leaf is halved, again and again: what one would do with a heap."""
    image = picture(16, 16)
    values, leaves = image.double(), [(0, 0, 16, 16)]

    def claim(part):
        x0, y0, x1, y1 = part
        inside = values[y0:y1, x0:x1].reshape(-1, 3)
        area = len(inside)
        return float((inside - inside.mean(0)).square().sum()) + 1e-9 * area if area > 1 else -1.0

    while len(leaves) < 30:
        x0, y0, x1, y1 = leaves.pop(max(range(len(leaves)), key=lambda i: claim(leaves[i])))
        x, y = (x0 + x1) // 2, (y0 + y1) // 2
        wide = x1 - x0 >= y1 - y0
        leaves += [(x0, y0, x, y1), (x, y0, x1, y1)] if wide else [(x0, y0, x1, y), (x0, y, x1, y1)]
    rows = INITIALIZERS["quadtree"](Initializer("quadtree"), image, 30, generator("x"))
    expected = sorted(((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in leaves)
    assert sorted(map(tuple, rows.means.tolist())) == expected


def test_triangles_cover_the_picture_with_their_moments():
    patch = INITIALIZERS["delaunay"](Initializer("delaunay"), picture(), 150, generator("x"))
    area = (patch.covariance.det * 0.75).sqrt()
    assert 0.8 * 40 * 56 < float(area.sum()) <= 40 * 56 * (1 + 1e-5)


def test_error_diffusion_keeps_the_mean_and_leaves_no_border_bare():
    even = torch.full((60, 80), 0.01)
    noise = torch.rand(60, 80, generator=generator("noise"), dtype=torch.float64)
    dots = density.error_diffusion(even.double().numpy(), noise.numpy())
    assert abs(int(dots.sum()) - 48) <= 4
    places = density.dither_points(even, 48, generator("noise"))
    assert len(places) == 48 and float(places[:, 1].min()) < 12
    assert len({tuple(place) for place in places.tolist()}) == 48
    assert density.error_diffusion(torch.ones(3, 4).double().numpy(), noise.numpy()).all()


def test_a_capped_density_keeps_its_sum():
    peaky = torch.tensor([[6.0, 1.0, 0.5, 0.25], [0.1, 0.1, 0.05, 0.0]])
    cut = density.cap_density(peaky)
    assert float(cut.max()) <= 1 and float(cut.sum()) == pytest.approx(8.0, abs=1.1)
    mild = torch.full((4, 4), 0.3)
    mild[0, 0] = 2.0
    cut = density.cap_density(mild)
    assert float(cut.max()) == 1 and float(cut.sum()) == pytest.approx(6.5, rel=1e-5)
    with pytest.raises(ValueError, match="count: expected at most 8 in this image, got 16"):
        density.cap_density(torch.full((2, 4), 2.0))


def test_spread_and_power_do_what_they_say():
    image = picture()
    narrow, wide = (Initializer("grid", size_factor=spread)(image, 100) for spread in (0.4, 0.8))
    assert float(wide.covariance.xx[0] / narrow.covariance.xx[0]) == pytest.approx(4)
    share = [
        float((Initializer("dither", density_power=power)(image, 200).means[:, 0] > 27).float().mean())
        for power in (0, 1)
    ]
    assert share[0] == pytest.approx(0.5, abs=0.08) and share[1] > 0.7


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"init": "quadtre"}, "init: expected one of .*; did you mean 'quadtree'"),
        ({"uniform_fraction": 1.5}, r"uniform_fraction: expected a number in \[0, 1\], got 1.5"),
        ({"size_factor": math.nan}, "size_factor: expected"),
        ({"init": "grid", "density_blur": 2.0}, "density_blur: expected 1.0 with init=grid, .* got 2.0"),
        ({"init_path": "x"}, "init_path: expected '' with init=gradient, .* got 'x'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Initializer(**settings)


@pytest.mark.parametrize("kind", ["quadtree", "dither"])
def test_more_than_there_are_pixels_is_refused(kind):
    with pytest.raises(ValueError, match="count: expected at most 12"):
        Initializer(kind)(torch.rand(3, 4, 3), 13)
