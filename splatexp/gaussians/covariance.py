"""Covariances of 2D Gaussians: several parametrizations of one in three numbers, and the conics that
`blend2d` takes.

Notation: Sigma = [[xx, xy], [xy, yy]] px^2 with determinant det; R(t) is the rotation by t radians, from x to
    y. Each parametrization computes its own det: as xx yy - xy^2 it would cancel in float32 for a thin
    Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from splatexp.settings.checks import check_choice
from splatexp_kernels.constants import ALPHA_MIN


class Covariance(NamedTuple):
    """Covariances, px^2, with their determinants, px^4: four tensors of one shape."""

    xx: Tensor
    xy: Tensor
    yy: Tensor
    det: Tensor

    def widened(self, variance: Tensor | float) -> Covariance:
        """Return the covariances with `variance` (px^2, at least 0) added to both axes: the footprint of a
        pixel or of a filter.

        Source: Zwicker et al. 2001, eq. 31; as a filter of its own per Gaussian: "GaussianImage++" 2026.
        """
        det = self.det + variance * (self.xx + self.yy) + variance * variance
        return Covariance(self.xx + variance, self.xy, self.yy + variance, det)


class Parametrization(NamedTuple):
    """A way to store covariances: one function from three numbers [...,3] to a `Covariance`, and its
    inverse.
    """

    covariance: Callable[[Tensor], Covariance]
    shapes: Callable[[Covariance], Tensor]


def cholesky(shapes: Tensor) -> Covariance:
    """Return Sigma = L L^T of (l1, l2, l3) px, with L = [[l1, 0], [l2, l3]]; the numbers may have any sign.

    Source: Zhang et al. 2024, "GaussianImage", section 3.1.
    """
    l1, l2, l3 = shapes.unbind(-1)
    return Covariance(l1 * l1, l1 * l2, l2 * l2 + l3 * l3, (l1 * l3).square())


def log_cholesky(shapes: Tensor) -> Covariance:
    """Return Sigma of (ln l1, l2 / l3, ln l3): `cholesky` whose axes stay positive and change by ratios.

    A step in any of the three changes the image by the same amount whatever the size. The middle number is a
    shear: the shift along x, in standard deviations of y, that goes with one standard deviation along y.
    """
    l1, shear, l3 = shapes.unbind(-1)
    l1, l3 = l1.exp(), l3.exp()
    l2 = shear * l3
    return Covariance(l1 * l1, l1 * l2, l2 * l2 + l3 * l3, (l1 * l3).square())


def rotation_scale(shapes: Tensor) -> Covariance:
    """Return Sigma = R(t) diag(s1^2, s2^2) R(t)^T of (s1, s2, t), px and radians; the sign of s has no
    effect.

    Source: Zhang et al. 2024, "GaussianImage", section 3.1.
    """
    s1, s2, angle = shapes.unbind(-1)
    x, y, u, v = angle.cos(), angle.sin(), s1 * s1, s2 * s2
    return Covariance(x * x * u + y * y * v, x * y * (u - v), y * y * u + x * x * v, u * v)


def log_rotation_scale(shapes: Tensor) -> Covariance:
    """Return Sigma of (ln s1, ln s2, t): `rotation_scale` whose scales stay positive and change by ratios.

    Source: Kerbl et al. 2023, section 4, with an angle for the quaternion.
    """
    return rotation_scale(torch.cat([shapes[..., :2].exp(), shapes[..., 2:]], -1))


def inverse_scale(shapes: Tensor) -> Covariance:
    """Return Sigma of (1/s1, 1/s2, t), 1/px and radians: `rotation_scale` by reciprocals; a reciprocal of 0
    has no Sigma.

    Source: Zhang et al. 2025, "Image-GS".
    """
    return rotation_scale(torch.cat([1 / shapes[..., :2], shapes[..., 2:]], -1))


def direct(shapes: Tensor) -> Covariance:
    """Return Sigma of (xx, xy, yy) px^2 itself; nothing keeps it positive definite.

    Source: "LIG" 2025; "GaussianImage++" 2026.
    """
    xx, xy, yy = shapes.unbind(-1)
    return Covariance(xx, xy, yy, xx * yy - xy * xy)


def inverse(shapes: Tensor) -> Covariance:
    """Return Sigma of (a, b, c) px^-2, the conic: Sigma^-1 = [[a, b], [b, c]]; nothing keeps it positive
    definite.
    """
    a, b, c = shapes.unbind(-1)
    det = 1 / (a * c - b * b)
    return Covariance(c * det, -b * det, a * det, det)


def _rotation_scale(cov: Covariance) -> Tensor:
    half = (cov.xx - cov.yy) / 2
    s1 = ((cov.xx + cov.yy) / 2 + torch.hypot(half, cov.xy)).sqrt()
    return torch.stack([s1, cov.det.sqrt() / s1, torch.atan2(cov.xy, half) / 2], -1)


def _log_rotation_scale(cov: Covariance) -> Tensor:
    s1, s2, angle = _rotation_scale(cov).unbind(-1)
    return torch.stack([s1.log(), s2.log(), angle], -1)


def _inverse_scale(cov: Covariance) -> Tensor:
    s1, s2, angle = _rotation_scale(cov).unbind(-1)
    return torch.stack([1 / s1, 1 / s2, angle], -1)


def _cholesky(cov: Covariance) -> Tensor:
    l1 = cov.xx.sqrt()
    return torch.stack([l1, cov.xy / l1, cov.det.sqrt() / l1], -1)


def _log_cholesky(cov: Covariance) -> Tensor:
    l1, l2, l3 = _cholesky(cov).unbind(-1)
    return torch.stack([l1.log(), l2 / l3, l3.log()], -1)


def _direct(cov: Covariance) -> Tensor:
    return torch.stack(cov[:3], -1)


def _inverse(cov: Covariance) -> Tensor:
    return torch.stack([cov.yy, -cov.xy, cov.xx], -1) / cov.det[..., None]


PARAMETRIZATIONS = {
    "cholesky": Parametrization(cholesky, _cholesky),
    "log_cholesky": Parametrization(log_cholesky, _log_cholesky),
    "rotation_scale": Parametrization(rotation_scale, _rotation_scale),
    "log_rotation_scale": Parametrization(log_rotation_scale, _log_rotation_scale),
    "direct": Parametrization(direct, _direct),
    "inverse": Parametrization(inverse, _inverse),
    "inverse_scale": Parametrization(inverse_scale, _inverse_scale),
}


def conics(
    parametrization: str, shapes: Tensor, weights: Tensor, *, variance: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the conics and radii of covariances in any parametrization, as `tiles` and `blend2d` take them.

    Args:
        parametrization: a name in PARAMETRIZATIONS.
        shapes: [...,3] the numbers of the parametrization.
        weights: [...] weights of the Gaussians at their means.
        variance: [...] or a number, px^2, added to both axes.

    Returns: conics [...,3] px^-2, and radii [...,2] px: the exact box in which a weight can reach ALPHA_MIN.
        A Gaussian is culled, with radii of 0 and gradients of exactly 0, where its weight is below ALPHA_MIN,
        where its covariance is not positive definite or not finite, and where it is so thin that the square
        of its gradient, which Adam stores, would overflow: 0.7e-3 px if round, a needle of 1 px at 1.5e-5 px.
    Gradients: shapes, variance (through the conics alone).
    Raises: ValueError for an unknown parametrization.
    """
    check_choice("parametrization", parametrization, PARAMETRIZATIONS)
    covariance = PARAMETRIZATIONS[parametrization].covariance
    with torch.no_grad():
        found = covariance(shapes).widened(variance)
        reach = (2 * torch.log(weights / ALPHA_MIN))[..., None]
        radii = (reach * torch.stack([found.xx, found.yy], -1)).sqrt()
        seen = (found.det > 0) & (found.xx > 0) & (weights >= ALPHA_MIN) & radii.isfinite().all(-1)
        steepest = (found.xx + found.yy) / found.det / found.det  # in the gradient of a conic
        seen &= found.xy.isfinite() & found.det.isfinite()
        seen &= steepest < torch.finfo(steepest.dtype).max ** 0.5
        radii = torch.where(seen[..., None], radii, 0.0)
        one = torch.ones_like(weights)
        harmless = PARAMETRIZATIONS[parametrization].shapes(Covariance(one, torch.zeros_like(one), one, one))
    # culled Gaussians are replaced before anything is computed of them: 0 times infinity is no gradient of 0
    cov = covariance(torch.where(seen[..., None], shapes, harmless)).widened(torch.where(seen, variance, 0.0))
    return torch.stack([cov.yy, -cov.xy, cov.xx], -1) / cov.det[..., None], radii
