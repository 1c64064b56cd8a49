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
from splatexp.densify.strategy import Context, Strategy
from splatexp.gaussians.rows import Rows
from splatexp.importance import Importance
from splatexp.losses.photometric import Loss
from splatexp.losses.regularizers import Regularizer
from splatexp.poses import Poses, Rig
from splatexp.raster.rasterizer import Drawing, Render
from splatexp.schedules.schedule import Pace
from splatexp.system.devices import sent, synchronize
from splatexp.system.rng import generator
from splatexp.train.dropout import Dropout
from splatexp.train.optimizer import Updates
from splatexp.train.progress import Bar
from splatexp.train.rate import Rate
from splatexp.train.smoothing import Smoothing
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
    splats: Rows, scene: Scene, *, raster: Drawing, loss: Loss, optimizer: Updates, schedule: Pace,
    densify: Strategy, importance: Importance, dropout: Dropout, smoothing: Smoothing,
    regularizers: Mapping[str, Regularizer], poses: Poses | None = None, tracker: Log | None = None,
    log_every: int = 50, steps: int, start: int = 0, batch: int = 1, seed: int = 0, progress: bool = True,
    on_step: Callable[[int, Rows], None] | None = None, record: Record | None = None,
    rate: Rate | None = None,
) -> TrainResult:  # fmt: skip
    """Fit rows to views, in place; `on_step` comes after a step, off the clock.  Raises: `Record.weigh`."""
    record, rate, step, total = record or Record(), rate or Rate(), start - 1, torch.tensor(math.nan)
    if not start:
        importance.begin(splats, seed)
        rate.begin(splats, scene)
    schedule = schedule.fitted(scene.train)
    rig = (poses or Poses()).rig(scene, splats, views := Resident(scene.train, raster.device))
    context = Context(seed=seed, steps=steps, scene=scene, raster=raster, views=rig.views)
    rest = (densify, importance, dropout, regularizers, rate, record)
    look = _Look(splats, scene, views, rig, raster, loss, *rest)
    with Bar(start, steps, progress) as bar:
        for step in range(start, start if record.ended else steps):
            with record.clock("seconds"):
                splats.between = not splats.waiting  # else this backward pass adds to what earlier ones left
                degree = schedule.sh_degree(step, splats.sh_degree)
                context.factor, context.sh_degree = schedule.factor(step), degree
                rate.ready(splats, scene, step, steps)
                sights = look(step, context, batch)
                splats.between, sight = False, together(sights)
                total = sight.total
                with record.clock("control"):
                    for each in sights:
                        densify.observe(step, splats, each.render, each.camera)
                rates = schedule.rates(step, steps, len(splats), splats.initial, splats.sh_degree)
                visible = torch.cat([each.render.visible for each in sights])
                optimizer.step(splats, step, rates=rates, visible=visible, backend=raster.backend)
                importance.update(splats, step, steps, raster.backend, seed)
                rig.update(step, steps, raster.backend)
                rate.update(splats, scene, raster, sights[-1].terms, step, steps)
                context.cap, context.worth = rate.count(splats, step, steps), rate.worth(splats, step)
                context.rate = optimizer.means * rates["means"] * splats.extent
                with record.clock("control"):
                    for edit in chain(densify.plan(step, splats, context), rate.plan(splats, step, steps)):
                        record.edited(edit, splats.apply(edit))
                smoothing.update(splats, rig.train, step, steps)
                last = optimizer.finish(splats, sights[-1], raster, step, steps, record.best)
                record.stepped(total, last and step + 1 < steps)
                splats.between = True
                if last or (step + 1) % log_every == 0:
                    record.confirm()
                    synchronize(raster.device)  # what the clock has not seen yet is no step's work
            if bar.due or last:
                bar.draw(step + 1, f"loss {total.item():.4f}  {sight.psnr:5.2f} dB  N {len(splats):,}")
            if tracker is not None and (last or (step + 1) % log_every == 0):
                with record.clock("logging"):
                    values = record.row(sight, splats, weight=loss.ssim, backend=raster.backend)
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
    raster: Drawing
    loss: Loss
    densify: Strategy
    importance: Importance
    dropout: Dropout
    regularizers: Mapping[str, Regularizer]
    rate: Rate
    record: Record

    def __call__(self, step: int, context: Context, batch: int) -> list[Sight]:
        """What was seen; where a view fails, no gradient is left behind."""
        seed, device = context.seed, self.raster.device
        behind = _background(self.scene, step, seed)
        channels = {
            "sh_degree": context.sh_degree,
            "background": sent(behind, device)[None],
            "absgrad": "absgrad" in self.densify.channels(step),
            "dropout": self.dropout.factors(step, context.steps, len(self.splats), seed, device),
        }
        sights = []
        try:
            for number in range(step * batch, (step + 1) * batch):
                index = self.scene.sample(number, seed)
                view = self.views[index]
                self.views.ahead(self.scene.sample(number + 1, seed))
                target, mask, camera = view.target(context.factor, behind)
                camera = self.rig.camera(index, camera, step)
                render = self.raster(self.splats, camera, **channels)
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
        values |= {f"lambda_{name}": r.strength(step, steps) for name, r in self.regularizers.items()}
        values |= self.densify.status(step, splats, context) | self.importance.status(step)
        return values | self.rate.status(splats, step) | self.rig.status(step, steps)

    def _terms(
        self, step: int, steps: int, render: Render, target: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """What a view loses, by name."""
        terms = self.loss(render.image, target, mask, backend=self.raster.backend)
        active = {name: r for name, r in self.regularizers.items() if r.active(step)}
        terms |= {name: r(render, self.splats, step, steps) for name, r in active.items()}
        terms |= self.rate.terms(self.splats, self.scene, step, steps)
        return terms | self.importance.terms(self.splats, render, step, steps) | self.rig.terms(step)


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """The colour [3] behind the Gaussians at a step, on the CPU."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
