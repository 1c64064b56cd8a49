"""View-dependent colour from real spherical harmonics, in plain torch.

Source: Sloan 2013, "Efficient Spherical Harmonic Evaluation", JCGT 2(2), eq. 1-8; signs as in 3DGS.
"""

from math import factorial, pi, sqrt

import torch
from torch import Tensor


def sh(degree, means, centers, sh0, shN, visible) -> Tensor:
    C, N = len(centers), len(means)
    if visible is None:
        visible = torch.ones(C, N, dtype=torch.bool, device=means.device)
    camera, row = visible.nonzero(as_tuple=True)
    directions = torch.nn.functional.normalize(means[row] - centers[camera], dim=-1)
    coefficients = torch.cat([sh0, shN], 1)[row, : (degree + 1) ** 2]
    colors = (basis(degree, directions)[:, :, None] * coefficients).sum(1)
    return means.new_zeros(C, N, 3).index_put((camera, row), (0.5 + colors).clamp_min(0))


def basis(degree: int, directions: Tensor) -> Tensor:
    """Real spherical harmonics [M,(degree+1)^2] of unit directions [M,3], ordered l, then m = -l..l.

    With x + iy = sin(theta) e^(i phi), the polynomial of order m is N(l,m) P(l,m)(z) times the
    imaginary (m < 0) or real (m > 0) part of (x + iy)^|m|; P is the associated Legendre
    function without its power of sin(theta), with the Condon-Shortley sign (-1)^m.
    """
    x, y, z = directions.unbind(-1)
    values: dict[tuple[int, int], Tensor] = {}
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    diagonal = torch.ones_like(z)  # P(m,m) = (-1)^m (2m-1)!!
    for m in range(degree + 1):
        before, legendre = torch.zeros_like(z), diagonal
        for l in range(m, degree + 1):
            norm = sqrt((2 * l + 1) / (4 * pi) * factorial(l - m) / factorial(l + m) * (2 if m else 1))
            values[l, m] = norm * legendre * real
            if m:
                values[l, -m] = norm * legendre * imaginary
            following = ((2 * l + 1) * z * legendre - (l + m) * before) / (l + 1 - m)
            before, legendre = legendre, following
        real, imaginary = x * real - y * imaginary, x * imaginary + y * real
        diagonal = diagonal * -(2 * m + 1)
    return torch.stack([values[l, m] for l in range(degree + 1) for m in range(-l, l + 1)], -1)
