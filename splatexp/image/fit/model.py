"""The Gaussians that the fit of an image starts from, as an option of the config group `model`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats2d import Splats2D
from splatexp.image.fit.initial import Initializer
from splatexp.settings.checks import check_choice, check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

ROWS_PER_PIXEL = 8  # at most, at the start


@dataclass
class ImageModel:
    """Makes the first Gaussians of an image. `Initializer` explains all settings but `count` and
    `covariance`.
    """

    domain: ClassVar[str] = "image"

    init: str = Initializer.init  # where the Gaussians lie at first: a name in INITIALIZERS
    count: int = 5_000  # Gaussians at the start
    covariance: str = "log_cholesky"  # the parametrization of covariances, a name in PARAMETRIZATIONS
    uniform_fraction: float = Initializer.uniform_fraction  # of the Gaussians is spread evenly
    density_power: float = Initializer.density_power  # of the image's gradient that the density follows
    density_blur: float = Initializer.density_blur  # of the gradient, in mean spacings of the Gaussians
    size_factor: float = Initializer.size_factor  # standard deviations over the spacing to the neighbours
    solve_steps: int = Initializer.solve_steps  # of a least-squares solve for the first colours; 0: none
    # file of the network for init=network; "": the one that is shipped
    init_path: str = field(default=Initializer.init_path, metadata={"unit": "path"})

    def __post_init__(self) -> None:
        self.initializer  # noqa: B018  checks its settings
        check_range("model.count", self.count, 1)
        check_choice("model.covariance", self.covariance, PARAMETRIZATIONS)

    @property
    def initializer(self) -> Initializer:
        """Return the initializer.

        Raises: ValueError for its settings.
        """
        try:
            return Initializer(
                self.init,
                self.uniform_fraction,
                self.density_power,
                self.density_blur,
                self.size_factor,
                self.solve_steps,
                self.init_path,
            )
        except ValueError as error:
            raise ValueError(f"model.{error}") from error

    def __call__(self, scene: Scene, seed: int = 0) -> Splats2D:
        """Return the first Gaussians, from (scene, seed) alone.

        Raises: ValueError for a count that cannot be placed.
        """
        import torch

        view = scene.train[0]
        max_count = ROWS_PER_PIXEL * view.camera.width * view.camera.height
        check_range("model.count", self.count, 1, max_count)
        background = None if scene.background is None else torch.tensor(scene.background)
        rows = self.initializer(view.float_image, self.count, seed=seed, background=background)
        shapes = PARAMETRIZATIONS[self.covariance].shapes(rows.covariance)
        return Splats2D({"means": rows.means, "shapes": shapes, "colors": rows.colors}, self.covariance)
