"""From an image to a .gsi file: the run of preset=image_codec, without the folder of a run.

A quality is searched for. PSNR grows by about SLOPE dB with every doubling of the bytes; so a quick fit
predicts the bytes roughly, a full one closely, and Gaussians in excess are removed at the end.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from splatexp.data.single_image import image_scene
from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import load
from splatexp.image.fit.prefixes import overhead_bytes
from splatexp.image.fit.rate import MAX_BPP
from splatexp.io.image_file import ImageData
from splatexp.run.run import Run
from splatexp.settings.checks import check_range
from splatexp.train.loop import train
from splatexp.train.recipe import RECIPE

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.splats2d import Splats2D

TARGETS = ("quality", "bytes", "bpp", "rd_lambda")  # settings that decide the size or the quality of a file
RATE_SETTINGS = ("bytes", "bpp", "rd_lambda", "layers")  # short for rate.<setting>
OLD_NAMES = {
    "price": "rd_lambda",
    "levels": "layers",
}  # settings of earlier versions, which are still accepted
# Settings that encoding refuses: it makes no folder of a run, its data are given, and an image is one view.
REFUSED = {each.name for each in fields(Run)} - set(RECIPE) - {"threads"} | {
    "data",
    "batch",
    "oom",
    "preset",
    "hydra",
}
QUALITY = 33.0  # dB, the default
WARN_DB = 0.3  # dB by which a quality may be missed without a warning
TOLERANCE_DB = 0.15  # dB by which a quality may be missed without another fit
PIXELS_PER_ROW = 1500  # of the first Gaussians, where no size is given
SLOPE = 2.8  # dB that twice the bytes are worth
QUICK = 0.25  # fraction of the steps of a quick fit
FULL_FIT_GAIN = 0.8  # dB that a full fit is better than a quick one
FIRST_BPP = 0.3  # bits per pixel of the first quick fit
MAX_OCTAVES = 4.0  # factor of the bytes, as log2, up to which SLOPE is trusted; also in dB
MAX_FITS = 4  # full fits


@dataclass
class EncodedImage:
    """A .gsi file and how it was made."""

    data: bytes
    num_gaussians: int
    psnr: float  # of the decoded image, dB; inf where it equals the original
    background_psnr: float  # dB, of the background alone
    run: Run = field(repr=False)  # the run that made it
    seconds: float = 0.0  # of the whole encoding


@dataclass
class _Job:
    """An image to be encoded, and the settings from the command line."""

    image: ImageData
    overrides: list[str]
    on_step: Callable[[int, int], None] | None
    done: int = 0  # steps of earlier fits

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height

    @property
    def min_bytes(self) -> int:
        """Return the bytes of a file with as many layers but no Gaussians."""
        layers = [_number(word) for word in self.overrides if _name(word) == "layers"]
        return overhead_bytes(int(layers[0]) if layers else 1, self.image.channels)


def encode(
    image: ImageData, overrides: Sequence[str] = (), *, on_step: Callable[[int, int], None] | None = None
) -> EncodedImage:
    """Encode an image as a file.

    Args:
        overrides: `quality=33` (dB), `bytes=5000`, `bpp=0.2` or `rd_lambda=0.05`; `layers=3`; and any setting
            of a run of preset=image_codec, such as `steps=1200` or `threads=1`.
        on_step: called with the number of steps that are done and how many there will be, as far as is known.

    Raises: ValueError, one line, for a setting that is not known or out of range.
    """
    start = time.perf_counter()
    target, rest = _target(overrides)
    job = _Job(image, rest, on_step)
    if _name(target) == "quality":
        quality = _number(target)
        encoded = _search_quality(job, quality)
        if quality - encoded.psnr > WARN_DB:
            warnings.warn(f"quality: expected {quality:g} dB, reached {encoded.psnr:.2f}", stacklevel=2)
    else:
        if _name(target) == "bytes":
            check_range("bytes", _number(target), job.min_bytes)
        elif _name(target) == "bpp":
            min_bpp = 8 * job.min_bytes / job.pixels
            check_range(f"bpp of {image.width} x {image.height} px", _number(target), min_bpp)
        encoded = _fit(job, target)
    return replace(encoded, seconds=time.perf_counter() - start)


def check_settings(overrides: Sequence[str]) -> None:
    """Check settings for `encode`, independent of an image.

    Raises: ValueError, one line.
    """
    target, rest = _target(overrides)
    job = _Job(ImageData(np.zeros((64, 64, 3), np.float32)), rest, None)
    _run(job, f"bytes={_bytes(job, FIRST_BPP)}" if _name(target) == "quality" else target)


def _target(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """Return the setting that decides the size or the quality of the file, and all other settings.

    Raises: ValueError for settings that contradict each other, and for settings that encoding does not use.
    """
    words = [_short(word) for word in overrides]
    names = [_name(word) for word in words]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        got = " ".join(word for word in words if _name(word) == repeated[0])
        raise ValueError(f"{repeated[0]}: expected once, got {got}")
    if refused := [name for name in names if name.partition(".")[0] in REFUSED]:
        raise ValueError(
            f"{refused[0]}: expected a setting of encode; python -m splatexp preset=image_codec has this one"
        )
    targets = [word for word in words if _name(word) in TARGETS]
    if len(targets) > 1:
        raise ValueError(f"{', '.join(TARGETS)}: expected one of them, got {', '.join(targets)}")
    if targets and _name(targets[0]) == "quality":
        check_range("quality", _number(targets[0]), 5, 80)
    return targets[0] if targets else f"quality={QUALITY}", [word for word in words if word not in targets]


def _short(word: str) -> str:
    """Return a setting with its current name, without `rate.` where it has a short name."""
    name, equals, value = word.partition("=")
    short = name.removeprefix("rate.")
    short = OLD_NAMES.get(short, short)
    return f"{short}{equals}{value}" if short in (*TARGETS, *RATE_SETTINGS) else word


def _search_quality(job: _Job, quality: float) -> EncodedImage:
    """Return the fit whose file comes closest to a quality, and reaches it where any fit does."""
    quick = _fit(job, f"bytes={_bytes(job, FIRST_BPP)}", QUICK)
    if quick.background_psnr >= quality:  # no Gaussians are needed
        return _fit(job, f"bytes={_bytes(job, 0)}", QUICK)
    bpp = _next_bpp(job, quick, quality - FULL_FIT_GAIN)
    if abs(quality - quick.psnr) > MAX_OCTAVES:
        quick = _fit(job, f"bytes={_bytes(job, bpp)}", QUICK)
        bpp = _next_bpp(job, quick, quality - FULL_FIT_GAIN)
    fits: list[EncodedImage] = []
    for _ in range(MAX_FITS):
        fits.append(_fit(job, f"bytes={_bytes(job, bpp)}", quality=quality))
        excess = fits[-1].psnr - quality
        at_limit = _bytes(job, bpp) == _bytes(job, 0 if excess > 0 else MAX_BPP)
        if abs(excess) <= TOLERANCE_DB or at_limit:
            break
        bpp = _next_bpp(job, fits[-1], quality + TOLERANCE_DB / 2)
    return min(fits, key=lambda fit: (fit.psnr < quality - TOLERANCE_DB, abs(fit.psnr - quality)))


def _next_bpp(job: _Job, encoded: EncodedImage, quality: float) -> float:
    """Return the bits per pixel, without overhead, that a quality should take, from an earlier result."""
    octaves = min(MAX_OCTAVES, max(-MAX_OCTAVES, (quality - encoded.psnr) / SLOPE))
    return max(8, len(encoded.data) - job.min_bytes) * 8 / job.pixels * 2**octaves


def _bytes(job: _Job, bpp: float) -> int:
    return job.min_bytes + max(8, round(min(bpp, MAX_BPP) * job.pixels / 8))


def _fit(job: _Job, target: str, fraction: float = 1.0, quality: float = math.inf) -> EncodedImage:
    """Fit once, in a fraction of the steps; where the result exceeds `quality`, Gaussians are removed."""
    run = _run(job, target)
    if fraction < 1:
        run = _run(job, target, f"steps={max(20, round(run.steps * fraction))}")
    run.configure_process()
    scene = image_scene(job.image)
    run.rate.check(scene)
    rows = run.raster.with_required_params(run.model(scene, run.seed)).to(run.raster.device)
    before = job.done

    def report(step: int, _: object) -> None:
        job.done = before + step + 1
        if job.on_step is not None:
            job.on_step(job.done, before + run.steps)

    train(rows, scene, run, progress=False, on_step=report)
    data = run.rate.encode(rows, scene, run.raster)
    psnr = _psnr(data, job.image)
    if quality + TOLERANCE_DB < psnr < math.inf:
        data, psnr = _reduced_to(rows, scene, run, job.image, quality)
    background_psnr = _psnr(run.rate.without(rows, scene, run.raster, len(rows)), job.image)
    count = sum(len(layer) for layer in load(data).layers)
    return EncodedImage(data, count, psnr, background_psnr, run)


def _run(job: _Job, target: str, *more: str) -> Run:
    """Return the run for a target.

    Raises: ValueError for a setting that is not known.
    """
    from splatexp.config.build import build, compose
    from splatexp.config.schema import ConfigError

    try:
        return build(compose([*_overrides(job, target), *more]))
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _reduced_to(
    rows: Splats2D, scene: Scene, run: Run, image: ImageData, quality: float
) -> tuple[bytes, float]:
    """Return the file with as many of the weakest rows removed as a quality allows, and its PSNR."""
    few, many = 0, len(rows)
    best = run.rate.without(rows, scene, run.raster, 0)
    while many - few > 1:
        middle = (few + many) // 2
        data = run.rate.without(rows, scene, run.raster, middle)
        few, many = (middle, many) if _psnr(data, image) >= quality else (few, middle)
        best = data if few == middle else best
    return best, _psnr(best, image)


def _psnr(data: bytes, image: ImageData) -> float:
    """Return the PSNR of a decoded file over all channels, dB."""
    original = image.integers().astype(np.float64)
    error = decode(data).reshape(original.shape) - original
    mse = float((error * error).mean()) / ((1 << image.bits) - 1) ** 2
    return -10 * math.log10(mse) if mse else math.inf


def _overrides(job: _Job, target: str) -> list[str]:
    """Return the command-line settings of a run for a target."""
    words, names = [*job.overrides, target], {_name(word) for word in job.overrides}
    defaults = ["preset=image_codec", "tracker=[]"]
    if "model.count" not in names:
        bits = {"bytes": 8.0, "bpp": float(job.pixels)}.get(_name(target), 0.0)
        count = job.pixels / PIXELS_PER_ROW
        if bits:
            count = (_number(target) * bits - 8 * job.min_bytes) / 34 / 4
        defaults += [f"model.count={max(1, min(round(count), job.pixels))}"]
    words = [word for word in words if word not in defaults]
    return defaults + [f"rate.{word}" if _name(word) in RATE_SETTINGS else word for word in words]


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
