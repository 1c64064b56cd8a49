"""The interface of coding rates: what rows may cost in bits, and the file that they are coded as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from splatexp.gaussians.edit import Edit

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.raster.rasterizer import Rasterizer


class Rate:
    """The hooks of a coding rate in the training loop; this base class codes nothing.

    Subclasses quantize the rows while they train, add the bits to the loss, limit the number of rows to a
    budget, and write the file in the end.
    """

    domain: ClassVar[str] = ""  # "image" for a coding of images alone, "" for one of anything

    def check(self, scene: Scene) -> None:
        """Check that the scene can be coded.  Raises: ValueError where it cannot."""

    def initialize(self, rows: Rows, scene: Scene) -> None:
        """Create the state before the first step. A resumed run finds it in the state of the rows."""

    def before_step(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """Prepare a step: from here on the rows are rendered as they would be coded."""

    def loss_terms(self, rows: Rows, scene: Scene, step: int, steps: int) -> dict[str, Tensor]:
        """Return the weighted terms that are added to the loss, by name."""
        return {}

    def after_backward(
        self, rows: Rows, scene: Scene, raster: Rasterizer, terms: Mapping[str, Tensor], step: int, steps: int
    ) -> None:
        """Update the state from the gradients of a step.

        Args:
            terms: the terms of the step's loss.
        """

    def max_rows(self, rows: Rows, step: int, steps: int) -> int | None:
        """Return how many rows there may be after a step, or None for no limit."""
        return None

    def min_gain(self, rows: Rows, step: int) -> float:
        """Return by how much a row has to lower the sum of squared errors to be worth its bits."""
        return 0.0

    def plan(self, rows: Rows, step: int, steps: int) -> Iterator[Edit]:
        """Yield edits, which are applied after those of density control."""
        yield from ()

    def encode(self, rows: Rows, scene: Scene, raster: Rasterizer) -> bytes:
        """Return the file of rows whose training is over.  Raises: TypeError where there is no file."""
        raise TypeError("rate: expected scalar, since rate=none writes no file, got none")

    def finish(self, rows: Rows, scene: Scene, raster: Rasterizer, folder: Path | None) -> dict[str, float]:
        """Write the file into a folder when training is over; with None, write nothing.

        From then on the rows are rendered as the file holds them.

        Returns: values for metrics.json.
        Raises: OSError.
        """
        return {}

    def metrics(self, rows: Rows, step: int) -> dict[str, float]:
        """Return values for the log after a step, by name."""
        return {}


@dataclass
class NONE(Rate):
    """No coding: no file, no limit in bits."""
