"""SSIM in Triton, under its interpreter where there is no GPU."""

import pytest
import torch
from support.kernel_cases import assert_close, run

from splatexp_kernels.ssim import ssim

SHAPES = [(1, 1, 1, 1), (2, 7, 13, 1), (1, 17, 33, 3), (1, 2, 45, 3)]  # the last takes two blocks of columns


def pair(C, H, W, D, *, contrast=1.0):
    """A noisy image with a flat half, and another like it, around 1/2."""
    g = torch.Generator().manual_seed(3)
    target = torch.rand(C, H, W, D, generator=g)
    target[:, :, W // 2 :] = 0.8
    image = target + 0.1 * torch.randn(C, H, W, D, generator=g)
    return tuple(0.5 + contrast * (x.clamp(0, 1) - 0.5) for x in (image, target))


def compared(image, target, backend, dtype):
    def function(image):
        return {"map": ssim(image, target.to(dtype), backend=backend)}

    return run(function, {"image": image}, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_reference(shape):
    image, target = pair(*shape)
    expected = compared(image, target, "reference", torch.float64)
    actual = compared(image, target, "gpu", torch.float32)
    # as on the CPU: E[x^2] - E[x]^2 keeps 6e-8, and C2 = 9e-4 divides it where an image is flat
    assert_close("map", actual["map"], expected["map"], 2e-4)
    assert_close("v_image", actual["v_image"], expected["v_image"], 5e-4)


def test_outside_of_the_image_stands_zero():
    """A white image is darker at its rim: the same values further inside a larger one are not."""
    white = torch.ones(1, 12, 12, 1)
    framed = torch.nn.functional.pad(white, (0, 0, 6, 6, 6, 6))
    target, framed_target = 0.25 * white, 0.25 * framed
    inside = slice(None), slice(6, -6), slice(6, -6)
    found = ssim(white, target, backend="gpu")
    assert_close("map", found, ssim(framed, framed_target, backend="gpu")[inside], 1e-4)  # flat, see above
    assert (found[0, 0, 0] - found[0, 6, 6]).abs() > 0.01


def test_equal_and_flat_images_are_alike():
    image, _ = pair(1, 8, 9, 1)
    found = compared(image, image, "gpu", torch.float32)
    assert_close("map", found["map"], torch.ones_like(image), 1e-5)
    assert found["v_image"].abs().max() < 1e-2  # the maximum: 0 but for rounding
    for value in (0.0, 1.0):
        flat = torch.full((1, 4, 6, 1), value)
        assert_close("map", ssim(flat, flat, backend="gpu"), torch.ones_like(flat), 1e-5)


def test_strides_strips_and_calls_leave_the_bits(monkeypatch):
    from splatexp_kernels.ssim import gpu

    image, target = pair(1, 7, 4, 2)
    found = []
    for strip in ((8, 64), (3, 4)):
        monkeypatch.setattr(gpu, "STRIP", strip)
        turned = [x.movedim(-1, 1).contiguous().movedim(1, -1).requires_grad_() for x in (image, target)]
        assert not turned[0].is_contiguous()
        ssim(*turned, backend="gpu").mean().backward()
        found.append(turned[0].grad)
        assert turned[1].grad is None
    plain = image.clone().requires_grad_()
    ssim(plain, target, backend="gpu").mean().backward()
    assert all(torch.equal(plain.grad, v_image) for v_image in found)


def test_no_derivatives_are_kept_where_nobody_asks(monkeypatch):
    from splatexp_kernels.ssim import gpu

    image, target = pair(1, 5, 5, 1)
    kept, launch = [], gpu._launch

    def launched(*args, **switches):
        kept.append(switches["KEEP"])
        launch(*args, **switches)

    monkeypatch.setattr(gpu, "_launch", launched)
    plain = ssim(image, target, backend="gpu")
    assert torch.equal(plain, ssim(image.requires_grad_(), target, backend="gpu").detach())
    assert kept == [False, True]
