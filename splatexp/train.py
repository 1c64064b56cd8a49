"""The training loop, and nothing else. It calls plug-ins; plug-ins never call it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.densify.strategy import Context, Strategy
from splatexp.dropout import Dropout
from splatexp.importance import Importance
from splatexp.losses import Loss
from splatexp.optimizer import Adam
from splatexp.progress import Bar
from splatexp.raster import Rasterizer
from splatexp.record import Record, Sight, sick
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
    regularizers: Mapping[str, Regularizer], tracker: Log | None = None, log_every: int = 50,
    steps: int, start: int = 0, seed: int = 0, progress: bool = True,
    on_step: Callable[[int, Splats], None] | None = None, record: Record | None = None,
) -> TrainResult:  # fmt: skip
    """Fit the Gaussians to the training views, in place; `on_step` comes after every step, off the clock.

    Raises: FloatingPointError when the loss is not finite, before anything is updated by it.
    """
    record, total = record or Record(), math.nan
    if not start:
        importance.begin(splats, seed)
    schedule = schedule.fitted(scene.train)
    context = Context(seed=seed, steps=steps, scene=scene, raster=raster)
    with Bar(start, steps, progress) as bar:
        for step in range(start, steps):
            with record.clock("seconds"):
                splats.between = not splats.waiting  # else this backward pass adds to what earlier ones left
                view, behind = scene.train[scene.sample(step, seed)], _background(scene, step, seed)
                context.factor = schedule.factor(step)
                context.sh_degree = schedule.sh_degree(step, splats.sh_degree)
                target, mask, camera = view.target(context.factor, behind)
                render = raster(
                    splats, camera, sh_degree=context.sh_degree, background=behind[None],
                    absgrad="absgrad" in densify.channels(step),
                    dropout=dropout.factors(step, steps, len(splats), seed),
                )  # fmt: skip
                terms = loss(render.image, target, mask, backend=raster.backend)
                active = {name: r for name, r in regularizers.items() if r.active(step)}
                terms |= {name: r(render, splats, step, steps) for name, r in active.items()}
                terms |= importance.terms(splats, render, step, steps)
                total = _backward(terms, step, splats)
                splats.between = False
                with record.clock("control"):
                    densify.observe(step, splats, render, camera)
                rates = schedule.rates(step, steps, len(splats), splats.initial, splats.sh_degree)
                optimizer.step(splats, step, rates=rates, visible=render.visible, backend=raster.backend)
                importance.update(splats, step, steps, raster.backend, seed)
                context.rate = optimizer.means * rates["means"] * splats.extent
                with record.clock("control"):
                    for edit in densify.plan(step, splats, context):
                        record.edited(edit, splats.apply(edit))
                smoothing.update(splats, scene.train, step, steps)
                record.stepped(total)
                splats.between = True
            sight, last = Sight(step, terms, total, render, target, mask), step + 1 == steps
            if bar.due or last:
                bar.draw(step + 1, f"loss {total:.4f}  {sight.psnr:5.2f} dB  N {len(splats):,}")
            if tracker is not None and (last or (step + 1) % log_every == 0):
                with record.clock("logging"):
                    values = record.row(sight, splats, weight=loss.ssim, backend=raster.backend)
                    lambdas = {f"lambda_{name}": r.strength(step, steps) for name, r in regularizers.items()}
                    values |= {"sh_degree": context.sh_degree, "factor": context.factor, **lambdas}
                    values |= densify.status(step, splats, context) | importance.status(step)
                    tracker.log(step, values | optimizer.rates(rates, splats))
            if on_step is not None:
                on_step(step, splats)
    return TrainResult(record.seconds, steps - start, total)


def _backward(terms: Mapping[str, Tensor], step: int, splats: Splats) -> float:
    """Differentiate the sum of the terms and return it; where that fails, no gradient is left behind."""
    loss = torch.stack(list(terms.values())).sum()
    value = loss.item()
    if not math.isfinite(value):
        parts = ", ".join(f"{name}={term.item():.4g}" for name, term in terms.items())
        bad = ", ".join(f"{n} rows of {name}" for name, n in sick(splats).items())
        since = f"; not finite before it: {bad}" if bad else "; lower the learning rates"
        raise FloatingPointError(f"step {step}: the loss is not finite ({parts}){since}")
    try:
        loss.backward()
    except BaseException:
        if splats.between:  # no gradient was waiting: what there is, is half of this one
            splats.drop_gradients()
        raise
    return value


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """The colour [3] behind the Gaussians at a step."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
