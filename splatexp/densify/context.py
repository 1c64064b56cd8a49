"""What density control may look at besides the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splatexp.raster.rasterizer import Rasterizer

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View


@dataclass
class Context:
    """What an event may look at besides the rows."""

    seed: int = 0
    steps: int = 0  # of the run
    rate: float = 0.0  # the means' learning rate at this step, world units
    factor: int = 1  # by which the pictures are reduced at this step
    sh_degree: int = 0
    scene: Scene | None = None
    raster: Rasterizer | None = None
    views: Sequence[View] | None = None  # of training, where the rasterizer draws; None: the scene's
    cap: int | None = None  # rows that a rate allows, besides those of the strategy; None: any
    worth: float = 0.0  # what a birth has to lower the squared error by to be worth its bits
