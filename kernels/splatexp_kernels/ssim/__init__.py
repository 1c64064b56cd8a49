"""Structural similarity per pixel, for the loss; reported numbers come from torchmetrics."""

from torch import Tensor

from splatexp_kernels import dispatch

__all__ = ["ssim"]


def ssim(image: Tensor, target: Tensor, *, backend: str = "cpu") -> Tensor:
    """Return the SSIM of every pixel and channel: 11x11 Gaussian window, sigma 1.5 px, zeros outside the
    image.

    Args:
        image: [C,H,W,D] in [0,1].
        target: [C,H,W,D] in [0,1]; no gradient.

    Returns: map [C,H,W,D] in [-1,1].
    Gradients: image.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Wang et al. 2004, eq. 13, C1 = 0.01^2, C2 = 0.03^2.
    """
    sizes = dispatch.check_tensors(backend, {"image": (image, "C H W D"), "target": (target, "C H W D")})
    for name, size in sizes.items():
        dispatch.check_range(f"{name} of image [C, H, W, D]", size, 1)
    return dispatch.backend_module("ssim", backend).ssim(image, target.detach())
