"""The views in which a variant and the baseline differ most, as pictures that fit into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from splatexp.io.figures import ERROR_FULL, PAPER, colormap
from splatexp.study.findings import Findings, Metric, finite
from splatexp.study.results import Result

if TYPE_CHECKING:
    from PIL import Image

TOGETHER, EACH = 24, 4  # comparisons in a page, and of one variant
NARROW, WIDE, ASPECT = 256, 400, 4 / 3  # px of a crop: least and largest width; width / height
VIEW = 360  # px of the longer side of a whole view
FINE, COARSE = 88, 72  # quality of crops, and of whole views


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    name: str  # what it shows
    data: str  # as a data URI
    width: int
    height: int


@dataclass(frozen=True)
class Pair:
    """One held-out view by the baseline and by a variant."""

    variant: str
    scene: str
    view: str
    seed: int  # of the two runs that are shown: the one nearest to the mean difference
    seeds: int  # that both have
    values: tuple[float, float]  # of the metric in these runs: the baseline's, the variant's
    difference: float  # mean over seeds
    crops: tuple[Picture, ...] = ()  # truth, baseline, variant: where they differ most
    views: tuple[Picture, ...] = ()  # truth with the crop marked, both errors, and which is nearer the truth
    without: str = ""  # why there are no pictures


@dataclass(frozen=True)
class Sight:
    """A view in two runs of one scene and seed."""

    before: float  # the metric
    after: float
    base: Result
    run: Result

    @property
    def difference(self) -> float:
        """Of the metric."""
        return self.after - self.before


def pairs(findings: Findings, metric: Metric) -> dict[str, list[Pair]]:
    """For every variant the views that differ most in a metric, the scenes in turn."""
    each = max(1, min(EACH, TOGETHER // max(1, len(findings.others))))
    return {
        name: [_pair(*chosen) for chosen in _chosen(findings, metric, name, each)] for name in findings.others
    }


def _chosen(findings: Findings, metric: Metric, variant: str, count: int) -> Iterator[tuple[Pair, Sight]]:
    """The views, still without pictures, and in which runs they are shown."""
    found: dict[str, dict[str, list[Sight]]] = {scene: {} for scene in findings.scenes}
    for base, run in findings.paired(variant):
        usual = {view["view"]: view.get(metric.name) for view in base.views}
        for view in run.views:
            one, other = usual.get(view["view"]), view.get(metric.name)
            if finite(one) and finite(other):
                found[run.scene].setdefault(str(view["view"]), []).append(Sight(one, other, base, run))
    columns = []
    for scene, by in found.items():
        means = [(fmean(sight.difference for sight in sights), view) for view, sights in by.items()]
        columns.append([(scene, *entry) for entry in sorted(means, key=lambda entry: -abs(entry[0]))])
    turns = [entry for entry in chain.from_iterable(zip_longest(*columns)) if entry is not None]
    for scene, mean, view in turns[:count]:
        sights = found[scene][view]
        drawn = [s for s in sights if _place(s.base, view)[0].is_file() and _place(s.run, view)[0].is_file()]
        sight = min(drawn or sights, key=lambda s: abs(s.difference - mean))
        values = (sight.before, sight.after)
        yield Pair(variant, scene, view, sight.run.seed, len(sights), values, mean), sight


def _pair(bare: Pair, sight: Sight) -> Pair:
    """With its pictures, or with the reason why it has none."""
    try:
        truth, before, mask = _open(sight.base, bare.view)
        _, after, _ = _open(sight.run, bare.view)
        if after.shape != before.shape:
            raise ValueError(f"{sight.run.name}: renders of another size than the baseline's")
    except (OSError, ValueError) as error:
        return replace(bare, without=" ".join(str(error).split()))
    errors = [np.abs(image - truth).mean(-1) * mask for image in (before, after)]
    box = _box(errors[1] ** 2 - errors[0] ** 2)
    cut = (slice(box[1], box[3]), slice(box[0], box[2]))
    names = ("truth", sight.base.variant, bare.variant)
    shown = zip(names, (truth, before, after), strict=True)
    crops = [_encoded(name, _picture(image[cut]), FINE) for name, image in shown]
    whole = [_encoded("truth", _framed(truth, box), COARSE)]
    for name, error in zip(names[1:], errors, strict=True):
        whole.append(_encoded(f"error of {name}", _framed(_mapped(error, mask), box), COARSE))
    whole.append(_encoded("nearer the truth", _framed(_nearer(errors[0] - errors[1]), box), COARSE))
    return replace(bare, crops=tuple(crops), views=tuple(whole))


def _place(run: Result, view: str) -> tuple[Path, Path]:
    """The render of a view alone, and the sheet that begins with the truth."""
    head, _, tail = view.rpartition("/")
    stem = f"{head}/{tail.rsplit('.', 1)[0] or tail}".strip("/").replace("/", "_")
    return run.folder / "renders" / "plain" / f"{stem}.png", run.folder / "renders" / f"{stem}.png"


def _open(run: Result, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and render [H,W,3] in [0,1], and where they count [H,W].

    Raises: OSError, ValueError where they are not there, or not as they were drawn.
    """
    plain, sheet = _place(run, view)
    if not plain.is_file() or not sheet.is_file():
        raise FileNotFoundError(f"{run.name} has no renders of it")
    render, both = _array(plain), _array(sheet)
    height, width = render.shape[:2]
    if both.shape[0] < height or both.shape[1] < 3 * width:
        raise ValueError(f"{sheet}: expected truth, render and error of {width} x {height} px")
    masked = any(row["view"] == view and row.get("masked") for row in run.views)
    third = both[:height, both.shape[1] - width :] * 255
    mask = (np.abs(third - np.array(PAPER)).max(-1) > 0.5) if masked else np.ones((height, width), bool)
    return both[:height, :width], render, mask.astype(np.float32)


def _array(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.float32) / 255


def _box(differing: np.ndarray) -> tuple[int, int, int, int]:
    """The window in which the one that is better over all is so by most: left, top, right, bottom."""
    height, width = differing.shape
    wide = min(width, max(NARROW, min(WIDE, width // 2)))
    high = min(height, round(wide / ASPECT))
    sums = np.pad(differing.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
    top, left = np.unravel_index((found * np.sign(sums[-1, -1])).argmax(), found.shape)
    return int(left), int(top), int(left) + wide, int(top) + high


def _mapped(error: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An error on the colours and the scale of a run's own pictures, paper outside the mask."""
    drawn = colormap()[np.clip(np.round(error * (255 / ERROR_FULL)), 0, 255).astype(np.uint8)]
    return np.where(mask[..., None] > 0, drawn, np.array(PAPER, np.uint8)) / np.float32(255)


def _nearer(gain: np.ndarray) -> np.ndarray:
    """Blue where the variant is nearer the truth, orange where the baseline is, grey where both are alike."""
    share = np.clip(gain / (ERROR_FULL / 2), -1, 1)[..., None]
    share = np.sign(share) * np.sqrt(np.abs(share))
    ends = np.array([[0.90, 0.42, 0.05], [0.16, 0.16, 0.18], [0.20, 0.55, 0.98]], np.float32)
    return ends[1] + np.maximum(share, 0) * (ends[2] - ends[1]) + np.maximum(-share, 0) * (ends[0] - ends[1])


def _framed(image: np.ndarray, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture, made smaller, with a frame around the crop."""
    from PIL import Image, ImageDraw

    picture = _picture(image)
    scale = min(1.0, VIEW / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(picture)
    if (right - left, bottom - top) != picture.size:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=3)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=(255, 255, 255))
    return picture


def _picture(image: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _encoded(name: str, picture: Image.Image, quality: int) -> Picture:
    """As WebP, or as JPEG where Pillow was built without it."""
    from PIL import features

    kind = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Picture(name, f"data:image/{kind};base64,{data}", picture.width, picture.height)


def missing(found: dict[str, list[Pair]]) -> Sequence[str]:
    """Why some views have no pictures, each reason once."""
    return list(dict.fromkeys(pair.without for by in found.values() for pair in by if pair.without))
