"""The photometric loss: how far a render is from its photograph, as weighted terms whose sum is the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.settings.checks import check_range
from splatexp_kernels.ssim import ssim

ERROR_KINDS = ("l1", "l2", "ssim")  # of an error map


@dataclass
class Loss:
    """The loss l1 * L1 + ssim * (1 - SSIM) + l2 * MSE, each a mean over pixels and channels.

    Source: Kerbl et al. 2023, eq. 7.
    """

    l1: float = 0.8
    ssim: float = 0.2
    l2: float = 0.0

    def __post_init__(self) -> None:
        check_range("loss.l1", self.l1, 0)
        check_range("loss.ssim", self.ssim, 0)
        check_range("loss.l2", self.l2, 0)
        if not self.l1 + self.ssim + self.l2:
            raise ValueError("loss.l1, loss.ssim, loss.l2: expected at least one above 0, got 0 for all")

    def __call__(
        self, image: Tensor, target: Tensor, mask: Tensor | None = None, *, backend: str
    ) -> dict[str, Tensor]:
        """Return the weighted terms by name.

        Args:
            image, target: [C,H,W,3], the image unclamped.
            mask: [C,H,W,1] of 0 and 1. Pixels outside it are not counted; inside the windows of SSIM they
                look like the target.
            backend: of the SSIM kernel.
        """
        terms: dict[str, Tensor] = {}
        l1: float | Tensor = self.l1
        if mask is not None:
            image = torch.where(mask > 0, image, target)
            fraction = (
                mask.mean().double().clamp_min(1e-8)
            )  # stays a tensor, so that nothing waits for a device
            l1 = (self.l1 / fraction).float()
            fraction = fraction.float()
        if self.l1:
            terms["l1"] = (image - target).abs().mean() * l1
        if self.l2:
            squares = (image - target).square().mean() * self.l2
            terms["l2"] = squares if mask is None else squares / fraction
        if self.ssim:
            similarity = ssim(image, target, backend=backend)
            if mask is None:
                dissimilarity = 1 - similarity.mean()
            else:
                dissimilarity = ((1 - similarity) * mask).mean() / fraction
            terms["ssim"] = dissimilarity * self.ssim
        return terms


def error_map(image: Tensor, target: Tensor, kind: str, *, backend: str) -> Tensor:
    """Return the error of every pixel, [C,H,W], the mean over its channels.

    Args:
        image, target: [C,H,W,3], the image unclamped.
        kind: l1 (the absolute difference), l2 (its square) or ssim (1 - SSIM).
        backend: of the SSIM kernel.
    """
    if kind == "ssim":
        return 1 - ssim(image, target, backend=backend).mean(-1)
    difference = image - target
    return (difference.abs() if kind == "l1" else difference.square()).mean(-1)


def training_psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Return the PSNR of a training view in dB, with the image clamped to [0,1].

    It shows how training goes. Results are measured by `splatexp.evaluation.metrics`.
    """
    squares = (image.detach().clamp(0, 1) - target).square()
    error = squares.mean() if mask is None else (squares * mask).sum() / (3 * mask.sum()).clamp_min(1)
    return -10 * float(error.clamp_min(1e-10).log10())


@torch.no_grad()
def training_ssim(image: Tensor, target: Tensor, mask: Tensor | None = None, *, backend: str) -> float:
    """Return the SSIM of a training view as the loss computes it; like `training_psnr`, not for results."""
    if mask is None:
        return float(ssim(image, target, backend=backend).mean())
    values = ssim(torch.where(mask > 0, image, target), target, backend=backend)
    return 1 - float(((1 - values) * mask).mean() / mask.mean().clamp_min(1e-8))
