"""View-dependent colours of Gaussians from spherical harmonics of degree 0 to 4."""

from torch import Tensor

from splatexp_kernels import dispatch

__all__ = ["sh"]


def sh(
    degree: int,
    means: Tensor,
    centers: Tensor,
    sh0: Tensor,
    shN: Tensor,
    visible: Tensor | None = None,
    *,
    backend: str = "cpu",
) -> Tensor:
    """Return the colours of N Gaussians seen from C camera centres: 0.5 + sum of basis times coefficients, at
    least 0.

    Args:
        degree: 0 to 4; the first (degree+1)^2 coefficients count.
        means: [N,3] world units.
        centers: [C,3] camera centres, world units.
        sh0: [N,1,3] coefficient of degree 0.
        shN: [N,K-1,3] the others, K at least (degree+1)^2.
        visible: [C,N] bool; the colours of other rows are 0. None: all are visible.

    Returns: colors [C,N,3], linear in the coefficients before the clamp.
    Gradients: means, centers, sh0, shN; exactly 0 for invisible Gaussians and unused coefficients.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Sloan 2013, "Efficient Spherical Harmonic Evaluation"; signs and offset as in 3DGS.
    """
    tensors = {
        "means": (means, "N 3"), "centers": (centers, "C 3"),
        "sh0": (sh0, "N 1 3"), "shN": (shN, "N K-1 3"),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    dispatch.check_range("degree", degree, 0, 4)
    needed = (degree + 1) ** 2 - 1
    if sizes["K-1"] < needed:
        raise ValueError(f"shN: expected at least {needed} rows for degree {degree}, got {sizes['K-1']}")
    dispatch.check_mask("visible", visible, (sizes["C"], sizes["N"]))
    return dispatch.backend_module("sh", backend).sh(degree, means, centers, sh0, shN, visible)
