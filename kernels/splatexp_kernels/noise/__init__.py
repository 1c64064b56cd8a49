"""Langevin noise that moves Gaussians along their own covariance."""

import torch
from torch import Tensor

from splatexp_kernels import dispatch

__all__ = ["noise"]


def noise(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    uid: Tensor,
    *,
    lr: float,
    sharpness: float = 100.0,
    threshold: float = 0.005,
    seed: int,
    step: int,
    backend: str = "cpu",
) -> None:
    """Add lr * gate * Sigma eta to `means` in place, where eta is standard normal and Sigma is each row's
    covariance.

    gate = sigmoid(sharpness (threshold - opacity)): opaque rows do not move, exactly so below a gate of 1e-8.
    eta depends on seed, step and the row's uid alone; so the result depends neither on threads nor on the
    order of the rows.

    Args:
        means: [N,3] world units, contiguous.
        quats: [N,4] (w,x,y,z), any length but 0.
        scales: [N,3] standard deviations, world units.
        opacities: [N] in [0,1].
        uid: [N] int64, the identity of each row.
        lr: length of a step, world units^-1.
        sharpness, threshold: of the gate, in units of 1/opacity and of opacity.
        seed: in [0, 2^63).
        step: of the run, from 0.

    Rows whose displacement is not finite do not move. There are no gradients.

    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Kheradmand et al. 2024, "3DGS as MCMC", eq. 8-9; Salmon et al. 2011 for the generator.
    """
    tensors = {
        "means": (means, "N 3"), "quats": (quats, "N 4"), "scales": (scales, "N 3"),
        "opacities": (opacities, "N"),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    if not means.is_contiguous():
        raise ValueError(f"means: expected a contiguous tensor, got strides {means.stride()}")
    if uid.dtype != torch.int64:
        raise TypeError(f"uid: expected int64, got {str(uid.dtype).removeprefix('torch.')}")
    if tuple(uid.shape) != (sizes["N"],):
        raise ValueError(f"uid: expected [{sizes['N']}], got {tuple(uid.shape)}")
    for name, value, low, high in (
        ("lr", lr, 0, float("inf")), ("sharpness", sharpness, 0, float("inf")),
        ("threshold", threshold, 0, 1), ("seed", seed, 0, 2**63 - 1), ("step", step, 0, 2**63 - 1),
    ):  # fmt: skip
        dispatch.check_range(name, value, low, high)
    dispatch.backend_module("noise", backend).noise(
        means.detach(), quats.detach(), scales.detach(), opacities.detach(), uid,
        lr=lr, sharpness=sharpness, threshold=threshold, seed=seed, step=step,
    )  # fmt: skip
