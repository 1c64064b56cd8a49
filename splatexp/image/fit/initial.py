"""Gaussians to start a picture from: where they lie, how large they are, and which colours they take.

Notation: a picture [H,W,D] with values about [0,1]; N Gaussians; Sigma [N] as a `Covariance`, px^2.
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
from splatexp.image.fit.quadtree import leaves
from splatexp.image.fit.solve import Blend, solve
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.rng import generator

READ_BY = {  # setting of `Start` -> the kinds that it is for; the others serve all
    "uniform": ("gradient", "dither"),
    "power": ("gradient", "dither", "delaunay", "quadtree"),
    "blur": ("gradient", "dither", "delaunay"),
    "path": ("network",),
}
THINNEST = 0.3  # px: no Gaussian starts with a smaller standard deviation


class Rows(NamedTuple):
    """Gaussians to start from."""

    means: Tensor  # [N,2] px
    covariance: Covariance  # of [N]
    colors: Tensor  # [N,D], what they add to the background


class Placed(NamedTuple):
    """Where Gaussians lie and how far it is from one to the next, before they have colours."""

    means: Tensor  # [N,2] px
    covariance: Covariance  # of [N], of the patch that each is to cover: a square of side h has h^2


@dataclass(frozen=True)
class Start:
    """How the first Gaussians are made.

    kind: a name in KINDS; what one of them does not read is refused.
    uniform: the share of the Gaussians that is spread evenly.
    power: the density follows the gradient's length to this power; of `quadtree`, the claim the variance.
    blur: lengths of gradients are means over a square of so many times the mean spacing.
    spread: standard deviations in shares of the patch's side.
    solve: steps of a least-squares solve for the colours; 0: means of the picture under the Gaussians.
    path: of `network`, its file; "": the one that is shipped.
    """

    kind: str = "gradient"
    uniform: float = 0.2
    power: float = 1.0
    blur: float = 1.0
    spread: float = 0.4
    solve: int = 0
    path: str = ""

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_range("uniform", self.uniform, 0, 1)
        check_range("power", self.power, 0)
        check_range("blur", self.blur, 0)
        check_range("spread", self.spread, 1e-3)
        check_range("solve", self.solve, 0)
        for name, kinds in READ_BY.items():
            if self.kind not in kinds and getattr(self, name) != (default := getattr(Start, name)):
                got = f"got {getattr(self, name)!r} with {self.kind}, which does not read it"
                raise ValueError(f"{name}: expected {default!r}, {got}")

    def __call__(
        self, picture: Tensor, count: int, *, seed: int = 0, background: Tensor | None = None,
        weights: float = 1.0, mode: str = "sum", top_k: int = 0, backend: str = "cpu",
    ) -> Rows:  # fmt: skip
        """`count` Gaussians for a picture [H,W,D] on a background [D] (None: black), from `seed` alone.

        Raises: ValueError for a count that the kind cannot place; what `network` may raise.
        """
        check_range("count", count, 1)
        height, width, _ = picture.shape
        means, patch = KINDS[self.kind](self, picture, count, generator("image", seed))
        least = THINNEST**2
        share = self.spread**2
        covariance = Covariance(patch.xx * share, patch.xy * share, patch.yy * share, patch.det * share**2)
        covariance = covariance.widened((least - _smallest(covariance)).clamp_min(0))
        shapes = torch.stack(covariance[:3], -1)
        heights = means.new_full((count,), weights)
        blend = Blend(
            means, *conics("direct", shapes, heights), heights, (width, height),
            mode=mode, top_k=top_k, backend=backend,
        )  # fmt: skip
        wanted = picture if background is None else picture - background
        colors = blend.overlap(wanted)
        if self.solve:
            colors = solve(blend, wanted, colors, steps=self.solve).colors
        return Rows(means, covariance, colors)

    def map(self, picture: Tensor, count: int) -> Tensor:
        """The density [H,W] that `gradient`, `dither` and `delaunay` place their points by."""
        height, width, _ = picture.shape
        side = (height * width / count) ** 0.5
        strength = density.edges(picture, self.blur * side).pow(self.power)
        return density.mixed(strength, count, self.uniform)


def uniform(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """Anywhere, all of one size."""
    height, width, _ = picture.shape
    means = torch.rand(count, 2, generator=random) * torch.tensor([width, height])
    return Placed(means, _round(means.new_full((count,), (height * width / count) ** 0.5)))


def gradient(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """Drawn after the length of the gradient, and some anywhere.

    Source: Zhang et al. 2025, "Image-GS", eq. 5. Differs: sizes follow the density.
    """
    wanted = start.map(picture, count)
    means = density.sampled(wanted, count, random)
    return Placed(means, _round(_sides(wanted, means)))


def dither(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """The same density by error diffusion, which leaves neither heaps nor holes."""
    wanted = density.capped(start.map(picture, count))
    means = density.dithered(wanted, count, random)
    return Placed(means, _round(_sides(wanted, means)))


def grid(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """Rows of equal height, of which some have one Gaussian more than others."""
    height, width, _ = picture.shape
    lines = min(count, max(1, round((count * height / width) ** 0.5)))
    ends = torch.arange(1, lines + 1) * count // lines
    length = torch.diff(ends, prepend=ends.new_zeros(1))
    line = torch.repeat_interleave(torch.arange(lines), length)
    place = torch.arange(count) - (ends - length)[line]
    across, down = width / length[line], torch.full((count,), height / lines)
    means = torch.stack([(place + 0.5) * across, (line + 0.5) * down], 1)
    zero = torch.zeros(count)
    return Placed(means, Covariance(across**2, zero, down**2, (across * down) ** 2))


def quadtree(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """Leaves of a tree that halves what is least flat: see `leaves`."""
    x0, y0, x1, y1 = leaves(picture, count, start.power).float().unbind(1)
    across, down, zero = x1 - x0, y1 - y0, torch.zeros(count)
    means = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2], 1)
    return Placed(means, Covariance(across**2, zero, down**2, (across * down) ** 2))


def delaunay(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """One per triangle between dithered points, of the triangle's own shape.

    Source: Zeng et al. 2025, "Instant GaussianImage", section 3.3.
    Differs: moments of the triangle, not an ellipse through its vertices; no network moves them.
    """
    from scipy.spatial import Delaunay

    height, width, _ = picture.shape
    border = _border(width, height, count)
    inner = max(0, (count - len(border) + 3) // 2)  # of n points, h on the hull: 2n - 2 - h triangles
    points = border
    if inner:
        wanted = density.mixed(start.map(picture, inner), inner, 0.0)
        points = torch.cat([border, density.dithered(wanted, inner, random)])
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
    return Placed(means, Covariance(xx, xy, yy, area.square() * (4 / 3)))


def network(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """As a small network, trained on fitted pictures, says: density, sizes and directions.

    Raises: OSError, ValueError where its checkpoint is missing or none of its own.
    """
    from splatexp.image.fit.network import predicted

    wanted, covariances = predicted(picture, count, start.path)
    wanted = density.capped(wanted)
    means = density.dithered(wanted, count, random)
    found = [density.at(each, means) for each in covariances]
    share = Start.spread**2  # sizes are as it says where `spread` is as it stands
    return Placed(
        means, Covariance(found[0] / share, found[1] / share, found[2] / share, found[3] / share**2)
    )


def pursuit(start: Start, picture: Tensor, count: int, random: torch.Generator) -> Placed:
    """Where matched filters of several sizes answer most, and of those sizes; the rest at random.

    Source: Mallat and Zhang 1993, "Matching pursuits"; see `pursue`.
    """
    found = pursue(picture - picture.mean((0, 1)), count)
    fine = Placed(found.means, _round(found.deviations / start.spread))
    if len(found.means) == count:
        return fine
    rest = uniform(start, picture, count - len(found.means), random)
    both = zip(fine.covariance, rest.covariance, strict=True)
    return Placed(torch.cat([fine.means, rest.means]), Covariance(*map(torch.cat, both)))


KINDS: dict[str, Callable[[Start, Tensor, int, torch.Generator], Placed]] = {
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
    """Of squares of these sides [N], px."""
    zero = torch.zeros_like(side)
    return Covariance(side**2, zero, side**2, side**4)


def _sides(wanted: Tensor, means: Tensor) -> Tensor:
    """Side of the square [N] that one Gaussian has to itself where it lies, px."""
    return density.at(wanted, means).clamp_min(1e-9).rsqrt()


def _smallest(cov: Covariance) -> Tensor:
    """The smaller eigenvalue [N], px^2."""
    largest = (cov.xx + cov.yy) / 2 + torch.hypot((cov.xx - cov.yy) / 2, cov.xy)
    return cov.det / largest


def _border(width: int, height: int, count: int) -> Tensor:
    """Points [P,2] round a picture, corners first, as far apart as triangles of equal size have them."""
    side = (2.3 * width * height / count) ** 0.5
    nx, ny = (max(1, round(length / side)) for length in (width, height))
    x, y = torch.arange(1, nx) * (width / nx), torch.arange(1, ny) * (height / ny)
    corners = torch.tensor([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]])
    sides = [torch.stack([x, torch.full_like(x, end)], 1) for end in (0.0, float(height))]
    sides += [torch.stack([torch.full_like(y, end), y], 1) for end in (0.0, float(width))]
    return torch.cat([corners, *sides])
