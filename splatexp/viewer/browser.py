"""The data that a browser renders itself: Gaussians, and photographs on the frusta of their cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from splatexp.gaussians.geometry import quats_to_rotations
from splatexp.io.ply import SH_C0
from splatexp.viewer.render_modes import crop_to_box

if TYPE_CHECKING:
    import numpy as np

    from splatexp.data.scene import View
    from splatexp.gaussians.splats import Splats

MIN_OPACITY = 1 / 255  # a Gaussian below this opacity cannot be seen
MAX_COVARIANCE = 6e4  # covariances are sent in half precision


def gaussian_arrays(splats: Splats, box: tuple[np.ndarray, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Return centers [N,3], covariances [N,3,3], rgbs [N,3] and opacities [N,1] of the visible Gaussians.

    Their colours are those of the lowest SH band, which are the same from all sides. Gaussians outside `box`,
    (low [3], high [3]) in the world, are left out.
    """
    with torch.no_grad():
        shown = splats if box is None else crop_to_box(splats, *box)
        scales, opacities = shown.render_params()
        kept = opacities > MIN_OPACITY
        axes = quats_to_rotations(shown.quats.detach()[kept]) * scales[kept][:, None]
        parts = {
            "centers": shown.means.detach()[kept],
            "covariances": (axes @ axes.mT).clamp(-MAX_COVARIANCE, MAX_COVARIANCE),
            "rgbs": (0.5 + SH_C0 * shown.sh0.detach()[kept, 0]).clamp(0, 1),
            "opacities": opacities[kept][:, None].clamp(0, 1),
        }
    return {name: part.float().cpu().numpy() for name, part in parts.items()}


def thumbnail(view: View, max_side: int) -> np.ndarray:
    """Return a photograph, reduced to sides of at most `max_side` px by means of blocks: uint8 [h,w,3]."""
    factor = max(1, -(-max(view.camera.width, view.camera.height) // max_side))
    factor = min(factor, view.camera.width, view.camera.height)
    height, width = view.camera.height // factor, view.camera.width // factor
    blocks = view.image.cpu()[: height * factor, : width * factor].float()
    small = blocks.reshape(height, factor, width, factor, 3).mean((1, 3))
    return small.round().to(torch.uint8).numpy()
