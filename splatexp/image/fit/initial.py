"""The first Gaussians of an image: their positions, their sizes and their colours.

Notation: an image [H,W,D] with values about [0,1]; N Gaussians; Sigma [N] as a `Covariance`, px^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from splatexp.densify.pursuit import pursue
from splatexp.gaussians.covariance import Covariance, conics
from splatexp.image.fit import density
from splatexp.image.fit.quadtree import quadtree_leaves
from splatexp.image.fit.solve import BlendOperator, solve_colors
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.rng import generator

READ_BY = {  # setting of `Initializer` -> the methods that read it; all methods read the settings not named
    "uniform_fraction": ("gradient", "dither"),
    "density_power": ("gradient", "dither", "delaunay", "quadtree"),
    "density_blur": ("gradient", "dither", "delaunay"),
    "init_path": ("network",),
}
MIN_SIGMA = 0.3  # px: no Gaussian starts with a smaller standard deviation


class InitialGaussians(NamedTuple):
    """The Gaussians that a fit starts from."""

    means: Tensor  # [N,2] px
    covariance: Covariance  # of [N]
    colors: Tensor  # [N,D], what they add to the background


class Placement(NamedTuple):
    """Positions of Gaussians and the patch that each has to cover, before they have colours."""

    means: Tensor  # [N,2] px
    covariance: Covariance  # of [N], of the patch that each has to cover: a square of side h has h^2


@dataclass(frozen=True)
class Initializer:
    """Makes the first Gaussians of an image. A setting that the chosen method does not use is refused."""

    init: str = "gradient"  # a name in INITIALIZERS
    uniform_fraction: float = 0.2  # of the Gaussians is spread evenly
    # the density follows |gradient|^power; `quadtree`: priority = area variance^power
    density_power: float = 1.0
    density_blur: float = 1.0  # gradients are averaged over a square of this many mean spacings
    size_factor: float = 0.4  # standard deviations over the side of the patch
    # of a least-squares solve for the colours; 0: means of the image under the Gaussians
    solve_steps: int = 0
    init_path: str = ""  # file of the network for `network`; "": the one that is shipped

    def __post_init__(self) -> None:
        check_choice("init", self.init, INITIALIZERS)
        check_range("uniform_fraction", self.uniform_fraction, 0, 1)
        check_range("density_power", self.density_power, 0)
        check_range("density_blur", self.density_blur, 0)
        check_range("size_factor", self.size_factor, 1e-3)
        check_range("solve_steps", self.solve_steps, 0)
        for name, methods in READ_BY.items():
            default, value = getattr(Initializer, name), getattr(self, name)
            if self.init not in methods and value != default:
                raise ValueError(
                    f"{name}: expected {default!r} with init={self.init}, which does not use "
                    f"it, got {value!r}"
                )

    def __call__(
        self,
        image: Tensor,
        count: int,
        *,
        seed: int = 0,
        background: Tensor | None = None,
        weights: float = 1.0,
        mode: str = "sum",
        top_k: int = 0,
        backend: str = "cpu",
    ) -> InitialGaussians:
        """Return `count` Gaussians for an image [H,W,D] on a background [D] (None: black), from `seed` alone.

        Raises: ValueError for a count that the method cannot place; what `network` may raise.
        """
        check_range("count", count, 1)
        height, width, _ = image.shape
        means, patch = INITIALIZERS[self.init](self, image, count, generator("image", seed))
        factor = self.size_factor**2
        covariance = Covariance(
            patch.xx * factor, patch.xy * factor, patch.yy * factor, patch.det * factor**2
        )
        covariance = covariance.widened((MIN_SIGMA**2 - _min_eigenvalue(covariance)).clamp_min(0))
        shapes = torch.stack(covariance[:3], -1)
        heights = means.new_full((count,), weights)
        blend = BlendOperator(
            means,
            *conics("direct", shapes, heights),
            heights,
            (width, height),
            mode=mode,
            top_k=top_k,
            backend=backend,
        )
        wanted = image if background is None else image - background
        colors = blend.initial_colors(wanted)
        if self.solve_steps:
            colors = solve_colors(blend, wanted, colors, steps=self.solve_steps).colors
        return InitialGaussians(means, covariance, colors)

    def density_map(self, image: Tensor, count: int) -> Tensor:
        """Return the density [H,W] from which `gradient`, `dither` and `delaunay` place their points."""
        height, width, _ = image.shape
        side = (height * width / count) ** 0.5
        strength = density.gradient_magnitude(image, self.density_blur * side).pow(self.density_power)
        return density.mix_uniform(strength, count, self.uniform_fraction)


def uniform(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place Gaussians of one size uniformly at random."""
    height, width, _ = image.shape
    means = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    return Placement(means, _round(means.new_full((count,), (height * width / count) ** 0.5)))


def gradient(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Sample positions from a density that follows the length of the image's gradient, with some spread
    uniformly.

    Source: Zhang et al. 2025, "Image-GS", eq. 5. Differs: sizes follow the density.
    """
    wanted = start.density_map(image, count)
    means = density.sample_points(wanted, count, random)
    return Placement(means, _round(_sides(wanted, means)))


def dither(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place positions by error diffusion of the same density, which leaves neither clusters nor holes."""
    wanted = density.cap_density(start.density_map(image, count))
    means = density.dither_points(wanted, count, random)
    return Placement(means, _round(_sides(wanted, means)))


def grid(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place Gaussians in lines of equal height, of which some have one Gaussian more than others."""
    height, width, _ = image.shape
    lines = min(count, max(1, round((count * height / width) ** 0.5)))
    ends = torch.arange(1, lines + 1) * count // lines
    length = torch.diff(ends, prepend=ends.new_zeros(1))
    line = torch.repeat_interleave(torch.arange(lines), length)
    place = torch.arange(count) - (ends - length)[line]
    across, down = width / length[line], torch.full((count,), height / lines)
    means = torch.stack([(place + 0.5) * across, (line + 0.5) * down], 1)
    zero = torch.zeros(count)
    return Placement(means, Covariance(across**2, zero, down**2, (across * down) ** 2))


def quadtree(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place one Gaussian in each leaf of a tree that splits the least uniform parts; see
    `quadtree_leaves`.
    """
    x0, y0, x1, y1 = quadtree_leaves(image, count, start.density_power).float().unbind(1)
    across, down, zero = x1 - x0, y1 - y0, torch.zeros(count)
    means = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2], 1)
    return Placement(means, Covariance(across**2, zero, down**2, (across * down) ** 2))


def delaunay(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place one Gaussian per triangle between dithered points, of the triangle's own shape.

    Source: Zeng et al. 2025, "Instant GaussianImage", section 3.3.
    Differs: it takes the moments of the triangle, not an ellipse through its vertices; no network moves them.
    """
    from scipy.spatial import Delaunay

    height, width, _ = image.shape
    border = _border(width, height, count)
    inner = max(0, (count - len(border) + 3) // 2)  # of n points, h on the hull: 2n - 2 - h triangles
    points = border
    if inner:
        wanted = density.mix_uniform(start.density_map(image, inner), inner, 0.0)
        points = torch.cat([border, density.dither_points(wanted, inner, random)])
    corners = points[torch.from_numpy(Delaunay(points.double().numpy()).simplices).long()]
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).abs() / 2
    keep = area.argsort(descending=True, stable=True)[:count].sort().values
    corners, area = corners[keep], area[keep]
    means = corners.mean(1)
    away = corners - means[:, None]
    # a square of side h has variances h^2 / 12, and a triangle the mean square of its corners over 4
    xx, yy = away.square().sum(1).unbind(1)
    xy = away.prod(2).sum(1)
    return Placement(means, Covariance(xx, xy, yy, area.square() * (4 / 3)))


def network(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place Gaussians by the density, sizes and directions that a small network predicts, which was trained
    on fitted images.

    Raises: OSError, ValueError where its checkpoint is missing or is not one of its own.
    """
    from splatexp.image.fit.network import predict

    wanted, covariances = predict(image, count, start.init_path)
    wanted = density.cap_density(wanted)
    means = density.dither_points(wanted, count, random)
    found = [density.pixels_at(each, means) for each in covariances]
    factor = Initializer.size_factor**2  # at the default size_factor, sizes are as the network predicts them
    return Placement(
        means, Covariance(found[0] / factor, found[1] / factor, found[2] / factor, found[3] / factor**2)
    )


def pursuit(start: Initializer, image: Tensor, count: int, random: torch.Generator) -> Placement:
    """Place Gaussians where matched filters of several sizes respond most, with those sizes; the rest at
    random.

    Source: Mallat and Zhang 1993, "Matching pursuits".
    """
    found = pursue(image - image.mean((0, 1)), count)
    fine = Placement(found.means, _round(found.deviations / start.size_factor))
    if len(found.means) == count:
        return fine
    rest = uniform(start, image, count - len(found.means), random)
    both = zip(fine.covariance, rest.covariance, strict=True)
    return Placement(torch.cat([fine.means, rest.means]), Covariance(*map(torch.cat, both)))


INITIALIZERS: dict[str, Callable[[Initializer, Tensor, int, torch.Generator], Placement]] = {
    "random": uniform,
    "gradient": gradient,
    "grid": grid,
    "quadtree": quadtree,
    "dither": dither,
    "delaunay": delaunay,
    "network": network,
    "pursuit": pursuit,
}


def _round(side: Tensor) -> Covariance:
    """Return the covariance patches of squares with these sides [N], px."""
    zero = torch.zeros_like(side)
    return Covariance(side**2, zero, side**2, side**4)


def _sides(wanted: Tensor, means: Tensor) -> Tensor:
    """Return the side of the square [N] that one Gaussian has to itself where it lies, px."""
    return density.pixels_at(wanted, means).clamp_min(1e-9).rsqrt()


def _min_eigenvalue(cov: Covariance) -> Tensor:
    """Return the smaller eigenvalue [N], px^2."""
    largest = (cov.xx + cov.yy) / 2 + torch.hypot((cov.xx - cov.yy) / 2, cov.xy)
    return cov.det / largest


def _border(width: int, height: int, count: int) -> Tensor:
    """Return points [P,2] around the border of an image, corners first, as far apart as in triangles of equal
    size.
    """
    side = (2.3 * width * height / count) ** 0.5
    nx, ny = (max(1, round(length / side)) for length in (width, height))
    x, y = torch.arange(1, nx) * (width / nx), torch.arange(1, ny) * (height / ny)
    corners = torch.tensor([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]])
    sides = [torch.stack([x, torch.full_like(x, end)], 1) for end in (0.0, float(height))]
    sides += [torch.stack([torch.full_like(y, end), y], 1) for end in (0.0, float(width))]
    return torch.cat([corners, *sides])
