"""The training loop, and nothing else. It calls plug-ins; plug-ins never call it."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from splatexp.data.scene import Scene
from splatexp.densify.strategy import Context, Strategy
from splatexp.dropout import Dropout
from splatexp.importance import Importance
from splatexp.losses import Loss, psnr
from splatexp.optimizer import Adam
from splatexp.progress import Bar
from splatexp.raster import Rasterizer
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
    on_step: Callable[[int, Splats], None] | None = None,
) -> TrainResult:  # fmt: skip
    """Fit the Gaussians to the training views, in place; `on_step` is called after every step, off the clock.

    Raises: FloatingPointError when the loss is not finite, before anything is updated by it.
    """
    seconds, control, total, rows = 0.0, 0.0, math.nan, Counter[str]()
    if not start:
        importance.begin(splats, seed)
    schedule = schedule.fitted(scene.train)
    context = Context(seed=seed, steps=steps, scene=scene, raster=raster)
    with Bar(start, steps, progress) as bar:
        for step in range(start, steps):
            began = time.perf_counter()
            view, factor = scene.train[scene.sample(step, seed)], schedule.factor(step)
            behind = _background(scene, step, seed)
            target, mask, camera = view.target(factor, behind)
            degree, absgrad = schedule.sh_degree(step, splats.sh_degree), "absgrad" in densify.channels(step)
            dropped = dropout.factors(step, steps, len(splats), seed)
            render = raster(
                splats, camera, sh_degree=degree, background=behind[None], absgrad=absgrad, dropout=dropped
            )
            terms = loss(render.image, target, mask, backend=raster.backend)
            active = {name: r for name, r in regularizers.items() if r.active(step)}
            terms |= {name: r(render, splats, step, steps) for name, r in active.items()}
            terms |= importance.terms(splats, render, step, steps)
            total = _backward(terms, step)
            watched = time.perf_counter()
            densify.observe(step, splats, render, camera)
            control += time.perf_counter() - watched
            rates = schedule.rates(step, steps, len(splats), splats.initial, splats.sh_degree)
            optimizer.step(splats, step, rates=rates, visible=render.visible, backend=raster.backend)
            importance.update(splats, step, steps, raster.backend, seed)
            context.factor, context.sh_degree = factor, degree
            context.rate = optimizer.means * rates["means"] * splats.extent
            watched = time.perf_counter()
            for edit in densify.plan(step, splats, context):
                rows[edit.by] += splats.apply(edit)
            control += time.perf_counter() - watched
            smoothing.update(splats, scene.train, step, steps)
            seconds += time.perf_counter() - began

            last = step + 1 == steps
            if bar.due or last:
                quality, pace = psnr(render.image, target, mask), (step + 1 - start) / seconds
                bar.draw(step + 1, f"loss {total:.4f}  {quality:5.2f} dB  N {len(splats):,}  {pace:.1f} it/s")
            if tracker is not None and (last or (step + 1) % log_every == 0):
                values = {name: term.item() for name, term in terms.items()}
                values |= {"loss": total, "psnr": psnr(render.image, target, mask), "seconds": seconds}
                values |= {"seconds_densify": control, "num_gaussians": len(splats), "sh_degree": degree}
                values |= {f"lr_{name}": rate for name, rate in rates.items()}
                tracker.log(step, values | {f"rows_{name}": n for name, n in rows.items() if n})
                rows.clear()
            if on_step is not None:
                on_step(step, splats)
    return TrainResult(seconds, steps - start, total)


def _backward(terms: Mapping[str, Tensor], step: int) -> float:
    """Differentiate the sum of the terms and return it."""
    loss = torch.stack(list(terms.values())).sum()
    value = loss.item()
    if not math.isfinite(value):
        parts = ", ".join(f"{name}={term.item():.4g}" for name, term in terms.items())
        raise FloatingPointError(f"step {step}: the loss is not finite ({parts}); lower the learning rates")
    loss.backward()
    return value


def _background(scene: Scene, step: int, seed: int) -> Tensor:
    """The colour [3] behind the Gaussians at a step."""
    if scene.random_background:
        return torch.rand(3, generator=generator("background", seed, step))
    return torch.tensor(scene.background or (0.0, 0.0, 0.0))
