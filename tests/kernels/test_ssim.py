import pytest
import torch
from support.kernel_cases import assert_close, run

from splatexp_kernels.ssim import ssim

SHAPES = [
    (1, 1, 1, 1),
    (1, 17, 33, 3),
    (2, 48, 64, 3),
    (1, 11, 5, 2),
    (2, 33, 17, 4),
    (1, 30, 130, 1),
    (1, 21, 19, 8),
]


def pair(C, H, W, D, seed=0):
    """An image with edges and flat parts, and a noisy other one."""
    g = torch.Generator().manual_seed(seed)
    target = (
        (torch.rand(C, -(-H // 8), -(-W // 8), D, generator=g))
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)
    )
    target = target[:, :H, :W].contiguous()
    return (target + 0.1 * torch.randn(C, H, W, D, generator=g)).clamp(0, 1), target


def compared(image, target, backend, dtype):
    def function(image):
        return {"map": ssim(image, target.to(dtype), backend=backend)}

    return run(function, {"image": image}, dtype)


def test_reference_gradient_by_finite_differences():
    image, target = pair(2, 7, 6, 2)
    target = target.double()
    function = lambda x: ssim(x, target, backend="reference")  # noqa: E731
    assert torch.autograd.gradcheck(function, [image.double().requires_grad_()])


def test_reference_agrees_with_torchmetrics_inside():
    from splatexp.evaluation.metrics import patch_torchvision_import

    patch_torchvision_import()
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, target = (x.double() for x in pair(2, 40, 37, 3))
    planes = [x.movedim(-1, 1) for x in (image, target)]
    _, theirs = structural_similarity_index_measure(*planes, data_range=1.0, return_full_image=True)
    inside = slice(None), slice(5, -5), slice(5, -5)  # at the border torchmetrics reflects the image
    ours = ssim(image, target, backend="reference")
    assert_close("map", ours[inside], theirs.movedim(1, -1)[inside], 1e-9)


def test_reference_agrees_with_one_two_dimensional_convolution():
    image, target = (x.double().movedim(-1, 1).flatten(0, 1)[:, None] for x in pair(2, 23, 31, 3))
    d = torch.arange(11).double() - 5
    window = torch.exp(-(d[:, None] ** 2 + d[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[None, None]

    def mean(x):
        return torch.nn.functional.conv2d(x, window, padding=5)

    mx, my = mean(image), mean(target)
    vx, vy = mean(image**2) - mx**2, mean(target**2) - my**2
    luminance = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
    structure = (2 * (mean(image * target) - mx * my) + 9e-4) / (vx + vy + 9e-4)
    expected = (luminance * structure)[:, 0].unflatten(0, (2, 3)).movedim(1, -1)
    image, target = (x.double() for x in pair(2, 23, 31, 3))
    assert_close("map", ssim(image, target, backend="reference"), expected, 1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_agrees_with_reference(shape, isa):
    image, target = pair(*shape)
    expected = compared(image, target, "reference", torch.float64)
    actual = compared(image, target, "cpu", torch.float32)
    # E[x^2] - E[x]^2 keeps 6e-8, and C2 = 9e-4 divides it where an image is flat: 1e-4 at worst
    assert_close("map", actual["map"], expected["map"], 2e-4)
    assert_close("v_image", actual["v_image"], expected["v_image"], 5e-4)


def test_equal_images_are_alike(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    image, _ = pair(1, 20, 20, 3)
    found = compared(image, image, backend, dtype)
    assert_close("map", found["map"], torch.ones(1, 20, 20, 3), 1e-5)
    assert found["v_image"].abs().max() < 1e-2  # the maximum: 0 but for rounding


def test_flat_images_and_strides(backend):
    dtype = torch.float64 if backend == "reference" else torch.float32
    flat = torch.zeros(1, 16, 16, 3, dtype=dtype)
    assert_close("map", ssim(flat, flat, backend=backend), torch.ones(1, 16, 16, 3), 1e-6)
    image, target = (x.to(dtype) for x in pair(1, 20, 24, 3))
    turned = [x.movedim(-1, 1).contiguous().movedim(1, -1).requires_grad_() for x in (image, target)]
    assert not turned[0].is_contiguous()
    plain = image.clone().requires_grad_()
    ssim(turned[0], turned[1], backend=backend).mean().backward()
    ssim(plain, target, backend=backend).mean().backward()
    assert_close("v_image", turned[0].grad, plain.grad, 1e-6)
    assert turned[1].grad is None
