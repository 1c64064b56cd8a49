"""Steps of an image's fit besides Adam: solving for colours, early stopping, and L-BFGS at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.image.fit.solve import BlendOperator, solve_colors
from splatexp.settings.checks import STEPS, check_range

if TYPE_CHECKING:
    from splatexp.gaussians.splats2d import Splats2D
    from splatexp.raster.image import ImageRaster
    from splatexp.train.step_log import StepOutput

LENGTHS = ("cholesky", "rotation_scale")  # parametrizations whose numbers are px
BINS = 32  # of the histogram from which a tile's entropy is computed
HISTORY = 10  # pairs that L-BFGS keeps
SMALLEST = 0.1  # px: the least size of a Gaussian that serves as the unit of its numbers


@dataclass
class Refinement:
    """Optional stages of the fit of an image; all are off by default.

    Source: early stopping: Image-GS (Zhang et al. 2025), which looks at the whole image and first lowers the
        learning rates once; L-BFGS: Liu and Nocedal 1989.
    """

    # steps between least-squares solves for the colours; there is one after the last step too; 0: never
    solve_every: int = field(default=0, metadata=STEPS)
    solve_steps: int = 10  # of conjugate gradients in each solve
    solve_ridge: float = 1e-4  # how strongly a solve holds the colours where they were; see `solve_colors`
    lbfgs_steps: int = 0  # of L-BFGS over all parameters, after the last step
    # early stopping: steps without an improvement of the most detailed tiles; 0: never
    patience: int = field(default=0, metadata=STEPS)
    min_delta: float = 0.05  # dB of PSNR of these tiles that count as an improvement
    tile_fraction: float = 0.25  # of the tiles is watched: those whose values have the highest entropy
    tile_size: int = 32  # px, the side of a tile
    check_every: int = 10  # steps between two checks

    def __post_init__(self) -> None:
        for name, least in (("solve_every", 0), ("solve_steps", 1), ("solve_ridge", 0), ("lbfgs_steps", 0)):
            check_range(f"optimizer.refine.{name}", getattr(self, name), least)
        check_range("optimizer.refine.patience", self.patience, 0)
        check_range("optimizer.refine.min_delta", self.min_delta, 0)
        check_range("optimizer.refine.tile_fraction", self.tile_fraction, 1e-3, 1)
        check_range("optimizer.refine.tile_size", self.tile_size, 4)
        check_range("optimizer.refine.check_every", self.check_every, 1)

    @property
    def on(self) -> bool:
        """Return whether any stage is on."""
        return bool(self.solve_every or self.lbfgs_steps or self.patience)

    def __call__(
        self,
        rows: Splats2D,
        output: StepOutput,
        raster: ImageRaster,
        step: int,
        steps: int,
        best: list[float],
    ) -> bool:
        """Do what is due after a step, in place.

        Args:
            output: the output of the step, as it was before the rows were updated.
            best: the highest PSNR of the watched tiles so far, dB, and its step; [] before the first check.
                It is updated in place, and has to be passed again the next time.

        Returns: whether the fit ends here.
        """
        last = self._stopped_improving(step, output, best) or step + 1 == steps
        if last and self.lbfgs_steps:
            self._minimize(rows, output, raster)
        if self.solve_every and (last or (step + 1) % self.solve_every == 0):
            self._solve(rows, output, raster)
        return last

    def _stopped_improving(self, step: int, output: StepOutput, best: list[float]) -> bool:
        """Return whether the watched tiles have stopped improving."""
        if not self.patience or step % self.check_every:
            return False
        target = output.target[0]
        errors = (output.render.image.detach()[0].clamp(0, 1) - target).square().mean(-1)
        squares = tiles_of(errors, self.tile_size)[
            highest_entropy_tiles(target.mean(-1), self.tile_size, self.tile_fraction)
        ]
        found = -10 * math.log10(max(float(squares.nanmean()), 1e-12))
        if not best or found > best[0] + self.min_delta:
            best[:] = [found, float(step)]
        return step - best[1] >= self.patience

    @torch.no_grad()
    def _solve(self, rows: Splats2D, output: StepOutput, raster: ImageRaster) -> None:
        """Replace the colours by those of least squares, and reset Adam's first moment of them."""
        render = raster(rows, output.camera, background=output.render.background)
        geometry = render.means2d, render.conics, render.radii, render.blended_opacities
        blend = BlendOperator(
            *(each[0] for each in geometry),
            (render.width, render.height),
            mode=raster.mode,
            top_k=raster.top_k,
            tile_size=raster.tile_size,
            backend=raster.backend,
        )
        colors = render.colors[0]
        wanted = output.target[0] - (render.image[0] - blend.draw(colors))
        solved = solve_colors(
            blend, wanted, colors, steps=self.solve_steps, ridge=self.solve_ridge, tolerance=1e-5
        )
        rows.colors.copy_(solved.colors)
        rows.exp_avg["colors"].zero_()

    def _minimize(self, rows: Splats2D, output: StepOutput, raster: ImageRaster) -> None:
        """Run L-BFGS on the sum of squares, in units of a Gaussian: its size, and a colour of equal
        effect.
        """
        leaves, sizes = rows.params, rows.sigmas().clamp_min(SMALLEST)[:, None]
        units = {"means": sizes, "colors": 1 / sizes}
        if rows.parametrization in LENGTHS:
            units["shapes"] = sizes
        begun = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        ways = {name: torch.zeros_like(leaf, requires_grad=True) for name, leaf in leaves.items()}
        optimizer = torch.optim.LBFGS(
            list(ways.values()),
            max_iter=self.lbfgs_steps,
            max_eval=2 * self.lbfgs_steps,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def put() -> None:
            for name, leaf in leaves.items():
                leaf.copy_(begun[name] + units.get(name, 1.0) * ways[name])

        def closure() -> Tensor:
            put()
            with torch.enable_grad():
                drawn = raster(rows, output.camera, background=output.render.background)
                loss = (drawn.image - output.target).square().sum()
                found = torch.autograd.grad(loss, list(leaves.values()))
            for (name, way), grad in zip(ways.items(), found, strict=True):
                way.grad = grad * units.get(name, 1.0)
            return loss.detach()

        optimizer.step(closure)  # type: ignore[arg-type]
        put()


def tiles_of(values: Tensor, side: int) -> Tensor:
    """Return the pixels of [H,W] tile by tile, [T, side^2]; NaN where a tile reaches over the border."""
    height, width = values.shape
    room = (0, -width % side, 0, -height % side)
    full = torch.nn.functional.pad(values, room, value=torch.nan)
    rows = full.unflatten(0, (-1, side)).unflatten(2, (-1, side))
    return rows.transpose(1, 2).flatten(2).flatten(0, 1)


def highest_entropy_tiles(grey: Tensor, side: int, share: float) -> Tensor:
    """Return the indices of the tiles of [H,W] in [0,1] whose values have the highest entropy: a fraction, at
    least one.
    """
    tiles = tiles_of(grey, side)
    bins = (tiles * BINS).clamp(0, BINS - 1).nan_to_num(BINS).long()  # the last bin counts pixels outside
    counts = torch.zeros(len(tiles), BINS + 1).scatter_add_(1, bins.cpu(), torch.ones(bins.shape))[:, :BINS]
    entropy = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1)
    order = entropy.argsort(descending=True, stable=True)
    return order[: max(1, round(share * len(tiles)))].to(grey.device)
