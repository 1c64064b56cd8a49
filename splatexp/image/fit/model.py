"""What the training of a picture starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from splatexp.gaussians.covariance import FORMS
from splatexp.gaussians.plane import Plane
from splatexp.image.fit.initial import Start
from splatexp.settings.checks import check_choice, check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

NAMES = {"kind": "init", "path": "init_path"}  # of Start's settings that are called otherwise here

ROWS_PER_PIXEL = 8  # at most at the start


@dataclass
class PlaneModel:
    """The first Gaussians of a picture; called with its scene, it makes the rows.

    init, uniform, power, blur, spread, solve and init_path are those of `Start`, which says what they mean.
    """

    domain: ClassVar[str] = "image"

    init: str = Start.kind
    count: int = 5_000  # rows at the start
    form: str = "log_cholesky"  # what covariances are stored as, a name in FORMS
    uniform: float = Start.uniform
    power: float = Start.power
    blur: float = Start.blur
    spread: float = Start.spread
    solve: int = Start.solve
    init_path: str = field(default=Start.path, metadata={"unit": "path"})

    def __post_init__(self) -> None:
        self.start  # noqa: B018  checks its settings
        check_range("model.count", self.count, 1)
        check_choice("model.form", self.form, FORMS)

    @property
    def start(self) -> Start:
        """The initialiser.  Raises: ValueError for its settings."""
        try:
            rest = self.uniform, self.power, self.blur, self.spread, self.solve, self.init_path
            return Start(self.init, *rest)
        except ValueError as error:
            name, _, rest = str(error).partition(":")
            raise ValueError(f"model.{NAMES.get(name, name)}:{rest}") from error

    def __call__(self, scene: Scene, seed: int = 0) -> Plane:
        """The first rows, from (scene, seed) alone.  Raises: ValueError for a count that cannot be placed."""
        import torch

        view = scene.train[0]
        most = ROWS_PER_PIXEL * view.camera.width * view.camera.height
        check_range("model.count", self.count, 1, most)
        behind = None if scene.background is None else torch.tensor(scene.background)
        rows = self.start(view.values, self.count, seed=seed, background=behind)
        shapes = FORMS[self.form].shapes(rows.covariance)
        return Plane({"means": rows.means, "shapes": shapes, "colors": rows.colors}, self.form)
