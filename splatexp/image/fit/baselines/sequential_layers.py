"""Layers of a file that are fitted one after the other, for comparison with layers that are trained
together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from splatexp.gaussians.splats2d import LAYER, Splats2D
from splatexp.image.fit.quantize import DrawQuantized
from splatexp.image.fit.rate import ScalarQuantization, coding_grid

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows


@dataclass
class SequentialLayers(ScalarQuantization):
    """Layers that are fitted one after the other: each is fitted to what those before it have left, and these
    stay fixed.

    Every layer has the same fraction of the steps, and as many rows as all before it. `ScalarQuantization`
    trains all prefixes together instead.

    Source: "LIG" (arXiv 2502.09039). Differs: all layers have the resolution of the image, and one range.
    """

    _held: ClassVar[list[RemovableHandle]] = []  # what keeps gradients from the leaves of the last step

    layers: int = 3

    def before_step(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """Assign layers; gradients and moments of rows of earlier layers are 0 once the next layer has
        begun.
        """
        assert isinstance(rows, Splats2D)
        ends = [math.ceil((level + 1) * steps / self.layers) for level in range(self.layers - 1)]
        rows.carried[LAYER] = torch.bucketize(rows.born, rows.born.new_tensor(ends), right=True).int()
        early = rows.carried[LAYER] < sum(step >= end for end in ends)
        for handle in self._held:
            handle.remove()
        self._held = [leaf.register_hook(partial(_without, early)) for leaf in rows.params.values()]
        if step in ends:
            for moments in (rows.exp_avg, rows.exp_avg_sq):
                for name in rows.params:
                    moments[name][early] = 0.0
        rows.quantizer = DrawQuantized(coding_grid(rows, scene)) if self._coding(step) else None

    def max_rows(self, rows: Rows, step: int, steps: int) -> int | None:
        """Return the number of rows that the layers so far may have, out of the whole number."""
        whole = super().max_rows(rows, steps, steps)
        level = min(self.layers - 1, step * self.layers // steps)
        return None if whole is None else max(1, round(whole * 2.0 ** (level + 1 - self.layers)))

    def _upto(self, step: int, steps: int) -> int:
        return 0


def _without(early: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient [N,...] with 0 for the given rows."""
    return grad.masked_fill(early.view(-1, *(1 for _ in grad.shape[1:])), 0.0)
