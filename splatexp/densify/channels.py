"""Channels of a survey: what one training view says about each Gaussian."""

import torch
from torch import Tensor

from splatexp.densify.statistics import Sight, channel


def _share(sight: Sight, of: str, name: str) -> Tensor:
    """A field [1,N,M] of the shares at the map of a name."""
    assert sight.shares is not None
    return getattr(sight.shares, of)[0, :, list(sight.maps).index(name)].float() * sight.factor**2


def _field(sight: Sight, name: str) -> Tensor:
    """A field [1,N] of the shares."""
    assert sight.shares is not None
    return getattr(sight.shares, name)[0].float()


@channel("weight_sum", survey=True)
def weight(sight: Sight) -> Tensor:
    """Sum of the weights."""
    return _field(sight, "weight_sum") * sight.factor**2


@channel("weight_max", survey=True)
def peak(sight: Sight) -> Tensor:
    """Largest weight. Source: Niemeyer et al. 2024, "RadSplat", eq. 8."""
    return _field(sight, "weight_max")


@channel("pixels", survey=True)
def pixels(sight: Sight) -> Tensor:
    """Pixels that it has a part in."""
    return _field(sight, "pixels") * sight.factor**2


@channel("dominant", survey=True)
def dominant(sight: Sight) -> Tensor:
    """Pixels in which no weight is larger. Source: Fang and Wang 2024, "Mini-Splatting", section 4.1."""
    return _field(sight, "dominant") * sight.factor**2


@channel("weighted", survey=True, maps=("error",))
def error(sight: Sight) -> Tensor:
    """Sum of weight times error: E_k of a view. Source: Rota Bulo et al. 2024, eq. 5."""
    return _share(sight, "weighted", "error")


@channel("weighted", survey=True, maps=("edge",))
def edge(sight: Sight) -> Tensor:
    """Sum of weight times edge."""
    return _share(sight, "weighted", "edge")


@channel("covered", survey=True, maps=("edge",))
def edge_cover(sight: Sight) -> Tensor:
    """Sum of the edge over the pixels it has a part in, by its mean. Source: Deng et al. 2025."""
    covered = _share(sight, "covered", "edge")
    return covered / covered[sight.seen].mean().clamp_min(1e-12) if sight.seen.any() else covered


@channel("hits", survey=True, maps=("residual",))
def hits(sight: Sight) -> Tensor:
    """Badly drawn pixels that it has a part in. Source: Ren et al. 2025, "FastGS"."""
    return _share(sight, "hits", "residual")


@channel("hits", survey=True, maps=("error", "residual"))
def hits_loss(sight: Sight) -> Tensor:
    """The same, times the view's mean error."""
    return hits(sight) * sight.maps["error"].mean()


@channel("removal", survey=True)
def removal(sight: Sight) -> Tensor:
    """Squared change of the picture if it were left out, summed. Source: GaussianPOP 2026, eq. 6."""
    return _field(sight, "removal") * sight.factor**2


@channel("removal_loss", survey=True)
def removal_loss(sight: Sight) -> Tensor:
    """Rise of the squared error if it were left out; below 0 for what does harm."""
    return _field(sight, "removal_loss") * sight.factor**2


@channel("sensitivity", survey=True)
def sensitivity(sight: Sight) -> Tensor:
    """Squared derivative of the colours by its falloff, summed. Source: Hanson et al. 2025, Speedy-Splat."""
    return _field(sight, "sensitivity") * sight.factor**2


@channel("pixels", survey=True)
def footprint(sight: Sight) -> Tensor:
    """Radius on screen, px: three standard deviations of the longer axis, without the rasterizer's blur."""
    assert sight.footprints is not None
    return torch.where(sight.seen, sight.footprints, 0)


@channel("pixels", survey=True, maps=("error",))
def error_near(sight: Sight) -> Tensor:
    """Mean error of the 9 x 9 pixels round its centre."""
    pixels = sight.maps["error"]
    blurred = torch.nn.functional.avg_pool2d(pixels[None], 9, 1, 4, count_include_pad=False)[0]
    x, y = sight.render.means2d[0].floor().long().unbind(-1)
    inside = sight.seen & (x >= 0) & (x < pixels.shape[1]) & (y >= 0) & (y < pixels.shape[0])
    value = blurred[y.clamp(0, pixels.shape[0] - 1), x.clamp(0, pixels.shape[1] - 1)]
    return torch.where(inside, value, 0)


@channel(
    "covered", "distance", "pixels", "weight_sum", survey=True, maps=("error", "taming"),
    needs=("grad2d.sum", "views"),
)  # fmt: skip
def taming(sight: Sight) -> Tensor:
    """Nine features, each by its median, mixed; times the view's error.

    Source: Mallick et al. 2024, "Taming 3DGS", section 3.2, with the coefficients of its code.
    """
    splats = sight.splats
    scales = splats.drawn()[0]
    gradient = splats.row_stat("grad2d.sum") / splats.row_stat("views").clamp_min(1)
    depth = splats.means @ sight.camera.viewmats[0, 2, :3] + sight.camera.viewmats[0, 2, 3]
    features = (
        (25, gradient), (100, splats.opacities), (5, depth), (10, sight.render.radii[0].amax(1).float()),
        (25, scales.prod(1)), (50, _field(sight, "distance")), (10, _share(sight, "covered", "taming")),
        (0.1, _field(sight, "pixels")), (50, _field(sight, "weight_sum")),
    )  # fmt: skip
    total = sum(coefficient * _by_median(feature, sight.seen) for coefficient, feature in features)
    return 50 * sight.maps["error"].mean() * torch.where(sight.seen, total, 0)  # type: ignore[arg-type]


def _by_median(feature: Tensor, seen: Tensor) -> Tensor:
    positive = feature[seen & (feature > 0)]
    return feature / positive.median() if len(positive) else torch.zeros_like(feature)
