import pytest
import torch
from support import tiny

from splatexp.gaussians.geometry import FRUSTUM_MARGIN, footprint, quats_to_rotations, rotations_to_quats
from splatexp_kernels import constants
from splatexp_kernels.project.reference import project

WIDTH, HEIGHT = 200, 160


def scene(count: int = 500, seed: int = 0):
    """Gaussians of all shapes around six cameras with square pixels: what `footprint` takes, float64."""
    random, cameras = torch.Generator().manual_seed(seed), tiny.cameras(width=WIDTH, height=HEIGHT)
    draw = torch.randn(count, 10, generator=random, dtype=torch.float64)
    scales = (draw[:, 7:] - 3).exp()
    return 1.5 * draw[:, :3], draw[:, 3:7], scales, cameras.viewmats.double(), cameras.Ks.double()


def radii(gaussians, **more):
    return footprint(*gaussians, WIDTH, HEIGHT, **more)


def directions(gaussians):
    """Depths [C,N] and u^2 + v^2 of the direction at which the Jacobian is taken."""
    means, _, _, viewmats, Ks = gaussians
    local = torch.einsum("cij,nj->cni", viewmats[:, :3, :3], means) + viewmats[:, None, :3, 3]
    half = torch.tensor([WIDTH, HEIGHT]) / 2 / Ks[0, 0, 0]
    tangents = local[..., :2] / local[..., 2:]
    return local[..., 2], tangents.clamp(-1.3 * half, 1.3 * half).square().sum(-1)


@pytest.mark.parametrize("seed", range(5))
def test_quaternions_turn_back(seed):
    quats = torch.randn(500, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    axes = torch.eye(4, dtype=torch.float64)  # half turns: three of four components are 0
    quats = torch.nn.functional.normalize(torch.cat([quats, axes, -axes]), dim=1)
    again = rotations_to_quats(quats_to_rotations(quats))
    torch.testing.assert_close((again * quats).sum(1).abs(), torch.ones(508).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(quats_to_rotations(again), quats_to_rotations(quats), atol=1e-12, rtol=0)


def test_exact_footprint_is_that_of_the_projection():
    assert FRUSTUM_MARGIN == constants.FRUSTUM_MARGIN
    gaussians = scene()
    drawn = project(
        *gaussians[:3], torch.full((500,), 0.9).double(), *gaussians[3:], WIDTH, HEIGHT,
        eps2d=0.3, near=0.01, far=1e9, cull_radius_px=0.0, prefilter=False,
    )  # fmt: skip
    seen = drawn.radii.amax(-1) > 0
    a, b, c = drawn.conics[seen].unbind(-1)
    least = torch.linalg.eigvalsh(torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2)))[:, 0]
    assert seen.sum() > 300
    torch.testing.assert_close(radii(gaussians)[seen], 3 / least.sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_fast_footprint_bounds_the_exact_one(seed):
    gaussians = scene(seed=seed)
    depths, slant = directions(gaussians)
    front = depths > 0.01
    exact, fast = radii(gaussians), radii(gaussians, method="fast")
    bound = (9 * 0.3 + fast**2 * (1 + slant)).sqrt()
    assert (exact <= bound * (1 + 1e-9))[front].all()
    thinnest = fast * gaussians[2].amin(1) / gaussians[2].amax(1)
    assert (exact >= (9 * 0.3 + thinnest**2 * (1 + slant)).sqrt() * (1 - 1e-9))[front].all()
    large = front & (fast > 3)
    ratio = (exact / fast)[large]
    # seen along their longest axis, needles are far smaller than the fast one says; most are near it
    assert 0.75 < ratio.median() < 1.15 and ratio.max() < 1.6


def test_both_agree_on_what_is_round_and_central():
    means = torch.zeros(1, 3, dtype=torch.float64)
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).double(), torch.full((1, 3), 0.2).double()
    _, _, _, viewmats, Ks = scene()
    gaussians = (means, quats, scales, viewmats, Ks)
    torch.testing.assert_close(
        radii(gaussians, eps2d=0.0), radii(gaussians, method="fast"), rtol=1e-6, atol=0
    )
    assert radii(gaussians, method="fast")[0, 0].item() == pytest.approx(3 * 0.2 * 200 / 17**0.5)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_footprints_are_clamped_and_0_behind(method):
    gaussians = scene()
    behind = directions(gaussians)[0] <= 0.01
    plain, clamped = radii(gaussians, method=method), radii(gaussians, method=method, r_min=4, r_max=9)
    assert behind.any() and not plain[behind].any() and not clamped[behind].any()
    torch.testing.assert_close(clamped[~behind], plain[~behind].clamp(4, 9))
    twice = radii(gaussians, method=method, sigmas=6.0)
    torch.testing.assert_close(twice, 2 * plain)


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_footprints_have_finite_gradients(method):
    means, quats, scales, viewmats, Ks = scene()
    means[0] = -viewmats[0, :3, :3].T @ viewmats[0, :3, 3]  # at the eye
    scales[1:20], scales[20:40] = 0.1, 1e-12
    leaves = [tensor.requires_grad_() for tensor in (means, quats, scales)]
    radii((*leaves, viewmats, Ks), method=method).square().sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
    assert scales.grad[1:20].abs().sum() > 0


def test_footprint_refuses():
    with pytest.raises(ValueError, match="did you mean 'fast'"):
        radii(scene(), method="fst")
    with pytest.raises(ValueError, match="footprint.r_max"):
        radii(scene(), r_min=3, r_max=2)
