"""The training loop, and nothing else. It calls plug-ins; plug-ins never call it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from splatexp.data.resident import Resident
from splatexp.data.scene import Scene
from splatexp.densify.strategy import Context, Strategy
from splatexp.devices import sent, synchronize
from splatexp.dropout import Dropout
from splatexp.importance import Importance
from splatexp.losses import Loss
from splatexp.optimizer import Adam
from splatexp.poses import Poses, Rig
from splatexp.progress import Bar
from splatexp.raster import Rasterizer, Render
from splatexp.record import Record, Sight, together
from splatexp.regularizers import Regularizer
from splatexp.schedules import Schedule
from splatexp.seeds import generator
from splatexp.smoothing import Smoothing
from splatexp.splats import Splats


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
    splats: Splats, scene: Scene, *, raster: Rasterizer, loss: Loss, optimizer: Adam, schedule: Schedule,
    densify: Strategy, importance: Importance, dropout: Dropout, smoothing: Smoothing,
    regularizers: Mapping[str, Regularizer], poses: Poses | None = None, tracker: Log | None = None,
    log_every: int = 50, steps: int, start: int = 0, batch: int = 1, seed: int = 0, progress: bool = True,
    on_step: Callable[[int, Splats], None] | None = None, record: Record | None = None,
) -> TrainResult:  # fmt: skip
    """Fit the Gaussians to the training views, in place; `on_step` comes after every step, off the clock.

    Raises: FloatingPointError when the loss is not finite: see `Record.weigh`.
    """
    record, total = record or Record(), torch.tensor(math.nan)
    if not start:
        importance.begin(splats, seed)
    schedule = schedule.fitted(scene.train)
    views = Resident(scene.train, raster.device)
    rig = (poses or Poses()).rig(scene, splats, views)
    context = Context(seed=seed, steps=steps, scene=scene, raster=raster, views=rig.views)
    look = _Look(splats, scene, views, rig, raster, loss, densify, importance, dropout, regularizers, record)
    with Bar(start, steps, progress) as bar:
        for step in range(start, steps):
            with record.clock("seconds"):
                splats.between = not splats.waiting  # else this backward pass adds to what earlier ones left
                context.factor = schedule.factor(step)
                context.sh_degree = schedule.sh_degree(step, splats.sh_degree)
                sights = look(step, context, batch)
                total = sights[0].total if batch == 1 else torch.stack([each.total for each in sights]).sum()
                splats.between = False
                with record.clock("control"):
                    for each in sights:
                        densify.observe(step, splats, each.render, each.camera)
                rates = schedule.rates(step, steps, len(splats), splats.initial, splats.sh_degree)
                visible = torch.cat([each.render.visible for each in sights])
                optimizer.step(splats, step, rates=rates, visible=visible, backend=raster.backend)
                importance.update(splats, step, steps, raster.backend, seed)
                rig.update(step, steps, raster.backend)
                context.rate = optimizer.means * rates["means"] * splats.extent
                with record.clock("control"):
                    for edit in densify.plan(step, splats, context):
                        record.edited(edit, splats.apply(edit))
                smoothing.update(splats, rig.train, step, steps)
                record.stepped(total)
                splats.between = True
                if (last := step + 1 == steps) or (step + 1) % log_every == 0:
                    record.confirm()
                    synchronize(raster.device)  # what the clock has not seen yet is no step's work
            sight = together(sights)
            if bar.due or last:
                bar.draw(step + 1, f"loss {total.item():.4f}  {sight.psnr:5.2f} dB  N {len(splats):,}")
            if tracker is not None and (last or (step + 1) % log_every == 0):
                with record.clock("logging"):
                    values = record.row(sight, splats, weight=loss.ssim, backend=raster.backend)
                    lambdas = {f"lambda_{name}": r.strength(step, steps) for name, r in regularizers.items()}
                    values |= {"sh_degree": context.sh_degree, "factor": context.factor, **lambdas}
                    values |= densify.status(step, splats, context) | importance.status(step)
                    tracker.log(step, values | optimizer.rates(rates, splats) | rig.status(step, steps))
            if on_step is not None:
                on_step(step, splats)
    return TrainResult(record.seconds, steps - start, total.item())


@dataclass
class _Look:
    """Draws the views of a step, one by one, and differentiates the mean of what they lose."""

    splats: Splats
    scene: Scene
    views: Resident
    rig: Rig
    raster: Rasterizer
    loss: Loss
    densify: Strategy
    importance: Importance
    dropout: Dropout
    regularizers: Mapping[str, Regularizer]
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

    def _terms(
        self, step: int, steps: int, render: Render, target: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """What a view loses, by name."""
        terms = self.loss(render.image, target, mask, backend=self.raster.backend)
        active = {name: r for name, r in self.regularizers.items() if r.active(step)}
        terms |= {name: r(render, self.splats, step, steps) for name, r in active.items()}
        return terms | self.importance.terms(self.splats, render, step, steps) | self.rig.terms(step)


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """The colour [3] behind the Gaussians at a step, on the CPU."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
