"""What a browser gets to draw itself: Gaussians, and photographs on the frusta of their cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from splatexp.gaussians.geometry import rotations
from splatexp.io.ply import SH_C0
from splatexp.viewer.render_modes import cropped

if TYPE_CHECKING:
    import numpy as np

    from splatexp.data.scene import View
    from splatexp.gaussians.splats import Splats

FAINT = 1 / 255  # opacity below which nothing is seen
HALF = 6e4  # covariances travel in half precision


def gaussians(splats: Splats, box: tuple[np.ndarray, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Centers [N,3], covariances [N,3,3], rgbs [N,3], opacities [N,1] of those that can be seen.

    Colours are those of the lowest SH band: the same from all sides.
    """
    with torch.no_grad():
        shown = splats if box is None else cropped(splats, *box)
        scales, opacities = shown.drawn()
        kept = opacities > FAINT
        axes = rotations(shown.quats.detach()[kept]) * scales[kept][:, None]
        parts = {
            "centers": shown.means.detach()[kept],
            "covariances": (axes @ axes.mT).clamp(-HALF, HALF),
            "rgbs": (0.5 + SH_C0 * shown.sh0.detach()[kept, 0]).clamp(0, 1),
            "opacities": opacities[kept][:, None].clamp(0, 1),
        }
    return {name: part.float().cpu().numpy() for name, part in parts.items()}


def thumbnail(view: View, longest: int) -> np.ndarray:
    """A photograph with sides of at most `longest` px: uint8 [h,w,3], by the mean of blocks of its pixels."""
    factor = max(1, -(-max(view.camera.width, view.camera.height) // longest))
    factor = min(factor, view.camera.width, view.camera.height)
    height, width = view.camera.height // factor, view.camera.width // factor
    blocks = view.image.cpu()[: height * factor, : width * factor].float()
    small = blocks.reshape(height, factor, width, factor, 3).mean((1, 3))
    return small.round().to(torch.uint8).numpy()
