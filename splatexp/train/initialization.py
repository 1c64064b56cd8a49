"""What training starts from: points of the scene, random ones, or the Gaussians of a file."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.gaussians.geometry import spacing
from splatexp.gaussians.splats import Splats
from splatexp.io.ply import SH_C0, load_ply
from splatexp.settings.checks import check_choice, check_range
from splatexp.system.rng import generator
from splatexp.train.frusta import frusta


@dataclass
class Model:
    """What training starts from; called with a scene, it makes the rows.

    init: sfm (the scene's points), random (in the cameras' frusta), ply (a file), auto (sfm where the scene
    has points, else random). A .ply keeps its own opacities and scales.
    """

    init: str = "auto"
    init_points: int = 0  # at most so many rows; 0: all points of the scene or file, 100,000 random ones
    init_path: str = field(default="", metadata={"unit": "path"})  # the .ply
    sh_degree: int = 3  # 0 to 4; a file's further bands are dropped, missing ones start at 0
    isotropic: bool = False  # one scale for all three axes
    init_opacity: float = 0.1
    init_scale: float = 1.0  # times the spacing of the points

    def __post_init__(self) -> None:
        check_choice("model.init", self.init, ("auto", "sfm", "random", "ply"))
        check_range("model.sh_degree", self.sh_degree, 0, 4)
        check_range("model.init_points", self.init_points, 0)
        check_range("model.init_opacity", self.init_opacity, 1e-6, 1 - 1e-6)
        check_range("model.init_scale", self.init_scale, 1e-6)
        if (self.init == "ply") != bool(self.init_path):
            raise ValueError(
                f"model.init_path: expected with init=ply alone, got {self.init_path!r} with init={self.init}"
            )

    def __call__(self, scene: Scene, seed: int = 0) -> Splats:
        """The first rows, from (scene, seed) alone.

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
                raise ValueError(f"model.init=sfm: {scene.name} has no points; use model.init=random")
            points = None
        if self.init == "random" or points is None or colors is None:
            points, colors = frusta(scene, self.init_points or 100_000, random)
        else:
            keep = self._pick(len(points), random)
            points, colors = points[keep], colors[keep] / 255
        return self.at(points, colors, scene.extent)

    def at(self, points: Tensor, colors: Tensor, extent: float) -> Splats:
        """Round rows at points [P,3] with colours [P,3] in [0,1], as wide as the points are apart.

        Source: Kerbl et al. 2023, section 5.1.
        """
        count = len(points)
        scales = (self.init_scale * spacing(points)).log()[:, None]
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
        """Rows to keep, in order: all, or `init_points` drawn without replacement."""
        if not 0 < self.init_points < count:
            return torch.arange(count)
        return torch.randperm(count, generator=random)[: self.init_points].sort().values


def _with_bands(shN: Tensor, degree: int) -> Tensor:
    """Higher coefficients [N,K-1,3] cut or filled with zeros to a degree."""
    bands = (degree + 1) ** 2 - 1
    return torch.nn.functional.pad(shN[:, :bands], (0, 0, 0, max(0, bands - shN.shape[1])))
