"""From a picture to a .gsi file: the run of preset=image_codec, without the folder of a run.

A quality is looked for: PSNR grows by about SLOPE dB with every doubling of the bytes, so a quick fit tells
about how many it takes, a whole one nearly, and what is still too good gives Gaussians back.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from splatexp.data.single_image import scene_of
from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import load
from splatexp.image.fit.prefixes import framing
from splatexp.image.fit.rate import MOST
from splatexp.io.image_file import Picture
from splatexp.run.run import Run
from splatexp.settings.checks import check_range
from splatexp.train.loop import train
from splatexp.train.recipe import RECIPE

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.plane import Plane

GOALS = ("quality", "bytes", "bpp", "price", "levels")  # words that mean rate.<word>, but for the first
# Settings that encoding refuses: it makes no folder of a run, its data are given, and an image is one view.
REFUSED = {each.name for each in fields(Run)} - set(RECIPE) - {"threads"}
REFUSED |= {"data", "batch", "oom", "preset", "hydra"}
TOLD = 0.3  # dB: a quality that is missed by more is worth a word
QUALITY = 33.0  # dB, where nothing is asked for
PIXELS_PER_ROW = 1500  # where nothing says how many Gaussians a picture begins with
SLOPE = 2.8  # dB that twice the bytes are worth
QUICK = 0.25  # share of the steps in a first look
GAINED = 0.8  # dB that a whole fit has over a quick one
SURE = 0.15  # dB by which a quality may be missed
FIRST = 0.3  # bits per pixel of the first look
FAR = 4.0  # dB, and octaves, that the slope reaches
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

    @property
    def least(self) -> int:
        """Bytes of a file of as many layers without Gaussians."""
        levels = [_number(word) for word in self.words if _name(word) == "levels"]
        return framing(int(levels[0]) if levels else 1, self.picture.channels)


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
    goal, rest = _goal(words)
    job = _Job(picture, rest, on_step)
    if _name(goal) == "quality":
        quality = _number(goal)
        made = _searched(job, quality)
        if abs(made.psnr - quality) > TOLD and made.psnr < quality:
            warnings.warn(f"quality: expected {quality:g} dB, reached {made.psnr:.2f}", stacklevel=2)
    else:
        if _name(goal) == "bytes":
            check_range("bytes", _number(goal), job.least)
        elif _name(goal) == "bpp":
            least = 8 * job.least / job.pixels
            check_range(f"bpp of {picture.width} x {picture.height} px", _number(goal), least)
        made = _fitted(job, goal)
    return replace(made, seconds=time.perf_counter() - began)


def check(words: Sequence[str]) -> None:
    """Hold words against what `encode` takes, whatever the picture.  Raises: ValueError, one line."""
    goal, rest = _goal(words)
    job = _Job(Picture(np.zeros((64, 64, 3), np.float32)), rest, None)
    _run(job, f"bytes={_bytes(job, FIRST)}" if _name(goal) == "quality" else goal)


def _goal(words: Sequence[str]) -> tuple[str, list[str]]:
    """What the file is to be, as one word, and the other words.

    Raises: ValueError for words that contradict each other, and for settings that encoding has no use for.
    """
    plain = [
        word.removeprefix("rate.") if _name(word).removeprefix("rate.") in GOALS else word for word in words
    ]
    names = [_name(word) for word in plain]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{twice[0]}: expected once, got {' '.join(w for w in plain if _name(w) == twice[0])}"
        )
    if idle := [name for name in names if name.partition(".")[0] in REFUSED]:
        raise ValueError(f"{idle[0]}: no setting of encode; python -m splatexp preset=image_codec has it")
    goals = [word for word in plain if _name(word) in GOALS[:4]]
    if len(goals) > 1:
        raise ValueError(f"quality, bytes, bpp, price: expected one of them, got {', '.join(goals)}")
    if goals and _name(goals[0]) == "quality":
        check_range("quality", _number(goals[0]), 5, 80)
    return goals[0] if goals else f"quality={QUALITY}", [word for word in plain if word not in goals]


def _searched(job: _Job, quality: float) -> Encoded:
    """The fit whose file comes nearest to a quality, at least so good if any is."""
    made = _fitted(job, f"bytes={_bytes(job, FIRST)}", QUICK)
    if made.bare >= quality:  # the mean colour will do
        return _fitted(job, f"bytes={_bytes(job, 0)}", QUICK)
    aim = _aim(job, made, quality - GAINED)
    if abs(quality - made.psnr) > FAR:
        made = _fitted(job, f"bytes={_bytes(job, aim)}", QUICK)
        aim = _aim(job, made, quality - GAINED)
    tried: list[Encoded] = []
    for _ in range(TRIES):
        tried.append(_fitted(job, f"bytes={_bytes(job, aim)}", quality=quality))
        off = tried[-1].psnr - quality
        if abs(off) <= SURE or _bytes(job, aim) == _bytes(job, 0 if off > 0 else MOST):
            break
        aim = _aim(job, tried[-1], quality + SURE / 2)
    return min(tried, key=lambda one: (one.psnr < quality - SURE, abs(one.psnr - quality)))


def _aim(job: _Job, made: Encoded, quality: float) -> float:
    """Bits per pixel, framing apart, that a quality may take, after what a file has come to."""
    octaves = min(FAR, max(-FAR, (quality - made.psnr) / SLOPE))
    return max(8, len(made.data) - job.least) * 8 / job.pixels * 2**octaves


def _bytes(job: _Job, bpp: float) -> int:
    return job.least + max(8, round(min(bpp, MOST) * job.pixels / 8))


def _fitted(job: _Job, goal: str, share: float = 1.0, quality: float = math.inf) -> Encoded:
    """One fit to a goal, in a share of the steps; what is better than `quality` gives Gaussians back."""

    run = _run(job, goal)
    if share < 1:
        run = _run(job, goal, f"steps={max(20, round(run.steps * share))}")
    run.settle()
    scene = scene_of(job.picture)
    run.rate.check(scene)
    rows = run.raster.equipped(run.model(scene, run.seed)).to(run.raster.device)
    before = job.done

    def told(step: int, _: object) -> None:
        job.done = before + step + 1
        if job.told is not None:
            job.told(job.done, before + run.steps)

    train(rows, scene, run, progress=False, on_step=told)
    data = run.rate.file(rows, scene, run.raster)
    reached = _psnr(data, job.picture)
    if quality + SURE < reached < math.inf:
        data, reached = _given_back(rows, scene, run, job.picture, quality)
    bare = _psnr(run.rate.without(rows, scene, run.raster, len(rows)), job.picture)
    count = sum(len(layer) for layer in load(data).layers)
    return Encoded(data, count, reached, bare, run)


def _run(job: _Job, goal: str, *more: str) -> Run:
    """The run for a goal.  Raises: ValueError for a word that is none."""
    from splatexp.config.build import build, compose
    from splatexp.config.schema import Refused

    try:
        return build(compose([*_overrides(job, goal), *more]))
    except Refused as error:
        raise ValueError(str(error)) from error


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
        first = (_number(goal) * bits - 8 * job.least) / 34 / 4 if bits else job.pixels / PIXELS_PER_ROW
        made += [f"model.count={max(1, min(round(first), job.pixels))}"]
    return made + [f"rate.{word}" if _name(word) in GOALS else word for word in words if word not in made]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _number(word: str) -> float:
    name, _, value = word.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    return number
