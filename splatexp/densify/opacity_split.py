"""Opacities of the rows that come of one: what n copies must have to look as it did.

Notation: o, s opacity and scales of the parent; o', s' those of each of its n children.
"""

import torch
from torch import Tensor

OPACITY_MIN = 0.005  # MCMC lets no relocated row be fainter: it would be dead again
COPIES_MAX = 51  # n in MCMC's formula is at most this
TRANSPARENCY_MIN = 1e-7  # 1 - o is at least this, so that o is below 1 in float32 too
FAINT = 1e-10  # o is at least this, so that its logit is finite


def relocation(opacities: Tensor, scales: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Opacities [M] and scales [M,D] of n copies in one place that draw what one row drew.

    1 - (1 - o')^n = o keeps the peak; the scales keep the integral of the composited alpha along a line
    through the mean: s' = s o / sum_{k=1..n} C(n,k) (-1)^{k+1} o'^k / sqrt(k).

    Args:
        opacities: [M] in [0,1].
        scales: [M,D] standard deviations.
        counts: [M] n, the parent among them; past 51 it counts as 51.

    Source: Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", there with a double
        sum over the same binomials. As in their code o' is raised to 0.005 once s' is known.
    """
    o = opacities.double().clamp(0, 1 - TRANSPARENCY_MIN)
    n = counts.double().clamp(1, COPIES_MAX)
    each = revised(o, n)
    integral, term = torch.zeros_like(each), -torch.ones_like(each)
    for k in range(1, int(n.max()) + 1 if len(n) else 1):
        term = term * -each * (n - k + 1).clamp_min(0) / k  # C(n,k) (-1)^(k+1) o'^k; 0 where k > n
        integral += term / k**0.5
    factor = torch.where(integral > 0, o / integral, torch.ones_like(o))
    each = each.clamp(OPACITY_MIN, 1 - TRANSPARENCY_MIN)
    return each.to(opacities.dtype), (scales * factor[:, None]).to(scales.dtype)


def revised(opacities: Tensor, counts: Tensor) -> Tensor:
    """o' = 1 - (1 - o)^{1/n}: n in a row let through what one did. Source: Rota Bulo et al. 2024."""
    return -torch.expm1(torch.log1p(-opacities) / counts)


OPACITIES = {
    "copy": "as the parent's",
    "revised": "n of them let through what the parent did",
    "mcmc": "the same, and scales that keep the integral along a line through the mean",
    "scaled": "the parent's times dim",
}


def shared(rule: str, dim: float, logits: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity logits [M] of each of n children, and what is added to their log scales, [M] float64.

    Args:
        rule: one of OPACITIES.
        dim: the factor of `scaled`.
        logits: [M] of the parents.
        counts: [M] n.
    """
    stretch = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    if rule == "copy":
        return logits, stretch
    opacities = logits.double().sigmoid()
    if rule == "scaled":
        return finite_logits(dim * opacities), stretch
    if rule == "revised":
        return finite_logits(revised(opacities.clamp_max(1 - TRANSPARENCY_MIN), counts)), stretch
    opacities, factor = relocation(opacities, torch.ones_like(stretch)[:, None], counts)
    return finite_logits(opacities), factor[:, 0].log()


def finite_logits(opacities: Tensor) -> Tensor:
    """Logits of opacities [M] in [0,1], float64, kept off 0 and 1."""
    return opacities.clamp(FAINT, 1 - TRANSPARENCY_MIN).logit()
