"""From a picture to a .gsi file: the run of preset=image_codec, without the folder of a run.

A quality is looked for: PSNR grows by about SLOPE dB with every doubling of the bytes, so a quick fit tells
about how many it takes, a whole one nearly, and what is still too good gives Gaussians back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from splatexp.choices import check_range
from splatexp.image.decode import decode
from splatexp.image.gsi import load
from splatexp.image.pictures import Picture
from splatexp.image.rate import FRAME

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.image.plane import Plane
    from splatexp.run import Run

TARGETS = ("bytes", "bpp", "price", "levels")  # words that mean rate.<word>
QUALITY = 33.0  # dB, where nothing is asked for
PIXELS_PER_ROW = 1500  # where nothing says how many Gaussians a picture begins with
SLOPE = 2.8  # dB that twice the bytes are worth
QUICK = 0.25  # share of the steps in a first look
GAINED = 0.8  # dB that a whole fit has over a quick one
SURE = 0.15  # dB by which a quality may be missed
FIRST = 0.3  # bits per pixel of the first look
FAR = 4.0  # dB, and octaves, that the slope reaches
LEAST, MOST = FRAME + 8, 64.0  # bytes, and bits per pixel: what a picture may take
TRIES = 4  # whole fits


@dataclass
class Encoded:
    """A file and what making it took."""

    data: bytes
    rows: int  # Gaussians
    psnr: float  # of what it decodes to, dB; inf where that is the picture itself
    bare: float  # the same of the background alone
    run: Run = field(repr=False)  # as it was set
    seconds: float = 0.0


@dataclass
class _Job:
    """A picture to be encoded, by words of the command line."""

    picture: Picture
    words: list[str]
    told: Callable[[int, int], None] | None
    done: int = 0  # steps of earlier fits

    @property
    def pixels(self) -> int:
        return self.picture.width * self.picture.height


def encode(
    picture: Picture, words: Sequence[str] = (), *, on_step: Callable[[int, int], None] | None = None
) -> Encoded:
    """A picture as a file.

    Args:
        words: `quality=33` (dB), `bytes=5000`, `bpp=0.2` or `price=0.05`; `levels=3`; and any setting of a
            run of preset=image_codec, such as `steps=1200` or `threads=1`.
        on_step: called with the steps that are done and how many there will be, as far as is known.

    Raises: ValueError, one line, for a word that is none.
    """
    began = time.perf_counter()
    goals = [word for word in words if _name(word) in ("quality", "bytes", "bpp", "price")]
    if len(goals) > 1:
        raise ValueError(f"quality, bytes, bpp, price: expected one of them, got {', '.join(goals)}")
    rest = [word for word in words if _name(word) != "quality"]
    job = _Job(picture, rest, on_step)
    if goals and _name(goals[0]) != "quality":
        made = _fitted(job, goals[0])
    else:
        quality = _number(goals[0]) if goals else QUALITY
        check_range("quality", quality, 5, 80)
        made = _searched(job, quality)
    return replace(made, seconds=time.perf_counter() - began)


def _searched(job: _Job, quality: float) -> Encoded:
    """The fit whose file comes nearest to a quality, at least so good if any is."""
    made = _fitted(job, f"bytes={_bytes(job, FIRST)}", QUICK)
    if made.bare >= quality:  # the mean colour will do
        return _fitted(job, f"bytes={LEAST}", QUICK)
    aim = _aim(job, made, quality - GAINED)
    if abs(quality - made.psnr) > FAR:
        made = _fitted(job, f"bytes={_bytes(job, aim)}", QUICK)
        aim = _aim(job, made, quality - GAINED)
    tried: list[Encoded] = []
    for _ in range(TRIES):
        tried.append(_fitted(job, f"bytes={_bytes(job, aim)}", quality=quality))
        off, end = tried[-1].psnr - quality, LEAST if tried[-1].psnr > quality else _bytes(job, MOST)
        if abs(off) <= SURE or _bytes(job, aim) == end:
            break
        aim = _aim(job, tried[-1], quality + SURE / 2)
    return min(tried, key=lambda one: (one.psnr < quality - SURE, abs(one.psnr - quality)))


def _aim(job: _Job, made: Encoded, quality: float) -> float:
    """Bits per pixel, framing apart, that a quality may take, after what a file has come to."""
    octaves = min(FAR, max(-FAR, (quality - made.psnr) / SLOPE))
    return max(8, len(made.data) - FRAME) * 8 / job.pixels * 2**octaves


def _bytes(job: _Job, bpp: float) -> int:
    return max(LEAST, FRAME + round(min(bpp, MOST) * job.pixels / 8))


def _fitted(job: _Job, goal: str, share: float = 1.0, quality: float = math.inf) -> Encoded:
    """One fit to a goal, in a share of the steps; what is better than `quality` gives Gaussians back."""
    from splatexp.config import build, compose
    from splatexp.data.image import scene_of
    from splatexp.schema import Refused
    from splatexp.train import train

    try:
        run = build(compose(_overrides(job, goal)))
        if share < 1:
            run = build(compose([*_overrides(job, goal), f"steps={max(20, round(run.steps * share))}"]))
    except Refused as error:
        raise ValueError(str(error)) from error
    run.settle()
    scene = scene_of(job.picture)
    rows = run.raster.equipped(run.model(scene, run.seed)).to(run.raster.device)
    before = job.done

    def told(step: int, _: object) -> None:
        job.done = before + step + 1
        if job.told is not None:
            job.told(job.done, before + run.steps)

    train(
        rows, scene, raster=run.raster, loss=run.loss, optimizer=run.optimizer, schedule=run.schedule,
        densify=run.densify, importance=run.importance, dropout=run.dropout, smoothing=run.smoothing,
        regularizers=run.regularizer, rate=run.rate, steps=run.steps, seed=run.seed, progress=False,
        on_step=told,
    )  # fmt: skip
    data = run.rate.file(rows, scene, run.raster)
    reached = _psnr(data, job.picture)
    if quality + SURE < reached < math.inf:
        data, reached = _given_back(rows, scene, run, job.picture, quality)
    bare = _psnr(run.rate.without(rows, scene, run.raster, len(rows)), job.picture)
    count = sum(len(layer) for layer in load(data).layers)
    return Encoded(data, count, reached, bare, run)


def _given_back(rows: Plane, scene: Scene, run: Run, picture: Picture, quality: float) -> tuple[bytes, float]:
    """The file without as many of the weakest rows as a quality bears; and its PSNR."""
    few, many = 0, len(rows)
    best = run.rate.without(rows, scene, run.raster, 0)
    while many - few > 1:
        middle = (few + many) // 2
        data = run.rate.without(rows, scene, run.raster, middle)
        few, many = (middle, many) if _psnr(data, picture) >= quality else (few, middle)
        best = data if few == middle else best
    return best, _psnr(best, picture)


def _psnr(data: bytes, picture: Picture) -> float:
    """PSNR of what a file decodes to, over all channels, dB."""
    truth = picture.integers().astype(np.float64)
    away = decode(data).reshape(truth.shape) - truth
    square = float((away * away).mean()) / ((1 << picture.bits) - 1) ** 2
    return -10 * math.log10(square) if square else math.inf


def _overrides(job: _Job, goal: str) -> list[str]:
    """The words of a run with a goal."""
    words, names = [*job.words, goal], {_name(word) for word in job.words}
    made = ["preset=image_codec", "tracker=[]"]
    if "model.count" not in names:
        bits = {"bytes": 8.0, "bpp": float(job.pixels)}.get(_name(goal), 0.0)
        first = (_number(goal) * bits - 8 * FRAME) / 34 / 4 if bits else job.pixels / PIXELS_PER_ROW
        made += [f"model.count={max(1, min(round(first), job.pixels))}"]
    return made + [f"rate.{word}" if _name(word) in TARGETS else word for word in words if word not in made]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _number(word: str) -> float:
    name, _, value = word.partition("=")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {value!r}") from None
