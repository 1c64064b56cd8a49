"""Projection, colours and tile lists equal those of gsplat's own pure-PyTorch functions on random scenes.

Where definitions differ, a test feeds what makes them comparable, or says why a difference is meant.
"""

import pytest
import torch
from gsplat.cuda import _torch_impl as theirs
from support.kernel_cases import assert_close, run, scene

from splatexp_kernels.constants import ALPHA_MIN
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import tiles

GRADED = ("means", "quats", "scales", "viewmats")
EPS2D, NEAR, FAR = 0.3, 0.01, 1e10


def precision(backend):
    """Dtype, and the tolerance that it leaves: two formulas for a covariance, a few dozen roundings each."""
    return (torch.float64, 1e-11) if backend == "reference" else (torch.float32, 1e-5)


def gsplat_projection(s, prefilter, means, quats, scales, viewmats):
    covars, _ = theirs._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = theirs._fully_fused_projection(
        means,
        covars,
        viewmats,
        s.Ks.double(),
        s.width,
        s.height,
        EPS2D,
        NEAR,
        FAR,
        calc_compensations=prefilter,
    )
    if prefilter:  # ours is held above 0.005, so that its gradient stays finite for a Gaussian without area
        compensations = compensations.clamp_min(0.005)
    else:
        compensations = torch.ones_like(depths)
    return {
        "means2d": means2d,
        "conics": conics,
        "depths": depths,
        "compensations": compensations,
        "radii": radii,
    }


@pytest.mark.parametrize("prefilter", [False, True])
def test_projection(any_backend, prefilter):
    s, (dtype, tolerance) = scene(150, 2), precision(any_backend)
    knobs = {"eps2d": EPS2D, "near": NEAR, "far": FAR, "prefilter": prefilter, "backend": any_backend}
    fixed = s.opacities.to(dtype), s.Ks.to(dtype)

    def ours(means, quats, scales, viewmats):
        p = project(means, quats, scales, fixed[0], viewmats, fixed[1], s.width, s.height, **knobs)
        return p._asdict()

    p = ours(**{name: getattr(s, name).to(dtype) for name in GRADED})
    seen = (p["radii"] > 0).all(-1)
    assert 50 < seen.sum() < 250

    def both(
        function,
    ):  # theirs computes what it culls, too: only what ours sees counts in values and gradients
        def masked(**leaves):
            found = function(**leaves)
            kept = ("means2d", "conics", "depths", "compensations")
            return {
                name: torch.where(seen.view(2, 150, *[1] * (found[name].dim() - 2)), found[name], 0)
                for name in kept
            }

        return masked

    inputs = {name: getattr(s, name) for name in GRADED}
    expected = run(both(lambda **leaves: gsplat_projection(s, prefilter, **leaves)), inputs, torch.float64)
    actual = run(both(ours), inputs, dtype)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, tolerance)


def test_what_is_seen(any_backend):
    """gsplat's radii are whole pixels of 3.33 sigma; ours reach to where alpha is 1/255, 3.329 sigma or less.

    So we see nothing that gsplat does not. Of what it sees we leave out what is below 1/255 everywhere, and
    what is so in all of the image: neither is drawn.
    """
    s, (dtype, _) = scene(400, 2), precision(any_backend)
    inputs = [
        getattr(s, name).to(dtype) for name in ("means", "quats", "scales", "opacities", "viewmats", "Ks")
    ]
    p = project(*inputs, s.width, s.height, eps2d=EPS2D, near=NEAR, far=FAR, backend=any_backend)
    g = gsplat_projection(s, False, *(getattr(s, name).double() for name in GRADED))
    seen, wide = (p.radii > 0).all(-1), (g["radii"] > 0).all(-1)
    assert not (seen & ~wide).any() and (p.radii <= g["radii"]).all()

    a, b, c = g["conics"].unbind(-1)
    variances = torch.stack([c, a], -1) / (a * c - b * b)[..., None]
    opaque = s.opacities.double() >= ALPHA_MIN
    radii = (2 * torch.log(s.opacities.double() / ALPHA_MIN)[:, None] * variances).sqrt()
    size = torch.tensor([s.width, s.height])
    inside = ((g["means2d"] + radii > 0) & (g["means2d"] - radii < size)).all(-1)
    assert torch.equal(seen, wide & opaque & inside)
    assert (wide & ~opaque).any() and (wide & opaque & ~inside).any()


@pytest.mark.parametrize("degree", range(5))
def test_colors(any_backend, degree):
    s, (dtype, tolerance) = scene(130), precision(any_backend)
    inputs = {"means": s.means, "centers": torch.tensor([[0.3, -0.2, -4.0]]), "sh0": s.sh0, "shN": s.shN}

    def gsplat_colors(means, centers, sh0, shN):  # the sum alone; ours adds 1/2 and is held above 0
        values = theirs._spherical_harmonics(degree, means - centers, torch.cat([sh0, shN], 1))
        return {"colors": (values + 0.5).clamp_min(0)[None]}

    def ours(**leaves):
        return {"colors": sh(degree, **leaves, backend=any_backend)}

    expected, actual = run(gsplat_colors, inputs, torch.float64), run(ours, inputs, dtype)
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, tolerance)


@pytest.mark.parametrize("tile_size", [8, 16])
def test_tile_lists(any_backend, tile_size):
    """gsplat lists a Gaussian in each tile that its box touches, we where the box holds a pixel's centre.

    A pixel whose centre lies outside the box has alpha below 1/255 and is not drawn, so gsplat's other pairs
    cost time and change nothing. They are taken out of its lists; what remains is equal, in the same order.
    It is fed our radii, which are tighter, and all in units of our tiles, so that it takes the same. The
    image is a whole number of tiles: where one hangs over the edge, `cpu` looks at the pixels outside, too.
    """
    C, N, width, height = 2, 150, 64, 48
    s = scene(N, C, width, height, dtype=torch.float64)
    p = project(s.means, s.quats, s.scales, s.opacities, s.viewmats, s.Ks, width, height, backend="reference")
    means2d, radii, depths = p.means2d.float(), p.radii.float(), p.depths.float()
    kind = torch.float64 if any_backend == "reference" else torch.float32
    t = tiles(
        means2d.to(kind),
        radii.to(kind),
        depths.to(kind),
        width,
        height,
        tile_size=tile_size,
        backend=any_backend,
    )

    shape, count = torch.tensor([t.tile_width, t.tile_height]), t.tiles_x * t.tiles_y
    _, pairs, rows = theirs._isect_tiles(means2d / shape, radii / shape, depths, 1, t.tiles_x, t.tiles_y)
    offsets = theirs._isect_offset_encode(pairs, C, t.tiles_x, t.tiles_y).flatten().tolist() + [len(rows)]
    dropped = 0
    for tile in range(C * count):
        listed = rows[offsets[tile] : offsets[tile + 1]]
        corner = torch.tensor([tile % count % t.tiles_x, tile % count // t.tiles_x]) * shape
        first, last = corner + 0.5, corner + shape - 0.5
        middle, reach = means2d.view(-1, 2)[listed].double(), radii.view(-1, 2)[listed].double()
        centre = torch.minimum((middle - reach - 0.5).ceil() + 0.5, last).clamp_min(
            first
        )  # nearest to the box
        held = ((centre >= middle - reach) & (centre <= middle + reach)).all(-1)
        ours = t.order[t.ids[t.starts[tile] : t.ends[tile]].long()]
        assert ours.tolist() == listed[held].tolist(), tile
        dropped += (~held).sum().item()
    assert 0 < dropped < 0.2 * len(rows)
