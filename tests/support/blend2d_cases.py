"""Pictures of Gaussians of the plane, and how a backend's `blend2d` is held against the float64 reference."""

import math
from functools import lru_cache
from types import SimpleNamespace

import torch
from support.kernel_cases import alphas_by_pixel, assert_close, beside_cutoffs, run

from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.constants import ALPHA_MIN
from splatexp_kernels.tiles import tiles

GRADED = ("means2d", "conics", "colors", "weights", "background")
KINDS = [("sum", 0), ("normalized", 0), ("normalized", 4), ("sum", 3), ("alpha", 0)]  # mode, top_k


def picture(N, C=1, width=48, height=40, D=3, *, seed=0, most=1.0):
    """N Gaussians on and around C pictures: of all shapes, colours of both signs, weights up to `most`.

    Where N allows, the first is culled and NaN, the second too faint to see, the third wide and far off.
    """
    g = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    means2d = (1.3 * torch.rand(C, N, 2, generator=g) - 0.15) * size
    s = torch.exp(torch.randn(C, N, 2, generator=g) * 0.8 + 0.4)
    angle = math.pi * torch.rand(C, N, generator=g)
    weights = most * torch.rand(C, N, generator=g)
    if N > 3:
        means2d[:, 2] = torch.tensor([3.0 * width, -2.0 * height])
        s[:, 2], weights[:, 1] = 2.5 * max(width, height), 0.9 * ALPHA_MIN
    x, y = angle.double().cos(), angle.double().sin()
    u, v = s.double().square().unbind(-1)
    cov = torch.stack([x * x * u + y * y * v, x * y * (u - v), y * y * u + x * x * v], -1)
    det = cov[..., 0] * cov[..., 2] - cov[..., 1] ** 2
    conics = torch.stack([cov[..., 2], -cov[..., 1], cov[..., 0]], -1) / det[..., None]
    reach = 2 * (weights.double() / ALPHA_MIN).log().clamp_min(0)
    radii = (reach[..., None] * cov[..., ::2]).sqrt().float()
    if N > 3:
        for tensor in (means2d, conics, weights):
            tensor[:, 0] = math.nan
        radii[:, 0] = 0
    f = SimpleNamespace(
        means2d=means2d,
        conics=conics.float(),
        colors=torch.randn(C, N, D, generator=g),
        weights=weights,
        background=torch.rand(C, D, generator=g),
        radii=radii,
        depths=torch.rand(C, N, generator=g) + 1,
        width=width,
        height=height,
    )
    f.opacities = f.weights
    return f


def listed(f, backend, **knobs):
    f.tiles = tiles(f.means2d, f.radii, f.depths, f.width, f.height, backend=backend, **knobs)
    return f


def blended(f, backend, *, background=True, total=True, **knobs):
    """Image, total and the gradients of a picture; without `total` the loss does not see it."""
    dtype = torch.float64 if backend == "reference" else torch.float32

    def function(**leaves):
        back = leaves.pop("background", None)
        found = blend2d(
            *leaves.values(), f.tiles, f.width, f.height, background=back, backend=backend, **knobs
        )
        return {"image": found[0], "total": found[1] if total else found[1].detach()}

    return run(function, {name: getattr(f, name) for name in GRADED[: 4 + background]}, dtype)


def edges_of(f, mode, top_k, band=1e-4):
    """Pixels [C,H,W] where rounding may decide otherwise, and the Gaussians [C,N] that they hold."""
    if mode == "alpha":
        return beside_cutoffs(f, band)
    weights = torch.nan_to_num(alphas_by_pixel(f))
    edge = ((weights / ALPHA_MIN - 1).abs() < band).any(-1)
    if 0 < top_k < weights.shape[-1]:
        ordered = weights.sort(-1, descending=True).values[..., top_k - 1 : top_k + 1]
        edge |= (ordered[..., 1] > (1 - band) * ordered[..., 0]) & (ordered[..., 1] > 0.9 * ALPHA_MIN)
    touched = (edge[..., None] & (weights > 0.99 * ALPHA_MIN)).any(1)
    return edge.view(-1, f.height, f.width), touched


@lru_cache(maxsize=64)
def expected_of(case, mode, top_k):
    f = picture(*case, most=1.0 if mode == "alpha" else 2.0)
    expected = blended(listed(f, "reference"), "reference", mode=mode, top_k=top_k)
    return f, expected, edges_of(f, mode, top_k)


def hold(actual, expected, edges):
    """Tight away from cut-offs; a pixel beside one may take another Gaussian, with its gradients."""
    edge, touched = edges
    assert edge.float().mean() <= 0.02 or edge.numel() < 1000
    for name in ("image", "total"):
        assert_close(name, actual[name], expected[name], 5e-6, where=~edge)
    assert (actual["image"] - expected["image"]).abs().max() < 0.1 if edge.any() else True
    for name in GRADED[:4]:
        # the conic of the wide Gaussian sums dx^2 of 150^2, over exponents that rounding leaves off by 2e-6
        tolerance = 2e-5 if name == "conics" else 1e-5
        assert_close(f"v_{name}", actual[f"v_{name}"], expected[f"v_{name}"], tolerance, where=~touched)
    if "v_background" in actual and not edge.any():
        assert_close("v_background", actual["v_background"], expected["v_background"], 1e-5)
