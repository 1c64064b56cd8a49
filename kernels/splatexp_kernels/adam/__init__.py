"""Adam's update of one parameter, in place and fused."""

from torch import Tensor

from splatexp_kernels import dispatch

__all__ = ["adam"]


def adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-15,
    visible: Tensor | None = None,
    backend: str = "cpu",
) -> None:
    """Update `param`, `exp_avg` and `exp_avg_sq` in place, without gradients.

    Args:
        param, grad, exp_avg, exp_avg_sq: [N,...] of one shape; the three that change must be contiguous.
        step: number of this update, from 1.
        lr: learning rate, in units of `param`.
        beta1, beta2: decay of the moments, in [0,1).
        eps: added to the root of the second moment.
        visible: [N] bool; other rows are not updated, nor are their moments. None: all rows are.

    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Kingma and Ba 2015, algorithm 1; rows that are not updated: Mallick et al. 2024, "Taming 3DGS".
    """
    dims = " ".join(["N", *(str(size) for size in param.shape[1:])])
    tensors = {
        "param": (param, dims), "grad": (grad, dims),
        "exp_avg": (exp_avg, dims), "exp_avg_sq": (exp_avg_sq, dims),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    for name, (tensor, _) in tensors.items():
        if name != "grad" and not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    dispatch.check_range("step", step, 1)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{name}: expected a number in [0, 1), got {beta}")
    dispatch.check_range("eps", eps, 0)
    dispatch.check_mask("visible", visible, (sizes["N"],))
    dispatch.backend_module("adam", backend).adam(
        param.detach(), grad.detach(), exp_avg, exp_avg_sq,
        step=step, lr=lr, beta1=beta1, beta2=beta2, eps=eps, visible=visible,
    )  # fmt: skip
