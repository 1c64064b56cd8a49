"""Opacities of children: which opacity each of n copies needs so that together they look like their parent.

Notation: o and s are the opacity and the scales of the parent; o' and s' are those of each of its n children.
"""

import torch
from torch import Tensor

RELOCATED_OPACITY_MIN = 0.005  # MCMC raises relocated rows to this opacity: below it they would be dead again
COPIES_MAX = 51  # MCMC's formula treats more copies as this many
TRANSMITTANCE_MIN = 1e-7  # 1 - o is at least this, so that o stays below 1 in float32 too
OPACITY_MIN = 1e-10  # o is at least this, so that its logit is finite

OPACITY_RULES = {
    "copy": "o' = o",
    "revised": "o' = 1 - (1 - o)^(1/n): n children transmit as much light as the parent did",
    "mcmc": "as revised, with scales that keep the integral of alpha along a line through the mean",
    "scaled": "o' = opacity_factor * o",
}


def relocation(opacities: Tensor, scales: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacities [M] and scales [M,D] of n copies in one place that look like the one row did.

    1 - (1 - o')^n = o keeps the peak. The scales keep the integral of the composited alpha along a line
    through the mean: s' = s o / sum_{k=1..n} C(n,k) (-1)^{k+1} o'^k / sqrt(k).

    Args:
        opacities: [M] in [0,1].
        scales: [M,D] standard deviations.
        counts: [M] number n of copies, the parent among them; more than 51 count as 51.

    Source: Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", which writes the
        same binomials as a double sum. As in their code, o' is raised to 0.005 after s' is computed.
    """
    o = opacities.double().clamp(0, 1 - TRANSMITTANCE_MIN)
    n = counts.double().clamp(1, COPIES_MAX)
    child = revised_opacities(o, n)
    integral, term = torch.zeros_like(child), -torch.ones_like(child)
    for k in range(1, int(n.max()) + 1 if len(n) else 1):
        term = term * -child * (n - k + 1).clamp_min(0) / k  # C(n,k) (-1)^(k+1) o'^k; 0 where k > n
        integral += term / k**0.5
    factor = torch.where(integral > 0, o / integral, torch.ones_like(o))
    child = child.clamp(RELOCATED_OPACITY_MIN, 1 - TRANSMITTANCE_MIN)
    return child.to(opacities.dtype), (scales * factor[:, None]).to(scales.dtype)


def revised_opacities(opacities: Tensor, counts: Tensor) -> Tensor:
    """Return o' = 1 - (1 - o)^{1/n}, with which n rows in a line transmit as much light as one did.

    Source: Rota Bulo et al. 2024, "Revising Densification in Gaussian Splatting".
    """
    return -torch.expm1(torch.log1p(-opacities) / counts)


def child_opacities(rule: str, factor: float, logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the opacity logits [M] of each of n children, and what to add to their log scales [M] (float64).

    Args:
        rule: one of OPACITY_RULES.
        factor: multiplies the parent's opacity; only the rule `scaled` reads it.
        logits: [M] opacity logits of the parents.
        counts: [M] number n of children.
    """
    log_scale_change = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    if rule == "copy":
        return logits, log_scale_change
    opacities = logits.double().sigmoid()
    if rule == "scaled":
        return finite_logits(factor * opacities), log_scale_change
    if rule == "revised":
        return finite_logits(
            revised_opacities(opacities.clamp_max(1 - TRANSMITTANCE_MIN), counts)
        ), log_scale_change
    opacities, scale_factor = relocation(opacities, torch.ones_like(log_scale_change)[:, None], counts)
    return finite_logits(opacities), scale_factor[:, 0].log()


def finite_logits(opacities: Tensor) -> Tensor:
    """Return finite logits of opacities [M] (float64, in [0,1]), which are kept away from 0 and 1."""
    return opacities.clamp(OPACITY_MIN, 1 - TRANSMITTANCE_MIN).logit()
