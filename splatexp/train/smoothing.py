"""The 3D smoothing filter: no Gaussian is drawn smaller than the sharpest training view can tell.

Notation: V views, N Gaussians.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.data.scene import View
from splatexp.gaussians.splats import Splats
from splatexp.settings.checks import STEPS, check_range

CELLS = 1 << 20  # pairs of a row and a view that are looked at together


@dataclass
class Smoothing:
    """The filter's width in every row is that of a pixel of the view that samples it most densely.

    It is computed after step `start`, then after every so many, from the training cameras at full size; until
    then new rows have their parent's. The last `every` steps of a run keep what they have, for the colours to
    settle.

    Source: Yu et al. 2024, "Mip-Splatting". Rows in no view get the largest width of the others,
    as in the authors' code. Differs: each view counts with its own focal length, as in the paper.
    """

    amount: float = 0.0  # variance of the filter, px^2; 0: off; the paper's is 0.2
    every: int = 100
    margin: float = 0.15  # a view sees so much beyond its edges, share of its size
    near: float = 0.2  # and nothing nearer than this, world units
    start: int = field(default=0, metadata=STEPS)
    stop: int = field(default=0, metadata=STEPS)  # from here the widths stay; 0: to the end

    def __post_init__(self) -> None:
        for name in ("amount", "margin", "near", "start", "stop"):
            check_range(f"smoothing.{name}", getattr(self, name), 0)
        check_range("smoothing.every", self.every, 1)

    def due(self, step: int, steps: int) -> bool:
        """Whether the widths are computed after a step of a run of so many."""
        if not self.amount or step < self.start or 0 < self.stop <= step:
            return False
        return step == self.start or ((step + 1) % self.every == 0 and step + 1 + self.every <= steps)

    @torch.no_grad()
    def update(self, splats: Splats, views: Sequence[View], step: int, steps: int) -> None:
        """Write `splats.smoothing` [N], world units, where it is due after a step."""
        if self.due(step, steps):
            splats.smoothing.copy_(math.sqrt(self.amount) * self.pixels(splats.means, views))

    @torch.no_grad()
    def pixels(self, means: Tensor, views: Sequence[View]) -> Tensor:
        """Size [N] of a pixel at each mean [N,3] in the view that samples it most densely, world units.

        That is the least of depth / focal length over the views that see it; the largest of the others where
        none does, 0 where none sees any.
        """
        cameras = [view.camera for view in views]
        project = torch.cat([camera.Ks @ camera.viewmats[:, :3] for camera in cameras]).to(means)
        focal = torch.cat([torch.stack([c.Ks[:, 0, 0], c.Ks[:, 1, 1]]).amax(0) for c in cameras])
        sizes = [[camera.width, camera.height] for camera in cameras for _ in range(len(camera))]
        size = torch.tensor(sizes).to(means)
        least = [
            self._least(rows, project, focal.to(means), size)
            for rows in means.detach().split(max(1, CELLS // len(project)))
        ]
        found = torch.cat(least) if least else means.new_zeros(0)
        seen = found.isfinite()
        return torch.where(seen, found, found[seen].max() if seen.any() else 0.0)

    def _least(self, means: Tensor, project: Tensor, focal: Tensor, size: Tensor) -> Tensor:
        """Least depth / focal length [n] of means [n,3] over the views [V] that see them; inf where none."""
        x, y, z = (project[..., :3] @ means.T + project[..., 3:]).unbind(1)  # [V,n] each; pixel = x / z
        seen = z > self.near
        for along, extent in ((x, size[:, :1]), (y, size[:, 1:])):
            seen &= (along >= -self.margin * extent * z) & (along <= (1 + self.margin) * extent * z)
        return torch.where(seen, z / focal[:, None], math.inf).amin(0)
