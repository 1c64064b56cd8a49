"""Surveys: render training views just before an event to gather statistics of every Gaussian.

A survey tells how much of the images each Gaussian contributes to, and how much error and how many edges lie
there. All its views are rendered with the same Gaussians, so that their values can be compared, and only when
a rule is about to read them: gathering the same during training would cost another pass over the image in
every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.densify.context import Context
from splatexp.densify.statistics import CHANNELS, COUNTS, Observation, accumulate
from splatexp.gaussians.geometry import footprint as footprint_radius
from splatexp.gaussians.splats import Splats
from splatexp.losses.photometric import ERROR_KINDS, error_map
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.devices import to_device
from splatexp.system.rng import generator

if TYPE_CHECKING:
    from splatexp.data.scene import View

EMA_DECAY = 0.9  # of the moving average over surveys


@dataclass
class Survey:
    """Settings of a survey: which views it renders, and what counts as an error and as a footprint."""

    views: int = 10  # number of training views, drawn anew for each event; 0: all
    downscale: int = 1  # further reduction of the images; sums over pixels are scaled back
    error: str = "l1"  # error of a pixel: l1, l2 (mean over channels) or ssim (1 - SSIM)
    hit_threshold: float = 0.1  # high-error pixels have an L1 above this fraction of the view's L1 range
    footprint: str = "exact"  # by the projected covariance; "fast": largest scale * focal length / depth
    r_min: float = 0.0  # px; footprints are clamped to at least this
    r_max: float = 0.0  # px; footprints are clamped to at most this; 0: no limit

    def __post_init__(self) -> None:
        check_range("survey.views", self.views, 0)
        check_range("survey.downscale", self.downscale, 1)
        check_choice("survey.error", self.error, ERROR_KINDS)
        check_range("survey.hit_threshold", self.hit_threshold, 0, 1)
        check_choice("survey.footprint", self.footprint, ("exact", "fast"))
        check_range("survey.r_min", self.r_min, 0)
        check_range("survey.r_max", self.r_max, 0)
        if 0 < self.r_max < self.r_min:
            raise ValueError(
                f"survey.r_max: expected 0 or at least survey.r_min={self.r_min}, got {self.r_max}"
            )

    @torch.no_grad()
    def __call__(self, names: Iterable[str], splats: Splats, step: int, context: Context) -> None:
        """Compute the statistics of these names from views drawn by (seed, step).

        Raises: ValueError where the context has no scene.
        """
        names = set(names)
        averages = {name.partition(".")[0] for name in names if name.endswith(".ema")}
        names |= {"surveyed"} | {f"{base}.sum" for base in averages}
        for name in names:
            if not name.endswith(".ema"):
                splats.row_stat(name).zero_()
        if context.scene is None or context.raster is None:
            raise ValueError(f"densify: expected a scene to survey for {', '.join(sorted(names))}, got none")
        bases = {name.partition(".")[0] for name in names} - set(COUNTS)
        views = context.scene.train if context.views is None else context.views
        drawn = torch.randperm(len(views), generator=generator("survey", context.seed, step))
        for index in drawn[: self.views or None].sort().values.tolist():
            accumulate(names, self._observe(views[index], bases, splats, context))
        for base in averages:
            _update_average(base, splats)

    def _observe(self, view: View, bases: set[str], splats: Splats, context: Context) -> Observation:
        """Render a view and attribute its pixel maps to the Gaussians, for the channels `bases`."""
        assert context.raster is not None and context.scene is not None
        background = torch.tensor(context.scene.background or (0.0, 0.0, 0.0))
        downscale = min(self.downscale * context.downscale, view.camera.width, view.camera.height)
        target, mask, camera = view.target(downscale, background)
        background = to_device(background, context.raster.device)[None]
        render = context.raster(splats, camera, sh_degree=context.sh_degree, background=background)
        if mask is not None:  # masked pixels count as perfect, as in the loss
            target = torch.where(mask > 0, target, render.image)
        names = sorted({name for base in bases for name in CHANNELS[base].pixel_maps})
        maps = self._pixel_maps(names, render.image, target, mask, context.raster.backend)
        stacked = torch.stack(list(maps.values()), -1)[None] if maps else render.image[..., :0]
        requires = {field for base in bases for field in CHANNELS[base].requires}
        attribution = context.raster.attribute(render, stacked, self.hit_threshold, target, want=requires)
        footprints = None
        if "footprint" in bases:
            radii = footprint_radius(
                splats.means,
                splats.quats,
                splats.render_params()[0],
                camera.viewmats,
                camera.Ks,
                camera.width,
                camera.height,
                method=self.footprint,
                eps2d=0.0,
                near=context.raster.near,
            )
            footprints = (radii[0] * downscale).clamp(self.r_min, self.r_max or float("inf"))
        visible = attribution.weight_sum[0] > 0
        return Observation(splats, camera, render, visible, downscale, attribution, maps, footprints)

    def _pixel_maps(
        self, names: list[str], image: Tensor, target: Tensor, mask: Tensor | None, backend: str
    ) -> dict[str, Tensor]:
        """Return the pixel maps [H,W] of these names."""
        maps = {}
        for name in names:
            if name == "error":
                pixels = error_map(image, target, self.error, backend=backend)
            elif name == "edge":
                pixels = edge_map(target)
            elif name == "residual":
                pixels = _normalized(error_map(image, target, "l1", backend=backend))
            else:
                assert name == "taming"
                residual = _normalized(error_map(image, target, "l1", backend=backend))
                pixels = 50 * residual + 50 * _normalized(edge_map(target))
            maps[name] = (pixels if mask is None else pixels * mask[..., 0])[0].contiguous()
        return maps


def _update_average(base: str, splats: Splats) -> None:
    """Update the moving average of a channel; the first survey that sees a row starts the row's average."""
    average, known, seen = (splats.row_stat(name) for name in (f"{base}.ema", f"{base}.known", "surveyed"))
    mean = splats.row_stat(f"{base}.sum") / seen.clamp_min(1)
    new = torch.where(known > 0, EMA_DECAY * average + (1 - EMA_DECAY) * mean, mean)
    average.copy_(torch.where(seen > 0, new, average))
    known.copy_(((known > 0) | (seen > 0)).float())


def edge_map(image: Tensor) -> Tensor:
    """Return the edge strength [C,H,W] in [0,1]: the absolute Laplacian of the grey value over 3 x 3 pixels.

    Args:
        image: [C,H,W,D] in [0,1]. With fewer than three channels the first one is the grey value; a fourth
            channel is ignored.
    """
    luma = torch.tensor([0.299, 0.587, 0.114] if image.shape[-1] > 2 else [1.0], dtype=image.dtype)
    grey = (image[..., : len(luma)] @ to_device(luma, image.device))[:, None]
    kernel = image.new_full((1, 1, 3, 3), -1.0)
    kernel[0, 0, 1, 1] = 8.0
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel)[:, 0].abs().clamp_max(1)


def _normalized(pixels: Tensor) -> Tensor:
    """Return the values [C,H,W] stretched to [0,1]."""
    low, high = pixels.amin(), pixels.amax()
    return (pixels - low) / (high - low).clamp_min(1e-12)
