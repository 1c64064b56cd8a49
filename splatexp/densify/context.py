"""The state of a run that density control may read besides the rows themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splatexp.raster.rasterizer import SceneRasterizer

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View


@dataclass
class Context:
    """Everything about the run that an event of density control may read besides the rows.

    The training loop fills it anew after every step.
    """

    seed: int = 0
    steps: int = 0  # length of the run
    means_lr: float = 0.0  # learning rate of the means at this step, world units
    downscale: int = 1  # factor by which the training images are reduced at this step
    sh_degree: int = 0  # SH degree that is active at this step
    scene: Scene | None = None
    raster: SceneRasterizer | None = None
    views: Sequence[View] | None = None  # training views on the rasterizer's device; None: those of `scene`
    max_rows: int | None = None  # limit that the coding rate sets, besides the strategy's; None: no limit
    min_gain: float = 0.0  # a birth must lower the squared error by this much to be worth its bits
