"""Images of the held-out views in which a variant and the baseline differ most, for the page of a report."""

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

from splatexp.io.figures import BACKGROUND, MAX_ERROR, colormap
from splatexp.settings.messages import one_line
from splatexp.study.findings import Findings, Metric, is_finite
from splatexp.study.results import Result

if TYPE_CHECKING:
    from PIL import Image

MAX_PER_PAGE = 24  # comparisons
MAX_PER_VARIANT = 4  # comparisons
MIN_CROP_WIDTH, MAX_CROP_WIDTH = 256, 400  # px
CROP_ASPECT = 4 / 3  # width / height
VIEW_SIZE = 360  # px, longer side of a whole view
CROP_QUALITY, VIEW_QUALITY = 88, 72  # of WebP or JPEG


@dataclass(frozen=True)
class EncodedImage:
    """An image in the page."""

    name: str  # what it shows
    data: str  # data URI
    width: int
    height: int


@dataclass(frozen=True)
class ViewComparison:
    """A held-out view, rendered by the baseline and by a variant."""

    variant: str
    scene: str
    view: str
    seed: int  # of the two runs that are shown, whose difference is nearest to the mean
    seeds: int  # number of seeds that both have
    values: tuple[float, float]  # metric of the baseline's and of the variant's run that are shown
    difference: float  # mean over seeds
    crops: tuple[EncodedImage, ...] = ()  # truth, baseline, variant, where these differ most
    # truth with the crop marked, errors of baseline and variant, and which of them is nearer the truth
    views: tuple[EncodedImage, ...] = ()
    reason: str = ""  # why there are no images


@dataclass(frozen=True)
class RunPair:
    """A view in the baseline's and in the variant's run of one scene and seed."""

    before: float  # metric of the baseline
    after: float  # metric of the variant
    base: Result
    run: Result

    @property
    def difference(self) -> float:
        """The difference of the metric."""
        return self.after - self.before


def compare_views(findings: Findings, metric: Metric) -> dict[str, list[ViewComparison]]:
    """Return for every variant the views that differ most in a metric, taken from the scenes in turn."""
    variants = findings.compared_variants
    count = max(1, min(MAX_PER_VARIANT, MAX_PER_PAGE // max(1, len(variants))))
    return {
        name: [_with_images(*chosen) for chosen in _choose_views(findings, metric, name, count)]
        for name in variants
    }


def missing_reasons(comparisons: dict[str, list[ViewComparison]]) -> Sequence[str]:
    """Return the reasons why some views have no images, each once."""
    every = chain.from_iterable(comparisons.values())
    return list(dict.fromkeys(comparison.reason for comparison in every if comparison.reason))


def _choose_views(
    findings: Findings, metric: Metric, variant: str, count: int
) -> Iterator[tuple[ViewComparison, RunPair]]:
    """Yield the chosen views, still without images, and the runs that are shown."""
    pairs: dict[str, dict[str, list[RunPair]]] = {scene: {} for scene in findings.scenes}
    for base, run in findings.paired_runs(variant):
        base_values = {view["view"]: view.get(metric.name) for view in base.views}
        for view in run.views:
            before, after = base_values.get(view["view"]), view.get(metric.name)
            if is_finite(before) and is_finite(after):
                pairs[run.scene].setdefault(str(view["view"]), []).append(RunPair(before, after, base, run))
    columns = []
    for scene, by_view in pairs.items():
        means = [(fmean(pair.difference for pair in by_seed), view) for view, by_seed in by_view.items()]
        columns.append([(scene, *entry) for entry in sorted(means, key=lambda entry: -abs(entry[0]))])
    alternating = [entry for entry in chain.from_iterable(zip_longest(*columns)) if entry is not None]
    for scene, mean, view in alternating[:count]:
        by_seed = pairs[scene][view]
        rendered = [pair for pair in by_seed if _has_render(pair.base, view) and _has_render(pair.run, view)]
        pair = min(rendered or by_seed, key=lambda pair: abs(pair.difference - mean))
        values = (pair.before, pair.after)
        yield ViewComparison(variant, scene, view, pair.run.seed, len(by_seed), values, mean), pair


def _with_images(comparison: ViewComparison, pair: RunPair) -> ViewComparison:
    """Return the comparison with its images, or with the reason why it has none."""
    try:
        truth, before, mask = _open_render(pair.base, comparison.view)
        _, after, _ = _open_render(pair.run, comparison.view)
        if after.shape != before.shape:
            raise ValueError(f"{pair.run.label}: renders of a different size than the baseline's")
    except (OSError, ValueError) as error:
        return replace(comparison, reason=one_line(error))
    errors = [np.abs(image - truth).mean(-1) * mask for image in (before, after)]
    box = _crop_box(errors[1] ** 2 - errors[0] ** 2)
    left, top, right, bottom = box
    names = ("truth", pair.base.variant, comparison.variant)
    crops = [
        _encode(name, _to_pil(image[top:bottom, left:right]), CROP_QUALITY)
        for name, image in zip(names, (truth, before, after), strict=True)
    ]
    views = [("truth", truth)]
    views += [
        (f"error of {name}", _error_map(error, mask)) for name, error in zip(names[1:], errors, strict=True)
    ]
    views.append(("nearer the truth", _gain_map(errors[0] - errors[1])))
    encoded = [_encode(name, _with_frame(image, box), VIEW_QUALITY) for name, image in views]
    return replace(comparison, crops=tuple(crops), views=tuple(encoded))


def _render_paths(run: Result, view: str) -> tuple[Path, Path]:
    """Return the paths of the render of a view, and of the image that shows truth, render and error."""
    head, _, tail = view.rpartition("/")
    stem = f"{head}/{tail.rsplit('.', 1)[0] or tail}".strip("/").replace("/", "_")
    return run.folder / "renders" / "plain" / f"{stem}.png", run.folder / "renders" / f"{stem}.png"


def _has_render(run: Result, view: str) -> bool:
    return _render_paths(run, view)[0].is_file()


def _open_render(run: Result, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the truth and the render [H,W,3] in [0,1], and the mask [H,W] of what counts.

    Raises: OSError, ValueError for files that are missing or not as a run writes them.
    """
    render_path, comparison_path = _render_paths(run, view)
    if not render_path.is_file() or not comparison_path.is_file():
        raise FileNotFoundError(f"{run.label} has no renders of it")
    render, comparison = _read_image(render_path), _read_image(comparison_path)
    height, width = render.shape[:2]
    if comparison.shape[0] < height or comparison.shape[1] < 3 * width:
        raise ValueError(f"{comparison_path}: expected truth, render and error of {width} x {height} px")
    is_masked = any(row["view"] == view and row.get("masked") for row in run.views)
    error = comparison[:height, comparison.shape[1] - width :] * 255
    if is_masked:  # the error image has the colour of the background outside the mask
        mask = np.abs(error - np.array(BACKGROUND)).max(-1) > 0.5
    else:
        mask = np.ones((height, width), bool)
    return comparison[:height, :width], render, mask.astype(np.float32)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32) / 255


def _crop_box(gain: np.ndarray) -> tuple[int, int, int, int]:
    """Return the window with the largest gain of the run that is better over all: left, top, right, bottom.

    gain: [H,W], positive where the baseline is better.
    """
    height, width = gain.shape
    crop_width = min(width, max(MIN_CROP_WIDTH, min(MAX_CROP_WIDTH, width // 2)))
    crop_height = min(height, round(crop_width / CROP_ASPECT))
    sums = np.pad(gain.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = (
        sums[crop_height:, crop_width:]
        - sums[:-crop_height, crop_width:]
        - sums[crop_height:, :-crop_width]
        + sums[:-crop_height, :-crop_width]
    )
    top, left = np.unravel_index((windows * np.sign(sums[-1, -1])).argmax(), windows.shape)
    return int(left), int(top), int(left) + crop_width, int(top) + crop_height


def _error_map(error: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an error in the colours and on the scale of a run's own error images."""
    colours = colormap()[np.clip(np.round(error * (255 / MAX_ERROR)), 0, 255).astype(np.uint8)]
    return np.where(mask[..., None] > 0, colours, np.array(BACKGROUND, np.uint8)) / np.float32(255)


def _gain_map(gain: np.ndarray) -> np.ndarray:
    """Return blue where the variant is nearer the truth, orange where the baseline is, grey where neither."""
    level = np.clip(gain / (MAX_ERROR / 2), -1, 1)[..., None]
    level = np.sign(level) * np.sqrt(np.abs(level))
    orange, grey, blue = np.array([[0.90, 0.42, 0.05], [0.16, 0.16, 0.18], [0.20, 0.55, 0.98]], np.float32)
    return grey + np.maximum(level, 0) * (blue - grey) + np.maximum(-level, 0) * (orange - grey)


def _with_frame(image: np.ndarray, box: tuple[int, int, int, int]) -> Image.Image:
    """Return an image, reduced to `VIEW_SIZE`, with a frame around the crop."""
    from PIL import Image, ImageDraw

    full = _to_pil(image)
    scale = min(1.0, VIEW_SIZE / max(full.size))
    size = (max(1, round(full.width * scale)), max(1, round(full.height * scale)))
    reduced = full.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    left, top, right, bottom = (round(edge * scale) for edge in box)
    draw = ImageDraw.Draw(reduced)
    if (right - left, bottom - top) != reduced.size:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=(0, 0, 0), width=3)
        draw.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=(255, 255, 255))
    return reduced


def _to_pil(image: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.round(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _encode(name: str, image: Image.Image, quality: int) -> EncodedImage:
    """Encode an image as WebP, or as JPEG where Pillow was built without it."""
    from PIL import features

    format_name = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    image.save(file, format_name, quality=quality)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return EncodedImage(name, f"data:image/{format_name};base64,{data}", image.width, image.height)
