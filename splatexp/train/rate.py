"""What rows may cost in bits: what the loop asks of a rate. That of pictures is image/rate.py."""

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
    from splatexp.raster.rasterizer import Drawing


class Rate:
    """What the loop asks of a rate; by itself there is none, and rows are drawn as they are."""

    codes: ClassVar[bool] = False  # whether there is a file at the end
    domain: ClassVar[str] = ""  # "image" where images alone can be coded so; "": it fits anything

    def check(self, scene: Scene) -> None:
        """Hold it against the scene.  Raises: ValueError for one that cannot be coded so."""

    def begin(self, rows: Rows, scene: Scene) -> None:
        """Lay out the state before the first step. A resumed run has it from the state of the rows."""

    def ready(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """Have the rows of a step drawn as they would be coded."""

    def terms(self, rows: Rows, scene: Scene, step: int, steps: int) -> dict[str, Tensor]:
        """What joins the loss, by name."""
        return {}

    def update(
        self, rows: Rows, scene: Scene, raster: Drawing, terms: Mapping[str, Tensor], step: int, steps: int
    ) -> None:
        """Learn from what a step's backward pass left; terms: of its loss."""

    def count(self, rows: Rows, step: int, steps: int) -> int | None:
        """How many rows there may be after a step; None: as many as density control likes."""
        return None

    def worth(self, rows: Rows, step: int) -> float:
        """By how much a row has to lower the squared error to be worth its bits; 0: by anything."""
        return 0.0

    def plan(self, rows: Rows, step: int, steps: int) -> Iterator[Edit]:
        """Edits after those of density control."""
        yield from ()

    def file(self, rows: Rows, scene: Scene, raster: Drawing) -> bytes:
        """What there is to keep of rows whose training is over.  Raises: TypeError where there is none."""
        raise TypeError("rate: expected scalar, for none makes no file")

    def finish(self, rows: Rows, scene: Scene, raster: Drawing, folder: Path | None) -> dict[str, float]:
        """Write what there is to write when training is over, into a folder; None: nothing.

        From then on rows are drawn as that has them.

        Returns: numbers for metrics.json.  Raises: OSError.
        """
        return {}

    def status(self, rows: Rows, step: int) -> dict[str, float]:
        """Where it stands, for the record."""
        return {}


@dataclass
class NONE(Rate):
    """No rate."""
