"""The ways in which a scene can be looked at: one picture each, drawn by the run's own rasterizer.

Nothing is changed: rows are shown with other colours or opacities by a shallow copy of the Gaussians.
Notation: N Gaussians, [H,W,3] pictures in [0,1].
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

from splatexp.gaussians.splats import FAINTEST
from splatexp.io.figures import ERROR_FULL, colormap
from splatexp.io.ply import SH_C0
from splatexp.viewer.error import compared
from splatexp.viewer.pose import nearest

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import Rasterizer, Render

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # contributions to a pixel


@dataclass
class Picture:
    """What a client is shown."""

    image: np.ndarray  # uint8 [H,W,3]
    legend: str


@dataclass
class Studio:
    """What pictures are made of: the Gaussians of a moment, the rasterizer, and the photographs.

    step: after so many steps. ages: whether `born` is known, which a .ply does not tell.
    """

    splats: Splats
    raster: Rasterizer
    scene: Scene
    step: int
    ages: bool = True

    def picture(self, camera: Camera, mode: str, box: tuple[np.ndarray, np.ndarray] | None = None) -> Picture:
        """What `camera` sees in a mode of MODES; Gaussians with their mean outside `box` are left out.

        Raises: ValueError, one line, for a mode that cannot be had here; what the rasterizer raises.
        """
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        device = self.splats.means.device
        with torch.no_grad():
            shown = self if box is None else replace(self, splats=cropped(self.splats, *box))
            image, legend = MODES[mode](shown, camera.to(device))
            levels = image.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
        return Picture(levels.cpu().numpy(), legend)

    @property
    def background(self) -> Tensor:
        """[1,3] behind the Gaussians."""
        return self.splats.means.new_tensor([self.scene.background or (0.0, 0.0, 0.0)])

    def draw(self, camera: Camera, depth: bool = False) -> Render:
        """As held-out views are drawn."""
        degree = self.splats.sh_degree
        return self.raster(self.splats, camera, sh_degree=degree, background=self.background, depth=depth)

    def painted(self, camera: Camera, levels: Tensor) -> Tensor:
        """Every Gaussian in one colour, of levels [N] in [0,1], on black: [H,W,3]."""
        rgb = _colors(levels)
        other = copy.copy(self.splats)
        other.sh0 = ((rgb - 0.5) / SH_C0)[:, None]
        return self.raster(other, camera, sh_degree=0).image[0]


def cropped(splats: Splats, low: np.ndarray, high: np.ndarray) -> Splats:
    """The same Gaussians, but those with their mean outside the box [low, high] transparent."""
    means = splats.means.detach()
    inside = ((means >= means.new_tensor(low)) & (means <= means.new_tensor(high))).all(1)
    other = copy.copy(splats)
    other.opacity_logits = torch.where(inside, splats.opacity_logits.detach(), FAINTEST)
    return other


def _colour(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    return studio.draw(camera).image[0], "as held-out views are drawn"


def _depth(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    render = studio.draw(camera, depth=True)
    assert render.depth is not None
    depth, there = render.depth[0, ..., 0], render.alpha[0, ..., 0] > 0.5
    if not there.any():
        return torch.zeros_like(render.image[0]), "nothing in view"
    low, high = _range(depth[there], 0.01, 0.99)
    near = 1 - (depth - low) / max(high - low, 1e-9)
    return _colors(near) * render.alpha[0], f"bright {low:.3g} to dark {high:.3g}, world units"


def _alpha(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    return studio.draw(camera).alpha[0].expand(-1, -1, 3), "black: transparent, white: opaque"


def _error(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    views, extent = studio.scene.train, studio.scene.extent
    view = views[nearest(camera, [view.camera for view in views], extent)]
    render = studio.draw(camera, depth=True)
    error, known = compared(render, camera, view, lambda other: studio.draw(other, depth=True), extent)
    grey = 0.25 + 0.25 * render.image[0].clamp(0, 1).mean(-1, keepdim=True).expand(-1, -1, 3)
    mean = float(error[known].mean()) if known.any() else 0.0
    legend = f"against {view.name}: dark 0 to bright {ERROR_FULL:g}, mean {mean:.3f}; grey: not in that photo"
    return torch.where(known[..., None], _colors(error / ERROR_FULL), grey), legend


def counted(studio: Studio, camera: Camera) -> tuple[Tensor, bool]:
    """How many Gaussians each pixel blends, the next number of COUNTS from there up: the least that may be.

    Returns: [H,W], and whether some pixels blend more than that.
    """
    allowed = getattr(studio.raster, "max_splats_per_pixel", 0)
    whole = studio.draw(camera).alpha[0, ..., 0]
    counts, done = torch.zeros_like(whole), whole == 0
    for count in (each for each in COUNTS if not allowed or each < allowed):
        if done.all():
            break
        raster = replace(studio.raster, max_splats_per_pixel=count)
        same = ~done & (replace(studio, raster=raster).draw(camera).alpha[0, ..., 0] == whole)
        counts[same], done = count, done | same
    counts[~done] = allowed or COUNTS[-1]
    return counts, not allowed and not bool(done.all())


def _contributions(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    counts, more = counted(studio, camera)
    most = max(1.0, float(counts.amax()))
    legend = f"black 0 to bright {most:.0f}{' or more' if more else ''}, by its logarithm"
    return _colors(counts.add(1).log() / math.log(most + 1)), legend


def _age(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    if not studio.ages:
        raise ValueError("age: a .ply does not tell it; a checkpoint does")
    age = (studio.step - studio.splats.born).float()
    most = float(age.amax()) if len(age) else 0.0
    return studio.painted(camera, age / max(most, 1.0)), f"dark 0 to bright {most:,.0f} steps"


def _importance(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    """The learned one where the run learns it, else each Gaussian's share in this very picture."""
    learned = studio.splats.importance
    if learned is not None:
        return studio.painted(camera, learned.detach()), "learned: dark 0 to bright 1"
    render = studio.draw(camera)
    maps = render.alpha.new_zeros(*render.alpha.shape[:3], 0)
    weight = studio.raster.attribute(render, maps).weight_sum[0]
    return _logarithmic(studio, camera, weight, "px of this picture that a Gaussian makes up", 0.5)


def _footprint(studio: Studio, camera: Camera) -> tuple[Tensor, str]:
    radii = studio.draw(camera).radii[0].amax(1)
    return _logarithmic(studio, camera, radii, "px, half the extent on the screen", 0.05)


def _logarithmic(
    studio: Studio, camera: Camera, values: Tensor, what: str, least: float
) -> tuple[Tensor, str]:
    """Gaussians painted by the logarithm of values [N], from the quantile `least` to the 99th percentile."""
    above = values[values > 0]
    if not len(above):
        return torch.zeros_like(studio.draw(camera).image[0]), "nothing in view"
    low, high = _range(above.log(), least, 0.99)
    levels = (values.clamp_min(1e-30).log() - low) / max(high - low, 1e-6)
    ends = np.exp([low, high])
    return studio.painted(camera, levels), f"dark {ends[0]:.3g} to bright {ends[1]:.3g} {what}"


MODES: dict[str, Callable[[Studio, Camera], tuple[Tensor, str]]] = {
    "colour": _colour,
    "depth": _depth,
    "alpha": _alpha,
    "error": _error,
    "contributions": _contributions,
    "age": _age,
    "importance": _importance,
    "footprint": _footprint,
}


def offered(raster: Rasterizer, ages: bool) -> list[str]:
    """The modes that can be had with a rasterizer."""
    missing = set() if ages else {"age"}
    if "weight_sum" not in raster.offers:
        missing.add("importance")
    try:
        replace(raster, max_splats_per_pixel=1)
    except (TypeError, ValueError):  # it has no such knob, or refuses it
        missing.add("contributions")
    return [mode for mode in MODES if mode not in missing]


def _range(values: Tensor, low: float, high: float) -> tuple[float, float]:
    """Two quantiles of some of the values: they are for a scale of colours."""
    some = values.flatten()[:: max(1, values.numel() // 100_000)]
    ends = torch.quantile(some.float(), some.new_tensor([low, high], dtype=torch.float32))
    return float(ends[0]), float(ends[1])


def _colors(levels: Tensor) -> Tensor:
    """The house's colour map at levels [...] in [0,1]: [...,3]."""
    table = torch.from_numpy(colormap()).to(levels.device)
    index = levels.nan_to_num(0.0).clamp(0, 1).mul(255).round().long()
    return table[index].float() / 255
