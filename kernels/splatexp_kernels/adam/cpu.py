"""Adam in C++, one pass over memory."""

import torch

from splatexp_kernels import _cpu  # type: ignore[attr-defined]


def adam(param, grad, exp_avg, exp_avg_sq, *, step, lr, beta1, beta2, eps, visible) -> None:
    visible = None if visible is None else visible.contiguous().view(torch.uint8)
    _cpu.adam_step(
        param, grad.contiguous(), exp_avg, exp_avg_sq, visible,
        lr / (1 - beta1**step), beta1, beta2, (1 - beta2**step) ** 0.5, eps,
    )  # fmt: skip
