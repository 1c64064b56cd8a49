"""Layers of a file that are fitted one after the other: what training them together is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from splatexp.gaussians.plane import LAYER, Plane
from splatexp.image.fit.quantize import Quantized
from splatexp.image.fit.rate import Scalar, size_of

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows


@dataclass
class Sequential(Scalar):
    """Layers one after the other: each is fitted to what those before it have left, and these stay.

    Every layer has the same share of the steps, and as many rows as those before it together. What `Scalar`
    does instead, training all prefixes together, is to be held against this.

    Source: "LIG" (arXiv 2502.09039). Differs: all layers have the picture's resolution, and one range.
    """

    _held: ClassVar[list[RemovableHandle]] = []  # what keeps gradients from the leaves of the last step

    levels: int = 3

    def ready(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """As `Rate` says; gradients and moments of rows of earlier layers are 0 from the next layer on."""
        assert isinstance(rows, Plane)
        ends = [math.ceil((level + 1) * steps / self.levels) for level in range(self.levels - 1)]
        rows.carried[LAYER] = torch.bucketize(rows.born, rows.born.new_tensor(ends), right=True).int()
        early = rows.carried[LAYER] < sum(step >= end for end in ends)
        for handle in self._held:
            handle.remove()
        self._held = [leaf.register_hook(partial(_without, early)) for leaf in rows.params.values()]
        if step in ends:
            for moments in (rows.exp_avg, rows.exp_avg_sq):
                for name in rows.params:
                    moments[name][early] = 0.0
        rows.quantizer = Quantized(size_of(rows, scene)) if self._coding(step) else None

    def count(self, rows: Rows, step: int, steps: int) -> int | None:
        """As `Rate` says: of the whole, what the layers so far are to have."""
        whole = super().count(rows, steps, steps)
        level = min(self.levels - 1, step * self.levels // steps)
        return None if whole is None else max(1, round(whole * 2.0 ** (level + 1 - self.levels)))

    def _upto(self, step: int, steps: int) -> int:
        return 0


def _without(early: Tensor, grad: Tensor) -> Tensor:
    """A gradient [N,...] without that of some rows."""
    return grad.masked_fill(early.view(-1, *(1 for _ in grad.shape[1:])), 0.0)
