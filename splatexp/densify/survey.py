"""Looking at training views just before an event: who has how much of the picture, its error, its edges.

All views are looked at with the same Gaussians, so that their numbers compare, and only when a rule is about
to read them: gathering the same along training would cost a pass over the picture in every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.densify.context import Context
from splatexp.densify.statistics import CHANNELS, COUNTS, Sight, add
from splatexp.gaussians.geometry import footprint as footprint_radius
from splatexp.gaussians.splats import Splats
from splatexp.losses.photometric import ERRORS, error_map
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.devices import sent
from splatexp.system.rng import generator

if TYPE_CHECKING:
    from splatexp.data.scene import View

EMA = 0.9  # of the moving average over surveys


@dataclass
class Survey:
    """How a survey looks: `error` and `hit` say what is badly drawn, the rest what a footprint is."""

    views: int = 10  # training views, drawn for each event; 0: all
    factor: int = 1  # the pictures are reduced by this besides; sums over pixels are scaled back
    error: str = "l1"  # of a pixel: l1, l2 (mean over channels) or ssim (1 - SSIM)
    hit: float = 0.1  # a pixel whose L1 is above this share of the view's range of L1 is a hit
    footprint: str = "exact"  # projected covariance, or "fast": largest scale times focal length over depth
    r_min: float = 0.0  # px, footprints are clamped to it
    r_max: float = 0.0  # px, and to this; 0: no limit

    def __post_init__(self) -> None:
        check_range("survey.views", self.views, 0)
        check_range("survey.factor", self.factor, 1)
        check_choice("survey.error", self.error, ERRORS)
        check_range("survey.hit", self.hit, 0, 1)
        check_choice("survey.footprint", self.footprint, ("exact", "fast"))
        check_range("survey.r_min", self.r_min, 0)
        check_range("survey.r_max", self.r_max, 0)
        if 0 < self.r_max < self.r_min:
            raise ValueError(f"survey.r_max: expected at least r_min={self.r_min}, got {self.r_max}")

    @torch.no_grad()
    def __call__(self, names: Iterable[str], splats: Splats, step: int, context: Context) -> None:
        """Fill the statistics of these names from views drawn by (seed, step)."""
        names = set(names)
        averages = {name.partition(".")[0] for name in names if name.endswith(".ema")}
        names |= {"surveyed"} | {f"{base}.sum" for base in averages}
        for name in names:
            if not name.endswith(".ema"):
                splats.row_stat(name).zero_()
        if context.scene is None or context.raster is None:
            raise ValueError(f"densify: {', '.join(sorted(names))} need a scene to look at, got none")
        bases = {name.partition(".")[0] for name in names} - set(COUNTS)
        views = context.scene.train if context.views is None else context.views
        drawn = torch.randperm(len(views), generator=generator("survey", context.seed, step))
        for index in drawn[: self.views or None].sort().values.tolist():
            add(names, self._look(views[index], bases, splats, context))
        for base in averages:
            _average(base, splats)

    def _look(self, view: View, bases: set[str], splats: Splats, context: Context) -> Sight:
        """Draw a view and share its pixel maps out."""
        assert context.raster is not None and context.scene is not None
        wants = {want for base in bases for want in CHANNELS[base].wants}
        behind = torch.tensor(context.scene.background or (0.0, 0.0, 0.0))
        factor = min(self.factor * context.factor, view.camera.width, view.camera.height)
        target, mask, camera = view.target(factor, behind)
        behind = sent(behind, context.raster.device)[None]
        render = context.raster(splats, camera, sh_degree=context.sh_degree, background=behind)
        names = sorted({name for base in bases for name in CHANNELS[base].maps})
        if mask is not None:  # as in the loss: what is masked out looks perfect
            target = torch.where(mask > 0, target, render.image)
        maps = self._maps(names, render.image, target, mask, context.raster.backend)
        stacked = torch.stack(list(maps.values()), -1)[None] if maps else render.image[..., :0]
        footprints = None
        shares = context.raster.attribute(render, stacked, self.hit, target, want=wants)
        if "footprint" in bases:
            footprints = footprint_radius(
                splats.means, splats.quats, splats.drawn()[0], camera.viewmats, camera.Ks, camera.width,
                camera.height, method=self.footprint, eps2d=0.0, near=context.raster.near,
            )[0] * factor  # fmt: skip
            footprints = footprints.clamp(self.r_min, self.r_max or float("inf"))
        return Sight(splats, camera, render, shares.weight_sum[0] > 0, factor, shares, maps, footprints)

    def _maps(
        self, names: list[str], image: Tensor, target: Tensor, mask: Tensor | None, backend: str
    ) -> dict[str, Tensor]:
        """Pixel maps [H,W] by name."""
        maps = {}
        for name in names:
            if name == "error":
                pixels = error_map(image, target, self.error, backend=backend)
            elif name == "edge":
                pixels = edges(target)
            elif name == "residual":
                pixels = _stretched(error_map(image, target, "l1", backend=backend))
            else:
                assert name == "taming"
                residual = _stretched(error_map(image, target, "l1", backend=backend))
                pixels = 50 * residual + 50 * _stretched(edges(target))
            maps[name] = (pixels if mask is None else pixels * mask[..., 0])[0].contiguous()
        return maps


def _average(base: str, splats: Splats) -> None:
    """Carry the moving average of a channel on; a row's first survey starts it."""
    average, known, seen = (splats.row_stat(name) for name in (f"{base}.ema", f"{base}.known", "surveyed"))
    mean = splats.row_stat(f"{base}.sum") / seen.clamp_min(1)
    new = torch.where(known > 0, EMA * average + (1 - EMA) * mean, mean)
    average.copy_(torch.where(seen > 0, new, average))
    known.copy_(((known > 0) | (seen > 0)).float())


def edges(image: Tensor) -> Tensor:
    """How much a pixel's grey stands out from its eight neighbours either way, [C,H,W] in [0,1].

    Args:
        image: [C,H,W,D] in [0,1]; of less than three channels the first is grey, a fourth is left out.
    """
    shares = torch.tensor([0.299, 0.587, 0.114] if image.shape[-1] > 2 else [1.0], dtype=image.dtype)
    grey = (image[..., : len(shares)] @ sent(shares, image.device))[:, None]
    kernel = image.new_full((1, 1, 3, 3), -1.0)
    kernel[0, 0, 1, 1] = 8.0
    padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.conv2d(padded, kernel)[:, 0].abs().clamp_max(1)


def _stretched(pixels: Tensor) -> Tensor:
    """[C,H,W] stretched to [0,1]."""
    low, high = pixels.amin(), pixels.amax()
    return (pixels - low) / (high - low).clamp_min(1e-12)
