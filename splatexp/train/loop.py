"""The training loop, and nothing else. It calls plug-ins; plug-ins never call it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.data.view_cache import Resident
from splatexp.densify.context import Context
from splatexp.gaussians.rows import Rows
from splatexp.poses.learned import Rig
from splatexp.raster.rasterizer import Render
from splatexp.system.devices import sent, synchronize
from splatexp.system.rng import generator
from splatexp.train.progress import Bar
from splatexp.train.recipe import Recipe
from splatexp.train.step_log import Record, Sight, together


class Log(Protocol):
    """Where the numbers of a run go."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""


@dataclass
class TrainResult:
    """What training took. Seconds are of the steps alone: no evaluation, no logs, no files."""

    seconds: float
    steps: int
    loss: float  # of the last step


def train(
    splats: Rows,
    scene: Scene,
    recipe: Recipe,
    *,
    start: int = 0,
    record: Record | None = None,
    tracker: Log | None = None,
    log_every: int = 50,
    progress: bool = True,
    on_step: Callable[[int, Rows], None] | None = None,
) -> TrainResult:
    """Fit rows to the training views of a scene, in place, and return what that took.

    Args:
        splats: the Gaussians to start from; those of a checkpoint with `start` above 0.
        scene: the views to fit.
        recipe: every setting that can change a number.
        start: the steps that are done already.
        record: the sums over the run so far, of which the logged rows are made.
        tracker: gets a row of numbers every `log_every` steps, and after the last.
        progress: whether to show a progress bar.
        on_step: called after each step, off the clock, with the step and the rows.

    Raises: FloatingPointError where a loss is not finite.
    """
    record = record or Record()
    steps, seed, backend = recipe.steps, recipe.seed, recipe.raster.backend
    densify, importance, optimizer, rate = recipe.densify, recipe.importance, recipe.optimizer, recipe.rate
    if not start:
        importance.begin(splats, seed)
        rate.begin(splats, scene)
    schedule = recipe.schedule.fitted(scene.train)
    views = Resident(scene.train, recipe.raster.device)
    rig = recipe.camera.rig(scene, splats, views)
    context = Context(seed=seed, steps=steps, scene=scene, raster=recipe.raster, views=rig.views)
    look = _Look(splats, scene, views, rig, recipe, record)
    step, total = start - 1, torch.tensor(math.nan)
    with Bar(start, steps, progress) as bar:
        for step in range(start, start if record.ended else steps):
            with record.clock("seconds"):
                splats.between = not splats.waiting  # else this backward pass adds to what earlier ones left
                context.factor = schedule.factor(step)
                context.sh_degree = schedule.sh_degree(step, splats.sh_degree)
                rate.ready(splats, scene, step, steps)
                sights = look(step, context)
                splats.between = False
                sight = together(sights)
                total = sight.total
                with record.clock("control"):
                    for each in sights:
                        densify.observe(step, splats, each.render, each.camera)
                rates = schedule.rates(step, steps, len(splats), splats.initial, splats.sh_degree)
                visible = torch.cat([each.render.visible for each in sights])
                optimizer.step(splats, step, rates=rates, visible=visible, backend=backend)
                importance.update(splats, step, steps, backend, seed)
                rig.update(step, steps, backend)
                rate.update(splats, scene, recipe.raster, sights[-1].terms, step, steps)
                context.cap = rate.count(splats, step, steps)
                context.worth = rate.worth(splats, step)
                context.rate = optimizer.means * rates["means"] * splats.extent
                with record.clock("control"):
                    for edit in chain(densify.plan(step, splats, context), rate.plan(splats, step, steps)):
                        record.edited(edit, splats.apply(edit))
                recipe.smoothing.update(splats, rig.train, step, steps)
                last = optimizer.finish(splats, sights[-1], recipe.raster, step, steps, record.best)
                record.stepped(total, last and step + 1 < steps)
                splats.between = True
                due = last or (step + 1) % log_every == 0
                if due:
                    record.confirm()
                    synchronize(recipe.raster.device)  # what the clock has not seen yet is no step's work
            if bar.due or last:
                bar.draw(step + 1, f"loss {total.item():.4f}  {sight.psnr:5.2f} dB  N {len(splats):,}")
            if tracker is not None and due:
                with record.clock("logging"):
                    values = record.row(sight, splats, weight=recipe.loss.ssim, backend=backend)
                    values |= look.status(step, context) | optimizer.rates(rates, splats)
                    tracker.log(step, values)
            if on_step is not None:
                on_step(step, splats)
            if last:
                break
    return TrainResult(record.seconds, step + 1 - start, total.item())


@dataclass
class _Look:
    """Draws the views of a step, one by one, and differentiates the mean of what they lose."""

    splats: Rows
    scene: Scene
    views: Resident
    rig: Rig
    recipe: Recipe
    record: Record

    def __call__(self, step: int, context: Context) -> list[Sight]:
        """What was seen; where a view fails, no gradient is left behind."""
        recipe, seed, device = self.recipe, context.seed, self.recipe.raster.device
        batch = recipe.batch
        behind = _background(self.scene, step, seed)
        channels = {
            "sh_degree": context.sh_degree,
            "background": sent(behind, device)[None],
            "absgrad": "absgrad" in recipe.densify.channels(step),
            "dropout": recipe.dropout.factors(step, context.steps, len(self.splats), seed, device),
        }
        sights = []
        try:
            for number in range(step * batch, (step + 1) * batch):
                index = self.scene.sample(number, seed)
                view = self.views[index]
                self.views.ahead(self.scene.sample(number + 1, seed))
                target, mask, camera = view.target(context.factor, behind)
                camera = self.rig.camera(index, camera, step)
                render = recipe.raster(self.splats, camera, **channels)
                terms = self._terms(step, context.steps, render, target, mask)
                if batch > 1:
                    terms = {name: term / batch for name, term in terms.items()}
                total = self.record.weigh(step, terms, self.splats)
                total.backward()
                for grad in (render.means2d.grad, render.absgrad) if batch > 1 else ():
                    if grad is not None:
                        grad *= batch  # density control goes by the loss of a view, however many there are
                sights.append(Sight(step, terms, total.detach(), render, target, mask, camera))
        except BaseException:
            if self.splats.between:  # no gradient was waiting: what there is, is of half a step
                self.splats.drop_gradients()
            raise
        return sights

    def status(self, step: int, context: Context) -> dict[str, float]:
        """Where all but the optimizer stand after a step, by name, for the record."""
        steps, splats = context.steps, self.splats
        values = {"sh_degree": context.sh_degree, "factor": context.factor}
        values |= {f"lambda_{name}": r.strength(step, steps) for name, r in self.recipe.regularizer.items()}
        values |= self.recipe.densify.status(step, splats, context) | self.recipe.importance.status(step)
        return values | self.recipe.rate.status(splats, step) | self.rig.status(step, steps)

    def _terms(
        self, step: int, steps: int, render: Render, target: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """What a view loses, by name."""
        terms = self.recipe.loss(render.image, target, mask, backend=self.recipe.raster.backend)
        active = {name: r for name, r in self.recipe.regularizer.items() if r.active(step)}
        terms |= {name: r(render, self.splats, step, steps) for name, r in active.items()}
        terms |= self.recipe.rate.terms(self.splats, self.scene, step, steps)
        return terms | self.recipe.importance.terms(self.splats, render, step, steps) | self.rig.terms(step)


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """The colour [3] behind the Gaussians at a step, on the CPU."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
