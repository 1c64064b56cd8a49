"""The 3D smoothing filter: no Gaussian is rendered smaller than the sharpest training view can resolve.

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

CHUNK_PAIRS = 1 << 20  # pairs of a Gaussian and a view that are computed at once


@dataclass
class Smoothing:
    """A low-pass filter per Gaussian, as wide as a pixel of the view that samples the Gaussian most densely.

    The widths are computed from the training cameras at full resolution after step `start`, and then after
    every `every` steps; in between, new Gaussians have the width of their parent. They stay as they are in
    the last `every` steps of a run, so that the colours can adapt to them.

    Source: Yu et al. 2024, "Mip-Splatting". Gaussians in no view get the largest width of the
    others, as in the authors' code. Differs: each view counts with its own focal length, as in the paper.
    """

    variance: float = 0.0  # of the filter, px^2; 0: no filter; the paper's value is 0.2
    every: int = 100  # steps between two computations of the widths
    margin: float = 0.15  # by which a view is enlarged on each side, as a fraction of its size
    near: float = 0.2  # a view sees nothing nearer than this, world units
    start: int = field(default=0, metadata=STEPS)  # step after which the filter sets in
    stop: int = field(
        default=0, metadata=STEPS
    )  # step from which the widths stay as they are; 0: the end of the run

    def __post_init__(self) -> None:
        for name in ("variance", "margin", "near", "start", "stop"):
            check_range(f"smoothing.{name}", getattr(self, name), 0)
        check_range("smoothing.every", self.every, 1)

    def due(self, step: int, steps: int) -> bool:
        """Return whether the widths are computed after a step of a run of `steps` steps."""
        if not self.variance or step < self.start or 0 < self.stop <= step:
            return False
        return step == self.start or ((step + 1) % self.every == 0 and step + 1 + self.every <= steps)

    @torch.no_grad()
    def update(self, splats: Splats, views: Sequence[View], step: int, steps: int) -> None:
        """Write the widths into `splats.smoothing` [N], world units, where they are due after a step."""
        if self.due(step, steps):
            splats.smoothing.copy_(math.sqrt(self.variance) * self.pixel_sizes(splats.means, views))

    @torch.no_grad()
    def pixel_sizes(self, means: Tensor, views: Sequence[View]) -> Tensor:
        """Return the size [N] of a pixel at each mean [N,3] in the view that samples it best, world units.

        That is the smallest depth / focal length over the views that see the mean. A mean that no view sees
        gets the largest size of the others, or 0 where the views see none at all.
        """
        cameras = [view.camera for view in views]
        project = torch.cat([camera.Ks @ camera.viewmats[:, :3] for camera in cameras]).to(means)
        focal = torch.cat([torch.stack([c.Ks[:, 0, 0], c.Ks[:, 1, 1]]).amax(0) for c in cameras])
        sizes = [[camera.width, camera.height] for camera in cameras for _ in range(len(camera))]
        size = torch.tensor(sizes).to(means)
        smallest = [
            self._smallest(rows, project, focal.to(means), size)
            for rows in means.detach().split(max(1, CHUNK_PAIRS // len(project)))
        ]
        found = torch.cat(smallest) if smallest else means.new_zeros(0)
        seen = found.isfinite()
        return torch.where(seen, found, found[seen].max() if seen.any() else 0.0)

    def _smallest(self, means: Tensor, project: Tensor, focal: Tensor, size: Tensor) -> Tensor:
        """Return the smallest depth / focal length [n] of means [n,3] over the views that see them, or inf.

        Args:
            project: [V,3,4] projection matrices.
            focal: [V] px.
            size: [V,2] width and height, px.
        """
        x, y, z = (project[..., :3] @ means.T + project[..., 3:]).unbind(1)  # [V,n] each; pixel = x / z
        seen = z > self.near
        for coordinate, extent in ((x, size[:, :1]), (y, size[:, 1:])):
            seen &= coordinate >= -self.margin * extent * z
            seen &= coordinate <= (1 + self.margin) * extent * z
        return torch.where(seen, z / focal[:, None], math.inf).amin(0)
