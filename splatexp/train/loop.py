"""The training loop. It calls the parts of a recipe; none of them calls it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.data.view_cache import ViewCache
from splatexp.densify.context import Context
from splatexp.gaussians.rows import Rows
from splatexp.poses.learned import Rig
from splatexp.raster.rasterizer import Render
from splatexp.system.devices import synchronize, to_device
from splatexp.system.rng import generator
from splatexp.train.progress import ProgressBar
from splatexp.train.recipe import Recipe
from splatexp.train.step_log import StepLog, StepOutput, merge_outputs


class MetricLogger(Protocol):
    """A receiver of logged values, such as the trackers of a run."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the values of a step, by name."""


@dataclass
class TrainResult:
    """The duration and the last loss of a training."""

    seconds: float  # of the steps alone, without evaluation, logging and files
    steps: int
    loss: float  # of the last step


def train(
    splats: Rows,
    scene: Scene,
    recipe: Recipe,
    *,
    start: int = 0,
    step_log: StepLog | None = None,
    tracker: MetricLogger | None = None,
    log_every: int = 50,
    progress: bool = True,
    on_step: Callable[[int, Rows], None] | None = None,
) -> TrainResult:
    """Fit rows to the training views of a scene, in place, and return what that took.

    Args:
        splats: the Gaussians to start from; those of a checkpoint with `start` above 0.
        scene: the views to fit.
        recipe: every setting that can change a number.
        start: the number of steps that are done already.
        step_log: the sums over the run so far, from which the logged rows are made.
        tracker: receives a row of values every `log_every` steps, and after the last.
        progress: whether to show a progress bar.
        on_step: called after each step, off the clock, with the step and the rows.

    Raises: FloatingPointError where a loss is not finite.
    """
    step_log = step_log or StepLog()
    steps, seed, backend = recipe.steps, recipe.seed, recipe.raster.backend
    densify, importance, optimizer, rate = recipe.densify, recipe.importance, recipe.optimizer, recipe.rate
    if not start:
        importance.initialize(splats, seed)
        rate.initialize(splats, scene)
    schedule = recipe.schedule.fitted(scene.train)
    views = ViewCache(scene.train, recipe.raster.device)
    rig = recipe.camera.rig(scene, splats, views)
    context = Context(seed=seed, steps=steps, scene=scene, raster=recipe.raster, views=rig.views)
    forward_backward = _ForwardBackward(splats, scene, views, rig, recipe, step_log)
    step = start - 1
    total = torch.tensor(math.nan)
    with ProgressBar(start, steps, progress) as bar:
        for step in range(start, start if step_log.stopped_early else steps):
            with step_log.timer("seconds"):
                # gradients of earlier steps that wait for their update are part of the rows' state
                splats.consistent = not splats.has_gradients
                context.downscale = schedule.downscale(step)
                context.sh_degree = schedule.sh_degree(step, splats.sh_degree)
                rate.before_step(splats, scene, step, steps)
                outputs = forward_backward(step, context)
                splats.consistent = False
                output = merge_outputs(outputs)
                total = output.total
                with step_log.timer("densify_seconds"):
                    for each in outputs:
                        densify.observe(step, splats, each.render, each.camera)
                factors = schedule.lr_factors(
                    step, steps, len(splats), splats.initial_count, splats.sh_degree
                )
                visible = torch.cat([each.render.visible for each in outputs])
                optimizer.step(splats, step, lr_factors=factors, visible=visible, backend=backend)
                importance.update(splats, step, steps, backend, seed)
                rig.update(step, steps, backend)
                rate.after_backward(splats, scene, recipe.raster, outputs[-1].terms, step, steps)
                context.max_rows = rate.max_rows(splats, step, steps)
                context.min_gain = rate.min_gain(splats, step)
                context.means_lr = optimizer.means * factors["means"] * splats.extent
                with step_log.timer("densify_seconds"):
                    for edit in chain(densify.plan(step, splats, context), rate.plan(splats, step, steps)):
                        step_log.count_edit(edit, splats.apply(edit))
                recipe.smoothing.update(splats, rig.train, step, steps)
                last = optimizer.end_step(splats, outputs[-1], recipe.raster, step, steps, step_log.best)
                step_log.end_step(total, last and step + 1 < steps)
                splats.consistent = True
                due = last or (step + 1) % log_every == 0
                if due:
                    step_log.check_pending_loss()
                    synchronize(recipe.raster.device)  # so that the clock includes the device's work
            if bar.due or last:
                bar.draw(step + 1, f"loss {total.item():.4f}  {output.psnr:5.2f} dB  N {len(splats):,}")
            if tracker is not None and due:
                with step_log.timer("log_seconds"):
                    values = step_log.metrics(output, splats, weight=recipe.loss.ssim, backend=backend)
                    values |= forward_backward.metrics(step, context)
                    values |= optimizer.learning_rates(factors, splats)
                    tracker.log(step, values)
            if on_step is not None:
                on_step(step, splats)
            if last:
                break
    return TrainResult(step_log.seconds, step + 1 - start, total.item())


@dataclass
class _ForwardBackward:
    """Renders the views of a step one by one, and differentiates the mean of their losses."""

    splats: Rows
    scene: Scene
    views: ViewCache
    rig: Rig
    recipe: Recipe
    step_log: StepLog

    def __call__(self, step: int, context: Context) -> list[StepOutput]:
        """Return the render and the loss of every view, after their backward passes.

        Where a view fails, the gradients of the step are dropped, so that none of half a step remains.
        """
        recipe, seed, device = self.recipe, context.seed, self.recipe.raster.device
        batch = recipe.batch
        background = _background(self.scene, step, seed)
        requests = {
            "sh_degree": context.sh_degree,
            "background": to_device(background, device)[None],
            "absgrad": "absgrad" in recipe.densify.render_requests(step),
            "dropout": recipe.dropout.opacity_factors(step, context.steps, len(self.splats), seed, device),
        }
        outputs = []
        try:
            for number in range(step * batch, (step + 1) * batch):
                index = self.scene.sample(number, seed)
                view = self.views[index]
                self.views.prefetch(self.scene.sample(number + 1, seed))
                target, mask, camera = view.target(context.downscale, background)
                camera = self.rig.camera(index, camera, step)
                render = recipe.raster(self.splats, camera, **requests)
                terms = self._terms(step, context.steps, render, target, mask)
                if batch > 1:
                    terms = {name: term / batch for name, term in terms.items()}
                total = self.step_log.total_loss(step, terms, self.splats)
                total.backward()
                # density control reads the gradients of a view's own loss, whatever the batch size is
                for grad in (render.means2d.grad, render.absgrad) if batch > 1 else ():
                    if grad is not None:
                        grad *= batch
                outputs.append(StepOutput(step, terms, total.detach(), render, target, mask, camera))
        except BaseException:
            if self.splats.consistent:  # no gradients of earlier steps are among them
                self.splats.drop_gradients()
            raise
        return outputs

    def metrics(self, step: int, context: Context) -> dict[str, float]:
        """Return what all parts but the optimizer log after a step, by name."""
        recipe, steps, splats = self.recipe, context.steps, self.splats
        values: dict[str, float] = {"sh_degree": context.sh_degree, "downscale": context.downscale}
        values |= {f"lambda_{name}": r.weight_at(step, steps) for name, r in recipe.regularizer.items()}
        values |= recipe.densify.metrics(step, splats, context)
        values |= recipe.importance.metrics(step)
        values |= recipe.rate.metrics(splats, step)
        return values | self.rig.metrics(step, steps)

    def _terms(
        self, step: int, steps: int, render: Render, target: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the weighted terms of a view's loss, by name."""
        recipe, splats = self.recipe, self.splats
        terms = recipe.loss(render.image, target, mask, backend=recipe.raster.backend)
        active = {name: r for name, r in recipe.regularizer.items() if r.active(step)}
        terms |= {name: r(render, splats, step, steps) for name, r in active.items()}
        terms |= recipe.rate.loss_terms(splats, self.scene, step, steps)
        terms |= recipe.importance.loss_terms(splats, render, step, steps)
        return terms | self.rig.loss_terms(step)


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """Return the colour [3] behind the Gaussians in a step, on the CPU."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
