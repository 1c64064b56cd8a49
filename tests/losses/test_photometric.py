import pytest
import torch

from splatexp.losses.photometric import Loss, training_psnr
from splatexp_kernels.ssim import ssim

RANDOM = torch.Generator().manual_seed(0)
IMAGE, TARGET = torch.rand(2, 1, 14, 17, 3, generator=RANDOM)


def test_terms_are_weighted_and_add_up():
    terms = Loss(l1=0.7, ssim=0.3)(IMAGE, TARGET, backend="reference")
    assert terms["l1"].item() == pytest.approx(0.7 * (IMAGE - TARGET).abs().mean().item())
    likeness = ssim(IMAGE, TARGET, backend="reference").mean().item()
    assert terms["ssim"].item() == pytest.approx(0.3 * (1 - likeness))
    assert sum(Loss()(TARGET, TARGET, backend="reference").values()).item() == pytest.approx(0, abs=1e-6)
    assert set(Loss(ssim=0)(IMAGE, TARGET, backend="reference")) == {"l1"}


def test_mask_hides_pixels_from_the_loss():
    mask = torch.zeros(1, 14, 17, 1)
    mask[:, 3:11, 2:9] = 1
    image = IMAGE.clone().requires_grad_()
    terms = Loss()(image, TARGET, mask, backend="reference")
    sum(terms.values()).backward()
    assert not image.grad[(mask == 0).expand_as(IMAGE)].any()
    assert (image.grad[:, 4:10, 3:8] != 0).all()
    inside = (IMAGE - TARGET).abs()[:, 3:11, 2:9].mean().item()
    assert terms["l1"].item() == pytest.approx(0.8 * inside, rel=1e-5)
    wild = torch.where(mask > 0, IMAGE, torch.rand_like(IMAGE))
    again = Loss()(wild, TARGET, mask, backend="reference")
    assert all(again[name].item() == pytest.approx(terms[name].item()) for name in terms)


def test_full_mask_is_no_mask():
    one = Loss()(IMAGE, TARGET, torch.ones(1, 14, 17, 1), backend="reference")
    none = Loss()(IMAGE, TARGET, backend="reference")
    assert all(one[name].item() == pytest.approx(none[name].item(), rel=1e-5) for name in none)


def test_psnr():
    assert training_psnr(TARGET + 0.1, TARGET + 0.2, None) < 100
    assert training_psnr(torch.full((1, 4, 4, 3), 0.4), torch.full((1, 4, 4, 3), 0.5)) == pytest.approx(
        20, abs=1e-4
    )
    mask = torch.zeros(1, 4, 4, 1)
    mask[:, 0, 0] = 1
    image = torch.full((1, 4, 4, 3), 0.5)
    image[:, 0, 0] = 0.4
    assert training_psnr(image, torch.full((1, 4, 4, 3), 0.5), mask) == pytest.approx(20, abs=1e-4)


def test_loss_refuses_nothing_at_all():
    with pytest.raises(ValueError, match="at least one"):
        Loss(l1=0, ssim=0)
