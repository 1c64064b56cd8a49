"""One Adam step in place, in plain torch.

Source: Kingma and Ba 2015, algorithm 1; rows that are not updated: Mallick et al. 2024, "Taming 3DGS",
    section 3.3.
"""

import torch


@torch.no_grad()
def adam(param, grad, exp_avg, exp_avg_sq, *, step, lr, beta1, beta2, eps, visible) -> None:
    rows = slice(None) if visible is None else visible
    gradient = grad[rows]
    exp_avg[rows] = beta1 * exp_avg[rows] + (1 - beta1) * gradient
    exp_avg_sq[rows] = beta2 * exp_avg_sq[rows] + (1 - beta2) * gradient**2
    mean = exp_avg[rows] / (1 - beta1**step)
    spread = (exp_avg_sq[rows] / (1 - beta2**step)).sqrt()
    param[rows] -= lr * mean / (spread + eps)
