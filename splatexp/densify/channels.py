"""The channels of a survey: what one training view says about each Gaussian."""

import torch
from torch import Tensor

from splatexp.densify.statistics import Observation, channel


def _mapped(observation: Observation, field: str, pixel_map: str) -> Tensor:
    """Return a field of the attribution [N] for one pixel map, scaled to full resolution."""
    assert observation.attribution is not None
    index = list(observation.pixel_maps).index(pixel_map)
    return getattr(observation.attribution, field)[0, :, index].float() * observation.downscale**2


def _field(observation: Observation, name: str) -> Tensor:
    """Return a field of the attribution [N]."""
    assert observation.attribution is not None
    return getattr(observation.attribution, name)[0].float()


@channel("weight_sum", survey=True)
def weight(observation: Observation) -> Tensor:
    """Return the sum of the blending weights over pixels."""
    return _field(observation, "weight_sum") * observation.downscale**2


@channel("weight_max", survey=True)
def peak(observation: Observation) -> Tensor:
    """Return the largest blending weight.  Source: Niemeyer et al. 2024, "RadSplat", eq. 8."""
    return _field(observation, "weight_max")


@channel("pixels", survey=True)
def pixels(observation: Observation) -> Tensor:
    """Return the number of pixels that it contributes to."""
    return _field(observation, "pixels") * observation.downscale**2


@channel("dominant", survey=True)
def dominant(observation: Observation) -> Tensor:
    """Return the number of pixels in which no other weight is larger.

    Source: Fang and Wang 2024, "Mini-Splatting", section 4.1.
    """
    return _field(observation, "dominant") * observation.downscale**2


@channel("weighted", survey=True, pixel_maps=("error",))
def error(observation: Observation) -> Tensor:
    """Return the sum over pixels of weight times error: E_k of a view.

    Source: Rota Bulo et al. 2024, "Revising Densification", eq. 5.
    """
    return _mapped(observation, "weighted", "error")


@channel("weighted", survey=True, pixel_maps=("edge",))
def edge(observation: Observation) -> Tensor:
    """Return the sum over pixels of weight times edge strength."""
    return _mapped(observation, "weighted", "edge")


@channel("covered", survey=True, pixel_maps=("edge",))
def edge_cover(observation: Observation) -> Tensor:
    """Return the edge strength summed over the pixels that it contributes to, divided by the mean over rows.

    Source: Deng et al. 2025, "Improved-GS".
    """
    covered = _mapped(observation, "covered", "edge")
    if not observation.visible.any():
        return covered
    return covered / covered[observation.visible].mean().clamp_min(1e-12)


@channel("hits", survey=True, pixel_maps=("residual",))
def hits(observation: Observation) -> Tensor:
    """Return the number of high-error pixels that it contributes to.  Source: Ren et al. 2025, "FastGS"."""
    return _mapped(observation, "hits", "residual")


@channel("hits", survey=True, pixel_maps=("error", "residual"))
def hits_loss(observation: Observation) -> Tensor:
    """Return the number of high-error pixels that it contributes to, times the view's mean error."""
    return hits(observation) * observation.pixel_maps["error"].mean()


@channel("removal", survey=True)
def removal(observation: Observation) -> Tensor:
    """Return the squared change of the image, summed over pixels, if it were removed.

    Source: GaussianPOP 2026, eq. 6.
    """
    return _field(observation, "removal") * observation.downscale**2


@channel("removal_loss", survey=True)
def removal_loss(observation: Observation) -> Tensor:
    """Return the increase of the squared error if it were removed; negative where it does harm."""
    return _field(observation, "removal_loss") * observation.downscale**2


@channel("sensitivity", survey=True)
def sensitivity(observation: Observation) -> Tensor:
    """Return the squared derivative of the colours with respect to its falloff, summed over pixels.

    Source: Hanson et al. 2025, "Speedy-Splat".
    """
    return _field(observation, "sensitivity") * observation.downscale**2


@channel("pixels", survey=True)
def footprint(observation: Observation) -> Tensor:
    """Return the radius on screen, px: three standard deviations of the longer axis, without eps2d."""
    assert observation.footprints is not None
    return torch.where(observation.visible, observation.footprints, 0)


@channel("pixels", survey=True, pixel_maps=("error",))
def error_near(observation: Observation) -> Tensor:
    """Return the mean error of the 9 x 9 pixels around the centre."""
    error = observation.pixel_maps["error"]
    height, width = error.shape
    blurred = torch.nn.functional.avg_pool2d(error[None], 9, 1, 4, count_include_pad=False)[0]
    x, y = observation.render.means2d[0].floor().long().unbind(-1)
    inside = observation.visible & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    value = blurred[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return torch.where(inside, value, 0)


@channel(
    "covered",
    "distance",
    "pixels",
    "weight_sum",
    survey=True,
    pixel_maps=("error", "taming"),
    statistics=("grad2d.sum", "views"),
)
def taming(observation: Observation) -> Tensor:
    """Return a weighted mix of nine features, each divided by its median, times the view's error.

    Source: Mallick et al. 2024, "Taming 3DGS", section 3.2, with the coefficients of its code.
    """
    splats, viewmat = observation.splats, observation.camera.viewmats[0]
    scales = splats.render_params()[0]
    gradient = splats.row_stat("grad2d.sum") / splats.row_stat("views").clamp_min(1)
    depth = splats.means @ viewmat[2, :3] + viewmat[2, 3]
    features = (
        (25, gradient),
        (100, splats.opacities),
        (5, depth),
        (10, observation.render.radii[0].amax(1).float()),
        (25, scales.prod(1)),
        (50, _field(observation, "distance")),
        (10, _mapped(observation, "covered", "taming")),
        (0.1, _field(observation, "pixels")),
        (50, _field(observation, "weight_sum")),
    )
    total = torch.zeros_like(scales[:, 0])
    for coefficient, feature in features:
        total = total + coefficient * _by_median(feature, observation.visible)
    return 50 * observation.pixel_maps["error"].mean() * torch.where(observation.visible, total, 0)


def _by_median(feature: Tensor, visible: Tensor) -> Tensor:
    """Return a feature divided by the median of its positive values among the visible rows."""
    positive = feature[visible & (feature > 0)]
    return feature / positive.median() if len(positive) else torch.zeros_like(feature)
