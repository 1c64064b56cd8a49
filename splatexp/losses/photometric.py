"""How far a picture is from a photograph: named, weighted terms, whose sum is the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.settings.checks import check_range
from splatexp_kernels.ssim import ssim


@dataclass
class Loss:
    """l1 * L1 + ssim * (1 - SSIM) + l2 * MSE, the mean over pixels and channels.

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
        """Terms by name, weighted.

        Args:
            image, target: [C,H,W,3], the image unclamped.
            mask: [C,H,W,1] of 0 and 1; the rest looks perfect to SSIM's windows and counts for nothing.
        """
        if mask is not None:
            image = torch.where(mask > 0, image, target)
        terms, l1 = {}, self.l1
        if mask is not None:
            share = mask.mean().double().clamp_min(1e-8)  # a tensor: nothing waits for a device
            l1, share = (self.l1 / share).float(), share.float()
        if self.l1:
            terms["l1"] = (image - target).abs().mean() * l1
        if self.l2:
            squares = (image - target).square().mean() * self.l2
            terms["l2"] = squares if mask is None else squares / share
        if self.ssim:
            likeness = ssim(image, target, backend=backend)
            lost = 1 - likeness.mean() if mask is None else ((1 - likeness) * mask).mean() / share
            terms["ssim"] = lost * self.ssim
        return terms


ERRORS = ("l1", "l2", "ssim")


def error_map(image: Tensor, target: Tensor, kind: str, *, backend: str) -> Tensor:
    """How far each pixel is off, [C,H,W]: |difference| or its square, or 1 - SSIM, mean over the channels.

    Args:
        image, target: [C,H,W,3], the image unclamped.
    """
    if kind == "ssim":
        return 1 - ssim(image, target, backend=backend).mean(-1)
    difference = image - target
    return (difference.abs() if kind == "l1" else difference.square()).mean(-1)


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio of a training view, dB, clamped to [0,1]; for show, not for results."""
    squares = (image.detach().clamp(0, 1) - target).square()
    error = squares.mean() if mask is None else (squares * mask).sum() / (3 * mask.sum()).clamp_min(1)
    return -10 * float(error.clamp_min(1e-10).log10())


@torch.no_grad()
def likeness(image: Tensor, target: Tensor, mask: Tensor | None = None, *, backend: str) -> float:
    """SSIM of a training view by the training kernel, as in the loss; for show, not for results."""
    if mask is None:
        return float(ssim(image, target, backend=backend).mean())
    values = ssim(torch.where(mask > 0, image, target), target, backend=backend)
    return 1 - float(((1 - values) * mask).mean() / mask.mean().clamp_min(1e-8))
