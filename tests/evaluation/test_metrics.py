"""Metrics against other implementations, by hand, and under masks."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splatexp.evaluation import metrics
from splatexp.evaluation.metrics import available_metrics, protocol_id, psnr, psnr_u8, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two similar pictures [2,40,52,3]."""
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 10, 13, 3, generator=g).repeat_interleave(4, 1).repeat_interleave(4, 2)
    return image, (image + 0.1 * torch.randn(image.shape, generator=g)).clamp(0, 1)


def _mask(image: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(*image.shape[:3], 1)
    mask[:, 7:30, 9:40] = 1
    return mask


def test_psnr_by_hand_and_by_torchmetrics(pair) -> None:
    a, b = torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 0.1)
    assert psnr(b, a) == pytest.approx(20.0, abs=1e-5)
    metrics.patch_torchvision_import()
    from torchmetrics.functional.image import peak_signal_noise_ratio

    image, target = pair
    per_view = {"dim": (1, 2, 3), "reduction": "elementwise_mean"}
    value = peak_signal_noise_ratio(image, target, data_range=1.0, **per_view)
    assert psnr(image, target) == pytest.approx(float(value), abs=1e-4)  # torchmetrics sums in float32


def test_psnr_is_the_mean_over_views_clamps_and_stays_finite(pair) -> None:
    image, target = pair
    each = [psnr(image[i : i + 1], target[i : i + 1]) for i in range(2)]
    assert psnr(image, target) == pytest.approx(sum(each) / 2)
    assert psnr(image * 3 - 1, target) == psnr((image * 3 - 1).clamp(0, 1), target)
    assert psnr(image, image) == pytest.approx(100)


def test_psnr_u8_rounds_both_sides() -> None:
    a, b = torch.full((1, 2, 2, 3), 100.4 / 255), torch.full((1, 2, 2, 3), 99.6 / 255)
    assert psnr_u8(a, b) == pytest.approx(100)
    c = torch.full((1, 2, 2, 3), 100.6 / 255)
    assert psnr_u8(c, b) == pytest.approx(20 * torch.log10(torch.tensor(255.0)).item(), abs=1e-4)


def _ssim_by_hand(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The map [C,H-10,W-10,3] in float64, by definition: no padding."""
    x = torch.arange(11, dtype=torch.float64) - 5
    g = torch.exp(-x.square() / (2 * 1.5**2))
    window = (g[:, None] * g / g.sum() ** 2)[None, None]

    def blur(values: torch.Tensor) -> torch.Tensor:
        planes = values.permute(0, 3, 1, 2).flatten(0, 1)[:, None]
        out = torch.nn.functional.conv2d(planes, window)
        return out.reshape(len(values), 3, *out.shape[2:]).permute(0, 2, 3, 1)

    a, b = image.double(), target.double()
    ma, mb = blur(a), blur(b)
    va, vb, ab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))


def test_ssim_is_torchmetrics_on_the_valid_crop(pair) -> None:
    image, target = pair
    # float32 convolutions: E[x^2] - E[x]^2 loses about 1e-7 / C2
    assert ssim(image, target) == pytest.approx(float(_ssim_by_hand(image, target).mean()), abs=2e-5)
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 11 px a side"):
        ssim(image[:, :10], target[:, :10])


def test_masks_select_pixels(pair) -> None:
    image, target = pair
    mask = _mask(image)
    assert psnr(image, target, mask) == pytest.approx(psnr(image[:, 7:30, 9:40], target[:, 7:30, 9:40]))
    filled = torch.where(mask > 0.5, image, target)
    inside = mask[:, 5:-5, 5:-5]
    by_hand = (_ssim_by_hand(filled, target).mean(-1, keepdim=True) * inside).sum() / inside.sum()
    assert ssim(image, target, mask) == pytest.approx(float(by_hand), abs=2e-5)
    for metric in (psnr, psnr_u8, ssim):
        assert metric(image, target, torch.ones_like(mask)) == pytest.approx(metric(image, target), abs=1e-6)
        ruined = torch.where(mask > 0.5, image, torch.rand(image.shape))
        assert metric(ruined, target, mask) == metric(image, target, mask)  # outside counts for nothing
        with pytest.raises(ValueError, match="mask: expected at least one pixel"):
            metric(image, target, torch.zeros_like(mask))


def test_lpips_without_weights_is_left_out_with_the_reason(tmp_path: Path) -> None:
    found, skipped = available_metrics()
    assert list(found) == ["psnr", "psnr_u8", "ssim"]
    assert list(skipped) == ["lpips_vgg", "lpips_alex", "lpips_vgg01"]
    assert "vgg16-397923af.pth" in skipped["lpips_vgg"] and "evaluate.lpips_weights" in skipped["lpips_vgg"]
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"not these")
    skipped = available_metrics(str(tmp_path))[1]
    assert "expected a SHA-256 that begins with 397923af" in skipped["lpips_vgg01"]
    assert "alexnet-owt-7be5be79.pth does not exist" in skipped["lpips_alex"]


@pytest.fixture(scope="module")
def alex(tmp_path_factory) -> Path:
    """A folder with a backbone of random weights under a name that fits its bytes."""
    metrics.patch_torchvision_import()
    from torchvision.models import alexnet

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), folder / "random.pth")
    digest = hashlib.sha256((folder / "random.pth").read_bytes()).hexdigest()
    return (folder / "random.pth").rename(folder / f"alexnet-owt-{digest[:8]}.pth")


def test_lpips_is_the_packages_own(alex: Path, monkeypatch) -> None:
    monkeypatch.setitem(metrics.BACKBONES, "alex", alex.name)
    found, skipped = available_metrics(str(alex.parent))
    assert set(skipped) == {"lpips_vgg", "lpips_vgg01"}
    distance = found["lpips_alex"]
    g = torch.Generator().manual_seed(3)
    image, target = torch.rand(2, 70, 81, 3, generator=g), torch.rand(2, 70, 81, 3, generator=g)
    network = metrics._lpips_model("alex", str(alex.parent))
    with torch.no_grad():
        own = network(image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2), normalize=True).mean()
    assert distance(image, target) == pytest.approx(float(own), rel=1e-5)
    assert distance(image, image) == 0
    mask = _mask(image)
    assert distance(image, target, torch.ones_like(mask)) == pytest.approx(float(own), rel=1e-5)
    ruined = torch.where(mask > 0.5, image, torch.rand(image.shape))
    assert distance(ruined, target, mask) == distance(image, target, mask)
    mistaken = metrics._lpips_metric(network, normalize=False)
    assert mistaken(image, target) != pytest.approx(distance(image, target), rel=1e-3)
    with pytest.raises(ValueError, match="at least 64 px"):
        distance(image[:, :40], target[:, :40])


def test_protocol_id_reads_and_follows_the_definitions(monkeypatch) -> None:
    assert protocol_id("every8", 2).startswith("splatexp-1.every8.x2.")
    assert protocol_id("own", 1, True, "ffffff").startswith("splatexp-1.own.x1.masked.on-ffffff.")
    assert protocol_id().startswith("splatexp-1.own.x1.")
    before = protocol_id()
    monkeypatch.setitem(metrics.DEFINITIONS, "clamp", "none")
    assert protocol_id() != before


def test_importing_the_metrics_costs_nothing() -> None:
    code = "import sys, splatexp.evaluation.metrics; "
    code += "print({'torch', 'torchmetrics', 'lpips'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"
