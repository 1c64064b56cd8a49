"""The modes in which the viewer shows a scene: each is one image, rendered by the run's own rasterizer.

The Gaussians are not changed: other colours or opacities are set in a shallow copy.
Notation: N Gaussians, [H,W,3] images in [0,1].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from splatexp.gaussians.splats import MIN_OPACITY_LOGIT
from splatexp.io.figures import MAX_ERROR, colormap
from splatexp.io.ply import SH_C0
from splatexp.viewer.error import photo_error
from splatexp.viewer.pose import nearest_camera

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import Render, SceneRasterizer

# numbers of contributions to a pixel that are told apart
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass
class RenderedView:
    """An image for a client, and what its colours mean."""

    image: np.ndarray  # uint8 [H,W,3]
    legend: str


@dataclass
class ViewRenderer:
    """Render the Gaussians of one moment in any mode.

    Args:
        step: number of steps that have been trained.
        ages: whether `born` of the Gaussians is known; a .ply does not hold it.
    """

    splats: Splats
    raster: SceneRasterizer
    scene: Scene
    step: int
    ages: bool = True

    def render_mode(
        self, camera: Camera, mode: str, box: tuple[np.ndarray, np.ndarray] | None = None
    ) -> RenderedView:
        """Render what `camera` sees in a mode of MODES; Gaussians with a mean outside `box` are left out.

        Raises: ValueError, one line, for a mode that is not available here; whatever the rasterizer raises.
        """
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        device = self.splats.means.device
        with torch.no_grad():
            shown = self if box is None else replace(self, splats=crop_to_box(self.splats, *box))
            image, legend = MODES[mode](shown, camera.to(device))
            levels = image.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return RenderedView(levels.cpu().numpy(), legend)

    @property
    def background(self) -> Tensor:
        """The colour behind the Gaussians, [1,3]."""
        return self.splats.means.new_tensor([self.scene.background or (0.0, 0.0, 0.0)])

    def rasterize(self, camera: Camera, depth: bool = False) -> Render:
        """Render a camera as held-out views are rendered."""
        degree = self.splats.sh_degree
        return self.raster(self.splats, camera, sh_degree=degree, background=self.background, depth=depth)

    def render_values(self, camera: Camera, levels: Tensor) -> Tensor:
        """Render every Gaussian in one colour, by `levels` [N] in [0,1], on black: [H,W,3]."""
        rgb = _colors(levels)
        other = copy.copy(self.splats)
        other.sh0 = ((rgb - 0.5) / SH_C0)[:, None]
        return self.raster(other, camera, sh_degree=0).image[0]


def crop_to_box(splats: Splats, low: np.ndarray, high: np.ndarray) -> Splats:
    """Return the Gaussians with those transparent whose mean lies outside the box [low, high]."""
    means = splats.means.detach()
    inside = ((means >= means.new_tensor(low)) & (means <= means.new_tensor(high))).all(1)
    other = copy.copy(splats)
    other.opacity_logits = torch.where(inside, splats.opacity_logits.detach(), MIN_OPACITY_LOGIT)
    return other


def _colour(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    return renderer.rasterize(camera).image[0], "as held-out views are rendered"


def _depth(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    render = renderer.rasterize(camera, depth=True)
    assert render.depth is not None
    depth = render.depth[0, ..., 0]
    opaque = render.alpha[0, ..., 0] > 0.5
    if not opaque.any():
        return torch.zeros_like(render.image[0]), "nothing in view"
    low, high = _quantiles(depth[opaque], 0.01, 0.99)
    near = 1 - (depth - low) / max(high - low, 1e-9)
    return _colors(near) * render.alpha[0], f"bright {low:.3g} to dark {high:.3g}, world units"


def _alpha(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    return renderer.rasterize(camera).alpha[0].expand(-1, -1, 3), "black: transparent, white: opaque"


def _error(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    views, extent = renderer.scene.train, renderer.scene.extent
    view = views[nearest_camera(camera, [view.camera for view in views], extent)]
    render = renderer.rasterize(camera, depth=True)
    error, known = photo_error(
        render, camera, view, lambda other: renderer.rasterize(other, depth=True), extent
    )
    grey = 0.25 + 0.25 * render.image[0].clamp(0, 1).mean(-1, keepdim=True).expand(-1, -1, 3)
    mean = float(error[known].mean()) if known.any() else 0.0
    legend = f"error against {view.name}: dark 0 to bright {MAX_ERROR:g}, mean {mean:.3f}; grey: not in it"
    return torch.where(known[..., None], _colors(error / MAX_ERROR), grey), legend


def contribution_counts(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, bool]:
    """Count the Gaussians that are blended into each pixel, rounded up to the next number of COUNTS.

    The scene is rendered with ever larger limits on the Gaussians per pixel, until the opacity of a pixel no
    longer changes.

    Returns: the counts [H,W], and whether some pixels blend more Gaussians than the largest of COUNTS.
    """
    allowed = getattr(renderer.raster, "max_splats_per_pixel", 0)
    whole = renderer.rasterize(camera).alpha[0, ..., 0]
    counts = torch.zeros_like(whole)
    done = whole == 0
    for count in (each for each in COUNTS if not allowed or each < allowed):
        if done.all():
            break
        raster = replace(renderer.raster, max_splats_per_pixel=count)
        same = ~done & (replace(renderer, raster=raster).rasterize(camera).alpha[0, ..., 0] == whole)
        counts[same] = count
        done = done | same
    counts[~done] = allowed or COUNTS[-1]
    return counts, not allowed and not bool(done.all())


def _contributions(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    counts, more = contribution_counts(renderer, camera)
    most = max(1.0, float(counts.amax()))
    legend = f"Gaussians per pixel: black 0 to bright {most:.0f}{' or more' if more else ''}, logarithmic"
    return _colors(counts.add(1).log() / math.log(most + 1)), legend


def _age(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    if not renderer.ages:
        raise ValueError("age: expected Gaussians of a checkpoint, got those of a .ply, which holds no ages")
    age = (renderer.step - renderer.splats.born).float()
    most = float(age.amax()) if len(age) else 0.0
    return renderer.render_values(camera, age / max(most, 1.0)), f"dark 0 to bright {most:,.0f} steps"


def _importance(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    """Render the learned importance where the run has one, otherwise each Gaussian's weight in this image."""
    learned = renderer.splats.importance
    if learned is not None:
        return renderer.render_values(camera, learned.detach()), "learned importance: dark 0 to bright 1"
    render = renderer.rasterize(camera)
    maps = render.alpha.new_zeros(*render.alpha.shape[:3], 0)
    weight = renderer.raster.attribute(render, maps).weight_sum[0]
    return _logarithmic(renderer, camera, weight, "px of blending weight in this image", 0.5)


def _footprint(renderer: ViewRenderer, camera: Camera) -> tuple[Tensor, str]:
    radii = renderer.rasterize(camera).radii[0].amax(1)
    return _logarithmic(renderer, camera, radii, "px radius on the screen", 0.05)


def _logarithmic(
    renderer: ViewRenderer, camera: Camera, values: Tensor, what: str, least: float
) -> tuple[Tensor, str]:
    """Render Gaussians by the logarithm of `values` [N], from the quantile `least` to the 99th percentile.

    what: unit and meaning of the values, for the legend.
    """
    above = values[values > 0]
    if not len(above):
        return torch.zeros_like(renderer.rasterize(camera).image[0]), "nothing in view"
    low, high = _quantiles(above.log(), least, 0.99)
    levels = (values.clamp_min(1e-30).log() - low) / max(high - low, 1e-6)
    ends = np.exp([low, high])
    return renderer.render_values(camera, levels), f"dark {ends[0]:.3g} to bright {ends[1]:.3g} {what}"


MODES: dict[str, Callable[[ViewRenderer, Camera], tuple[Tensor, str]]] = {
    "colour": _colour,
    "depth": _depth,
    "alpha": _alpha,
    "error": _error,
    "contributions": _contributions,
    "age": _age,
    "importance": _importance,
    "footprint": _footprint,
}


def available_modes(raster: SceneRasterizer, ages: bool) -> list[str]:
    """Return the names of the modes that a rasterizer can render."""
    missing = set() if ages else {"age"}
    if "weight_sum" not in raster.attribution_fields:
        missing.add("importance")
    try:
        replace(raster, max_splats_per_pixel=1)
    except (TypeError, ValueError):  # the rasterizer has no such setting, or refuses it
        missing.add("contributions")
    return [mode for mode in MODES if mode not in missing]


def _quantiles(values: Tensor, low: float, high: float) -> tuple[float, float]:
    """Return two quantiles of a subset of the values, which is enough for the ends of a colour scale."""
    some = values.flatten()[:: max(1, values.numel() // 100_000)]
    ends = torch.quantile(some.float(), some.new_tensor([low, high], dtype=torch.float32))
    return float(ends[0]), float(ends[1])


def _colors(levels: Tensor) -> Tensor:
    """Return the colours [...,3] of `levels` [...] in [0,1]."""
    table = torch.from_numpy(colormap()).to(levels.device)
    index = levels.nan_to_num(0.0).clamp(0, 1).mul(255).round().long()
    return table[index].float() / 255
