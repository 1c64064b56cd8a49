"""All ops in a row, from Gaussians to the gradients of a loss."""

import pytest
import torch
from support.kernel_cases import assert_close, scene

import splatexp_kernels as sk
from splatexp_kernels.adam import adam
from splatexp_kernels.blend import Attribution, attribute, blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import tiles

TRAINED = ("means", "quats", "scales", "opacities", "sh0", "shN")


def step(s, backend, dtype, degree=3):
    """Every output and gradient of one training step, and the parameters after it."""
    leaves = {
        name: getattr(s, name).detach().to(dtype).clone().requires_grad_() for name in (*TRAINED, "viewmats")
    }
    means, quats, scales, opacities, sh0, shN, viewmats = leaves.values()
    view = {"width": s.width, "height": s.height, "backend": backend}
    p = project(means, quats, scales, opacities, viewmats, s.Ks.to(dtype), prefilter=True, **view)
    centers = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[:, :, 0]
    colors = sh(degree, means, centers, sh0, shN, (p.radii > 0).all(-1), backend=backend)
    channels = torch.cat([colors, p.depths[..., None]], -1)
    t = tiles(p.means2d, p.radii, p.depths, **view)
    absgrad = torch.zeros_like(p.means2d)
    shown = opacities * p.compensations
    image, alpha = blend(p.means2d, p.conics, channels, shown, t, absgrad=absgrad, **view)
    target = torch.rand(image.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    loss = 1 - ssim(image, target, backend=backend).mean() + (image - target).abs().mean() + alpha.mean()
    loss.backward()
    found = {"image": image, "alpha": alpha, "absgrad": absgrad, "loss": loss[None]}
    found |= attribute(
        p.means2d, p.conics, shown, t, maps=target, want=Attribution._fields, colors=colors,
        image=image[..., :3], target=target[..., :3], **view,
    )._asdict()  # fmt: skip
    for name, leaf in leaves.items():
        found[f"v_{name}"] = leaf.grad
    for name in TRAINED:
        param, moments = leaves[name].detach().clone(), torch.zeros(2, *leaves[name].shape, dtype=dtype)
        adam(param, leaves[name].grad, *moments, step=1, lr=1e-3, backend=backend)
        found[name] = param
    return {name: tensor.detach() for name, tensor in found.items()}


def test_cpu_agrees_with_reference(isa):
    s = scene(200, 2, 33, 17)
    expected, actual = step(s, "reference", torch.float64), step(s, "cpu", torch.float32)
    # Decisions at cut-offs differ between float32 and float64, and all ops' errors add up; the tight bounds
    # are those of each op alone.
    for name in ("image", "alpha", "loss"):
        assert_close(name, actual[name], expected[name], 1e-3)
    for name in (*(f"v_{name}" for name in (*TRAINED, "viewmats")), "absgrad", "weight_sum"):
        error, scale = (actual[name] - expected[name]).norm(), expected[name].norm()
        assert error < 1e-3 * scale, f"{name}: {error / scale:.1e}"


def test_one_and_two_threads_give_the_same_bits(isa):
    s = scene(5000, 2, 160, 120, seed=1)
    before = sk.get_num_threads()
    found = []
    for threads in (1, 2, 2):
        sk.set_num_threads(threads)
        found.append(step(s, "cpu", torch.float32))
    sk.set_num_threads(before)
    for name, first in found[0].items():
        assert first.isfinite().all(), name
        assert all(torch.equal(first, other[name]) for other in found[1:]), name


@pytest.mark.parametrize("size", [(0, 1, 17, 33), (1, 2, 1, 1), (63, 2, 16, 16)], ids=str)
def test_any_size(size, backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    found = step(scene(*size), backend, dtype)
    for name, tensor in found.items():
        assert tensor.isfinite().all(), name
    assert found["v_shN"].shape == (size[0], 24, 3)


def test_broken_gaussians_leave_the_others_alone(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    clean = scene(120, 1, 33, 17)
    clean.means[100:] = torch.tensor([0.0, 0.0, -50.0])  # behind every camera
    broken = scene(120, 1, 33, 17)
    nan, inf = float("nan"), float("inf")
    for row, (name, value) in enumerate(
        [("means", nan), ("means", inf), ("means", -inf), ("quats", 0.0), ("quats", nan), ("quats", inf)]
        + [("scales", nan), ("scales", inf), ("opacities", nan), ("opacities", inf), ("opacities", -1.0)]
        + [("means", 1e30), ("means", -1e30), ("opacities", 0.0)]
        + [("means", torch.tensor([0.0, 0.0, -50.0]))] * 6
    ):
        getattr(broken, name)[100 + row] = value
    with_broken, without = step(broken, backend, dtype, degree=4), step(clean, backend, dtype, degree=4)
    for name, tensor in with_broken.items():
        if name in TRAINED:
            continue  # Adam leaves NaN where there was NaN
        assert tensor.isfinite().all(), name
        if name.startswith("v_") and name != "v_viewmats":
            assert (tensor[100:] == 0).all(), name
    for name in ("image", "alpha", "v_means", "v_scales", "v_shN"):
        assert_close(name, with_broken[name], without[name], 1e-6)


def test_strided_inputs_are_the_same(backend):
    """Views with strides, as a user's slicing makes them, give what contiguous tensors give."""
    dtype = torch.float64 if backend == "reference" else torch.float32
    s = scene(63, 2, 33, 17)
    plain = step(s, backend, dtype)
    s = scene(63, 2, 33, 17)
    for name in ("means", "quats", "scales", "sh0", "shN", "viewmats"):
        tensor = getattr(s, name)
        setattr(s, name, torch.stack([tensor, torch.full_like(tensor, 9.0)], -1)[..., 0])
    strided = step(s, backend, dtype)
    for name in plain:
        assert torch.equal(strided[name], plain[name]), name
