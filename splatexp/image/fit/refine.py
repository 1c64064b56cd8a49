"""What the fit of a picture may do besides steps of Adam: solve for colours, end early, end with L-BFGS."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.image.fit.solve import Blend, solve
from splatexp.settings.checks import STEPS, check_range

if TYPE_CHECKING:
    from splatexp.gaussians.plane import Plane
    from splatexp.raster.plane import Plane as Drawing
    from splatexp.train.step_log import Sight

LENGTHS = ("cholesky", "rotation_scale")  # forms whose numbers are px
BINS = 32  # of the histogram that a tile's entropy is taken from
HISTORY = 10  # pairs that L-BFGS remembers
SMALLEST = 0.1  # px: the size that a row has at least, as a unit of its numbers


@dataclass
class Refine:
    """Stages of the fit of a picture; all are off as it stands.

    Source: exit after Image-GS (Zhang et al. 2025), which looks at the whole picture and first lowers the
    rates once; L-BFGS: Liu and Nocedal 1989.
    """

    # colours are solved for by least squares after every so many steps, and after the last; 0: never
    solve_every: int = field(default=0, metadata=STEPS)
    solve_steps: int = 10  # of conjugate gradients, each time
    solve_ridge: float = 1e-4  # see `solve`: how strongly they are held where they were
    lbfgs: int = 0  # steps of L-BFGS after the last, over all parameters
    # end where the busiest tiles have not gained in so many steps; 0: never
    patience: int = field(default=0, metadata=STEPS)
    gain: float = 0.05  # dB, of these tiles
    busiest: float = 0.25  # share of the tiles: those whose values have the highest entropy
    tile: int = 32  # px, a side
    every: int = 10  # steps between two looks

    def __post_init__(self) -> None:
        for name, least in (("solve_every", 0), ("solve_steps", 1), ("solve_ridge", 0), ("lbfgs", 0)):
            check_range(f"optimizer.refine.{name}", getattr(self, name), least)
        check_range("optimizer.refine.patience", self.patience, 0)
        check_range("optimizer.refine.gain", self.gain, 0)
        check_range("optimizer.refine.busiest", self.busiest, 1e-3, 1)
        check_range("optimizer.refine.tile", self.tile, 4)
        check_range("optimizer.refine.every", self.every, 1)

    @property
    def on(self) -> bool:
        """Whether there is anything that it does."""
        return bool(self.solve_every or self.lbfgs or self.patience)

    def __call__(
        self, rows: Plane, sight: Sight, raster: Drawing, step: int, steps: int, best: list[float]
    ) -> bool:
        """Do what is due after a step, in place.

        Args:
            sight: the step's picture, as it was before the rows were updated.
            best: the highest PSNR of the busiest tiles so far, dB, and the step that had it; [] before the
                first look. It is brought up to date, and is to be given again the next time.

        Returns: whether the fit is at its end.
        """
        last = self._tired(step, sight, best) or step + 1 == steps
        if last and self.lbfgs:
            self._descend(rows, sight, raster)
        if self.solve_every and (last or (step + 1) % self.solve_every == 0):
            self._solve(rows, sight, raster)
        return last

    def _tired(self, step: int, sight: Sight, best: list[float]) -> bool:
        """Whether the busiest tiles have stopped to gain."""
        if not self.patience or step % self.every:
            return False
        target = sight.target[0]
        errors = (sight.render.image.detach()[0].clamp(0, 1) - target).square().mean(-1)
        squares = tiled(errors, self.tile)[busiest(target.mean(-1), self.tile, self.busiest)]
        found = -10 * math.log10(max(float(squares.nanmean()), 1e-12))
        if not best or found > best[0] + self.gain:
            best[:] = [found, float(step)]
        return step - best[1] >= self.patience

    @torch.no_grad()
    def _solve(self, rows: Plane, sight: Sight, raster: Drawing) -> None:
        """Put the colours of least squares in place; where Adam was going with them is forgotten."""
        render = raster(rows, sight.camera, background=sight.render.background)
        geometry = render.means2d, render.conics, render.radii, render.blended
        blend = Blend(
            *(each[0] for each in geometry), (render.width, render.height), mode=raster.mode,
            top_k=raster.top_k, tile_size=raster.tile_size, backend=raster.backend,
        )  # fmt: skip
        colors = render.colors[0]
        wanted = sight.target[0] - (render.image[0] - blend.draw(colors))
        solved = solve(blend, wanted, colors, steps=self.solve_steps, ridge=self.solve_ridge, tolerance=1e-5)
        rows.colors.copy_(solved.colors)
        rows.exp_avg["colors"].zero_()

    def _descend(self, rows: Plane, sight: Sight, raster: Drawing) -> None:
        """L-BFGS on the sum of squares, in units of a row: its size, and a colour that shows as much."""
        leaves, sizes = rows.params, rows.sizes().clamp_min(SMALLEST)[:, None]
        units = {"means": sizes, "colors": 1 / sizes}
        if rows.form in LENGTHS:
            units["shapes"] = sizes
        begun = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        ways = {name: torch.zeros_like(leaf, requires_grad=True) for name, leaf in leaves.items()}
        optimizer = torch.optim.LBFGS(
            list(ways.values()), max_iter=self.lbfgs, max_eval=2 * self.lbfgs, history_size=HISTORY,
            tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
        )  # fmt: skip

        @torch.no_grad()
        def put() -> None:
            for name, leaf in leaves.items():
                leaf.copy_(begun[name] + units.get(name, 1.0) * ways[name])

        def closure() -> Tensor:
            put()
            with torch.enable_grad():
                drawn = raster(rows, sight.camera, background=sight.render.background)
                loss = (drawn.image - sight.target).square().sum()
                found = torch.autograd.grad(loss, list(leaves.values()))
            for (name, way), grad in zip(ways.items(), found, strict=True):
                way.grad = grad * units.get(name, 1.0)
            return loss.detach()

        optimizer.step(closure)  # type: ignore[arg-type]
        put()


def tiled(values: Tensor, side: int) -> Tensor:
    """Pixels [H,W] tile by tile, [T, side^2]; NaN where a tile reaches over the border."""
    height, width = values.shape
    room = (0, -width % side, 0, -height % side)
    full = torch.nn.functional.pad(values, room, value=torch.nan)
    rows = full.unflatten(0, (-1, side)).unflatten(2, (-1, side))
    return rows.transpose(1, 2).flatten(2).flatten(0, 1)


def busiest(grey: Tensor, side: int, share: float) -> Tensor:
    """The tiles of [H,W] in [0,1] whose values have the highest entropy: their numbers, at least one."""
    tiles = tiled(grey, side)
    bins = (tiles * BINS).clamp(0, BINS - 1).nan_to_num(BINS).long()  # the last counts what is outside
    counts = torch.zeros(len(tiles), BINS + 1).scatter_add_(1, bins.cpu(), torch.ones(bins.shape))[:, :BINS]
    entropy = torch.special.entr(counts / counts.sum(1, keepdim=True)).sum(1)
    order = entropy.argsort(descending=True, stable=True)
    return order[: max(1, round(share * len(tiles)))].to(grey.device)
