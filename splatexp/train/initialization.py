"""Initialization: the first Gaussians, from points of the scene, random points, or a .ply file."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.gaussians.geometry import neighbor_distance
from splatexp.gaussians.splats import Splats
from splatexp.io.ply import SH_C0, load_ply
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.rng import generator
from splatexp.train.frusta import random_points_in_view


@dataclass
class SceneModel:
    """The settings of the first Gaussians of a scene; called with the scene, it makes them.

    `init` is sfm (the points of the scene), random (points in the cameras' frusta), ply (the Gaussians of a
    file, with their own opacities and scales), or auto (sfm where the scene has points, else random).
    """

    init: str = "auto"
    init_points: int = 0  # largest number of Gaussians; 0: all of the scene or file, or 100,000 random ones
    init_path: str = field(default="", metadata={"unit": "path"})  # the .ply
    sh_degree: int = 3  # 0 to 4; higher bands of a file are dropped, missing ones are 0
    isotropic: bool = False  # one scale for all three axes of a Gaussian
    init_opacity: float = 0.1
    init_scale: float = 1.0  # multiplied by the distance to the nearest points

    def __post_init__(self) -> None:
        check_choice("model.init", self.init, ("auto", "sfm", "random", "ply"))
        check_range("model.sh_degree", self.sh_degree, 0, 4)
        check_range("model.init_points", self.init_points, 0)
        check_range("model.init_opacity", self.init_opacity, 1e-6, 1 - 1e-6)
        check_range("model.init_scale", self.init_scale, 1e-6)
        if (self.init == "ply") != bool(self.init_path):
            raise ValueError(
                f"model.init_path: expected a file with model.init=ply and none otherwise, "
                f"got {self.init_path!r} with model.init={self.init}"
            )

    def __call__(self, scene: Scene, seed: int = 0) -> Splats:
        """Make the first rows; they depend on `scene` and `seed` alone.

        Raises: ValueError for a scene without points or a file without Gaussians.
        """
        random = generator("model", seed)
        if self.init == "ply":
            params = load_ply(self.init_path)
            keep = self._pick(len(params["means"]), random)
            params = {name: values[keep] for name, values in params.items()}
            params["shN"] = _with_bands(params["shN"], self.sh_degree)
            if self.isotropic:
                params["log_scales"] = params["log_scales"].mean(1, keepdim=True)
            return Splats(params, scene.extent)
        points, colors = scene.points, scene.colors
        if points is None or colors is None or not len(points):
            if self.init == "sfm":
                raise ValueError(
                    f"model.init: expected random for {scene.name}, which has no points, got sfm"
                )
            points = None
        if self.init == "random" or points is None or colors is None:
            points, colors = random_points_in_view(scene, self.init_points or 100_000, random)
        else:
            keep = self._pick(len(points), random)
            points, colors = points[keep], colors[keep] / 255
        return self.from_points(points, colors, scene.extent)

    def from_points(self, points: Tensor, colors: Tensor, extent: float) -> Splats:
        """Make round Gaussians at points [P,3], as wide as the points are apart.

        Args:
            points: [P,3] world units.
            colors: [P,3] in [0,1].
            extent: of the scene, world units.

        Source: Kerbl et al. 2023, section 5.1.
        """
        count = len(points)
        scales = (self.init_scale * neighbor_distance(points)).log()[:, None]
        params = {
            "means": points.float(),
            "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
            "log_scales": scales if self.isotropic else scales.repeat(1, 3),
            "opacity_logits": torch.full((count,), self.init_opacity).logit(),
            "sh0": ((colors.float() - 0.5) / SH_C0)[:, None],
            "shN": torch.zeros(count, (self.sh_degree + 1) ** 2 - 1, 3),
        }
        return Splats(params, extent)

    def _pick(self, count: int, random: torch.Generator) -> Tensor:
        """Return the sorted indices of the points to keep: all, or `init_points` without replacement."""
        if not 0 < self.init_points < count:
            return torch.arange(count)
        return torch.randperm(count, generator=random)[: self.init_points].sort().values


def _with_bands(shN: Tensor, degree: int) -> Tensor:
    """Return SH coefficients above degree 0 [N,K-1,3] cut, or filled with zeros, to a degree."""
    bands = (degree + 1) ** 2 - 1
    return torch.nn.functional.pad(shN[:, :bands], (0, 0, 0, max(0, bands - shN.shape[1])))
