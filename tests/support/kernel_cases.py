"""Small scenes, and how a backend's values and gradients are held against the float64 reference."""

from types import SimpleNamespace

import torch

from splatexp_kernels.constants import ALPHA_MAX, ALPHA_MIN, T_MIN
from splatexp_kernels.project import project
from splatexp_kernels.tiles import tiles

SIZES = [(0, 1, 17, 33), (1, 2, 1, 1), (63, 2, 17, 33), (500, 1, 64, 48), (500, 2, 33, 17)]  # N, C, W, H


def scene(N, C=1, width=64, height=48, *, seed=0, dtype=torch.float32):
    """N Gaussians before C cameras; some lie off screen, behind a camera, or are too faint to see.

    The first is large and in the middle, the second a point, the third far off to the side but wide.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(*shape, generator=g)

    viewmats = torch.eye(4).repeat(C, 1, 1)
    turn = torch.linalg.qr(torch.eye(3) + 0.1 * torch.randn(C, 3, 3, generator=g))
    viewmats[:, :3, :3] = turn.Q * turn.R.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    viewmats[:, :3, 3] = torch.tensor([0.0, 0.0, 4.0]) + uniform(C, 3, low=-0.2, high=0.2)
    focal = 0.9 * max(width, height)
    Ks = torch.tensor([[focal, 0, width / 2 + 0.3], [0, 1.1 * focal, height / 2 - 0.2], [0, 0, 1]])
    tensors = {
        "means": uniform(N, 3, low=-2.4, high=2.4) * torch.tensor([1.0, 1.0, 1.8]),
        "quats": torch.randn(N, 4, generator=g),
        "scales": torch.exp(uniform(N, 3, low=-4.5, high=-1.2)),
        "opacities": uniform(N) ** 2,
        "viewmats": viewmats,
        "Ks": Ks.repeat(C, 1, 1),
        "sh0": torch.randn(N, 1, 3, generator=g),
        "shN": 0.3 * torch.randn(N, 24, 3, generator=g),
    }
    placed = (([0, 0, 0], [0.3, 0.2, 0.1]), ([0.1, 0.1, -1], [1e-5] * 3), ([7, 0.5, 0], [2.0, 3.0, 1.0]))
    for row, (mean, size) in enumerate(placed[:N]):
        tensors["means"][row], tensors["scales"][row] = torch.tensor(mean), torch.tensor(size)
        tensors["opacities"][row] = 0.9
    return SimpleNamespace(width=width, height=height, **{k: v.to(dtype) for k, v in tensors.items()})


def flat(N, C=1, width=64, height=48, D=3, *, seed=0, tile_backend="reference", **knobs):
    """The scene projected in float64 and rounded to float32: equal inputs for every backend of `blend`."""
    s = scene(N, C, width, height, seed=seed, dtype=torch.float64)
    p = project(s.means, s.quats, s.scales, s.opacities, s.viewmats, s.Ks, width, height, backend="reference")
    means2d, conics, depths, radii = (x.float() for x in p[:4])
    g = torch.Generator().manual_seed(seed + 1)
    return SimpleNamespace(
        means2d=means2d,
        conics=conics,
        opacities=s.opacities.float().expand(C, N).contiguous(),
        colors=torch.rand(C, N, D, generator=g),
        background=torch.rand(C, D, generator=g),
        depths=depths,
        radii=radii,
        tiles=tiles(means2d, radii, depths, width, height, backend=tile_backend, **knobs),
        width=width,
        height=height,
    )


def run(function, inputs, dtype):
    """Outputs of `function(**inputs)`, a dict, and the gradients `v_<input>` of their product with noise."""
    leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in inputs.items()}
    outputs = function(**leaves)
    g = torch.Generator().manual_seed(9)
    smooth = [output for output in outputs.values() if output.requires_grad]
    noise = [torch.randn(output.shape, generator=g).to(dtype) for output in smooth]
    gradients = torch.autograd.grad(smooth, list(leaves.values()), noise, materialize_grads=True)
    found = {name: output.detach() for name, output in outputs.items()}
    return {**found, **{f"v_{name}": v for name, v in zip(leaves, gradients, strict=True)}}


def assert_close(name, actual, expected, tolerance, where=None):
    """Hold the largest error against `tolerance` times the largest value expected; NaN never passes.

    The error of one float32 sum follows the size of its terms, not of its result, so the scale is the
    tensor's, not the element's; that small elements are right, too, shows in the median of relative errors.
    `where` leaves elements out, such as those beside a cut-off.
    """
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} != {tuple(expected.shape)}"
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (actual.double() - expected.double()).abs()
    assert not error.isnan().any(), f"{name}: NaN"
    if where is not None:
        error, expected = error[where], expected[where]
    relative = (error / expected.abs())[expected != 0]
    if relative.numel() > 100:
        assert relative.median() <= tolerance, f"{name}: relative errors around {relative.median():.1e}"
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= tolerance * scale, (
        f"{name}: off by {worst:.2e}, scale {scale:.2e}, allowed {tolerance:.0e}"
    )


def alphas_by_pixel(f):
    """Unclamped alphas [C,HW,N] of every Gaussian at every pixel in float64; 0 for culled ones."""
    ys, xs = torch.meshgrid(torch.arange(f.height), torch.arange(f.width), indexing="ij")
    centres = torch.stack([xs, ys], -1).reshape(-1, 1, 2).double() + 0.5
    x, y = (centres - f.means2d.double()[:, None]).unbind(-1)
    a, b, c = f.conics.double()[:, None].unbind(-1)
    alphas = f.opacities.double()[:, None] * torch.exp(-0.5 * (a * x * x + c * y * y) - b * x * y)
    return torch.where((f.radii > 0).all(-1)[:, None], alphas, 0.0)


def beside_cutoffs(f, band=1e-4):
    """Pixels [C,H,W] where rounding may flip a decision, and the Gaussians [C,N] that such pixels hold.

    The band is relative, around ALPHA_MIN, ALPHA_MAX and T_MIN: float32 leaves an exponent of up to
    ln(255) from terms ten times as large an error of about 1e-5.
    """
    alphas = alphas_by_pixel(f)
    C, _, N = alphas.shape
    by_depth = f.depths.argsort(stable=True)[:, None].expand_as(alphas)
    strong = torch.where(alphas >= ALPHA_MIN, alphas.clamp_max(ALPHA_MAX), 0.0)
    through = torch.cumprod(1 - strong.gather(2, by_depth), 2)
    edge = torch.zeros(alphas.shape[:2], dtype=torch.bool)
    for values, cutoff in ((alphas, ALPHA_MIN), (alphas, ALPHA_MAX), (through, T_MIN)):
        edge |= ((values / cutoff - 1).abs() < band).any(-1)
    touched = (edge[..., None] & (alphas > 0.99 * ALPHA_MIN)).any(1)
    return edge.view(C, f.height, f.width), touched
