"""Vector quantisation of shapes and colours, to be held against the scalar steps of the .gsi format.

A shape is (ln l1, shear, ln l3) as in log_cholesky; a colour is taken times sqrt(l1 l3), as the format does,
so that words are as near as the picture is. Each is told by one index a stage, every stage a codebook for
what the stages before it have left. Nothing of this is written to a file: what it would take is reckoned,
every part of it.

Notation: N Gaussians; values [N,K]; a codebook [M,K]; indices [N,S] of S stages.
Source: residual stages: Zhang et al. 2024, "GaussianImage", section 3.3; k-means++: Arthur and Vassilvitskii
2007.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from splatexp.gaussians.covariance import FORMS
from splatexp.gaussians.plane import Drawn, Plane
from splatexp.settings.checks import STEPS, check_range
from splatexp.train.rate import Rate

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.raster.rasterizer import Drawing

SHAPES, COLORS = "vq_shapes", "vq_colors"  # shared leaves: codebooks [S,M,K]
STORED = torch.float16  # what a codebook would be written as
ROUNDS = 25  # of k-means, at most
FORM = "log_cholesky"
SHAPE = FORMS[FORM]
POSITIVE = (FORM, "cholesky", "rotation_scale", "log_rotation_scale", "inverse_scale")


def missing() -> str:
    """That scikit-learn is missing and what would help; "" where it is there."""
    from importlib.util import find_spec

    return "" if find_spec("sklearn") else "scikit-learn is missing; pip install 'splatexp[vq]' brings it"


def learned(
    values: Tensor, weights: Tensor, stages: int, words: int, seed: int, before: Tensor | None = None
) -> Tensor:
    """Codebooks [S,M,K] for values [N,K], whose rows weigh `weights` [N], stage by stage; as they are stored.

    Where there are fewer different values than words, the last word stands for the rest.

    Args:
        before: codebooks to go on from, instead of starting with k-means++.

    Raises: ImportError without scikit-learn.
    """
    if reason := missing():
        raise ImportError(reason)
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    left, books = values.detach().double().cpu(), []
    weights = weights.detach().double().cpu()
    for stage in range(stages):
        count = min(words, len(left.unique(dim=0)))
        held = before[stage].double().cpu() if before is not None else None
        if held is not None and len(held.unique(dim=0)) < count:
            held = None  # words that stood for the rest are of no use
        init = "k-means++" if held is None else held[:count].numpy()
        means = KMeans(count, init=init, n_init=1, max_iter=ROUNDS, random_state=seed % 2**32)
        with threadpool_limits(1):  # sums depend on how many threads share them
            means.fit(left.numpy(), sample_weight=weights.numpy())
        book = torch.from_numpy(means.cluster_centers_).to(STORED).to(values.dtype)
        left = left - book[nearest(left.to(values.dtype), book)].double()
        books.append(torch.cat([book, book[-1:].expand(words - count, -1)]))
    return torch.stack(books).to(values.device)


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """The index [N] of the word that is nearest to each of values [N,K]."""
    return torch.cdist(values, book, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def encoded(values: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [N,S] of values [N,K], and what they decode to [N,K]: each stage takes the nearest word."""
    told, made = [], torch.zeros_like(values)
    for book in books:
        told.append(nearest(values - made, book))
        made = made + book[told[-1]]
    return torch.stack(told, 1), made


def index_bits(indices: Tensor, words: int) -> float:
    """Bits of indices [N] below `words` under an adaptive coder that starts from one count for each.

    Exactly log2 of (N + M - 1)! / (M - 1)! / prod(n_j!): no table is sent.
    """
    counts = torch.bincount(indices, minlength=words).double()
    total = torch.lgamma(torch.tensor(float(len(indices) + words), dtype=torch.float64))
    bits = total - math.lgamma(words) - torch.lgamma(counts + 1).sum()
    return float(bits) / math.log(2)


def book_bits(books: Tensor) -> float:
    """Bits of codebooks as they would be stored."""
    return float(books.numel() * torch.finfo(STORED).bits)


def place_bits(steps: Tensor, size: tuple[int, int]) -> float:
    """Bits of places in a picture (width, height) as a set: all its places of steps [N,2] px, less order."""
    width, height = size
    choices = (width / steps[:, 0]).clamp_min(1).log2() + (height / steps[:, 1]).clamp_min(1).log2()
    return max(0.0, float(choices.double().sum()) - math.lgamma(len(steps) + 1) / math.log(2))


@dataclass
class Vector(Rate):
    """Codebooks for shapes and colours in place of steps; the number of Gaussians is density control's.

    Places are rounded to steps in standard deviations. `bits` tells what the picture would take; there is no
    file.
    """

    domain: ClassVar[str] = "image"

    shape_words: int = 64  # of a codebook
    color_words: int = 64
    stages: int = 2  # codebooks of either
    places: float = 4.0  # steps in a standard deviation of x given y, or of y given x
    start: int = field(default=21_000, metadata=STEPS)  # rows are drawn as decoded from here on
    every: int = field(default=900, metadata=STEPS)  # steps from one learning of the codebooks to the next
    stop: int = field(default=28_500, metadata=STEPS)  # from here on they stay as they are

    def __post_init__(self) -> None:
        check_range("rate.shape_words", self.shape_words, 2)
        check_range("rate.color_words", self.color_words, 2)
        check_range("rate.stages", self.stages, 1, 8)
        check_range("rate.places", self.places, 0.1)
        check_range("rate.start", self.start, 0)
        check_range("rate.every", self.every, 1)
        check_range("rate.stop", self.stop, 0)

    def begin(self, rows: Rows, scene: Scene) -> None:
        """Room for the codebooks, which checkpoints keep.  Raises: ValueError where none can be learned."""
        assert isinstance(rows, Plane)
        if reason := missing():
            raise ValueError(f"rate: vector cannot be used here: {reason}")
        if rows.form not in POSITIVE:
            expected = ", ".join(POSITIVE)
            raise ValueError(f"model.form: expected one of {expected} with rate=vector, got {rows.form}")
        channels = rows.colors.shape[1]
        for name, words, length in ((SHAPES, self.shape_words, 3), (COLORS, self.color_words, channels)):
            empty = torch.zeros(self.stages, words, length, device=rows.colors.device)
            rows.add_shared(name, empty).requires_grad_(False)

    def ready(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """As `Rate` says; codebooks that are due are learned first."""
        assert isinstance(rows, Plane)
        since = step - self.start
        if since == 0 or since > 0 and since % self.every == 0 and step < self.stop:
            self._learn(rows, step, fresh=since == 0)
        if since >= 0:
            rows.quantizer = self._decoded(rows, scene)

    def finish(self, rows: Rows, scene: Scene, raster: Drawing, folder: Path | None) -> dict[str, float]:
        """Have the rows drawn as decoded; where they have not been yet, the codebooks are learned here.

        Returns: bits, and bits per pixel, that a file would have.
        """
        assert isinstance(rows, Plane)
        if rows.quantizer is None:
            self._learn(rows, self.start, fresh=True)
        rows.quantizer = self._decoded(rows, scene)
        bits, (width, height) = sum(rows.quantizer.bits(rows).values()), rows.quantizer.size
        return {"bits": bits, "bpp": bits / (width * height)}

    def status(self, rows: Rows, step: int) -> dict[str, float]:
        """The bits of every part and of all, once there are codebooks."""
        assert isinstance(rows, Plane)
        if not isinstance(rows.quantizer, Decoded):
            return {}
        parts = rows.quantizer.bits(rows)
        return {f"bits_{name}": value for name, value in parts.items()} | {"bits": sum(parts.values())}

    @torch.no_grad()
    def _learn(self, rows: Plane, seed: int, fresh: bool) -> None:
        shapes, colors = told(rows)
        costs = colors.square().sum(1).clamp_min(1e-12)  # of an error of a shape, as the picture has it
        for name, found, weights in ((SHAPES, shapes, costs), (COLORS, colors, torch.ones_like(costs))):
            books = rows.shared[name]
            made = learned(found, weights, *books.shape[:2], seed=seed, before=None if fresh else books)
            books.copy_(made)

    def _decoded(self, rows: Plane, scene: Scene) -> Decoded:
        camera = scene.train[0].camera
        size = camera.width, camera.height
        return Decoded(rows.shared[SHAPES], rows.shared[COLORS], self.places, size)


@dataclass
class Decoded:
    """Draws rows as codebooks have them."""

    shapes: Tensor  # [S,M,3]
    colors: Tensor  # [S,M,D]
    places: float  # steps of a place in a standard deviation
    size: tuple[int, int]  # width and height of the picture, px

    def __call__(self, rows: Plane) -> Drawn:
        """As `Plane.drawn` says; gradients go to the rows as if nothing had been rounded."""
        made = SHAPE.shapes(rows.covariance)
        with torch.no_grad():
            steps, shapes, colors = self._told(rows)
            means = ((rows.means / steps).floor() + 0.5) * steps
        pairs = (rows.means, means), (made, shapes), (rows.colors, colors)
        drawn = (value + (other - value).detach() for value, other in pairs)
        return Drawn(*drawn, rows.weights, FORM)

    @torch.no_grad()
    def bits(self, rows: Plane) -> dict[str, float]:
        """Bits that rows take: places, shapes, colors, codebooks."""
        found = {"places": place_bits(self._told(rows)[0], self.size)}
        for name, values, books in zip(
            ("shapes", "colors"), told(rows), (self.shapes, self.colors), strict=True
        ):
            indices, _ = encoded(values, books)
            found[name] = sum(index_bits(index, books.shape[1]) for index in indices.unbind(1))
        return found | {"codebooks": book_bits(self.shapes) + book_bits(self.colors)}

    def _told(self, rows: Plane) -> tuple[Tensor, Tensor, Tensor]:
        """Steps of places [N,2] px, shapes and colours, all as decoded."""
        shapes, colors = told(rows)
        shapes = encoded(shapes, self.shapes)[1]
        l1, shear, l3 = shapes[:, 0].exp(), shapes[:, 1], shapes[:, 2].exp()
        steps = torch.stack([l1 * (1 + shear.square()).rsqrt(), l3], 1) / self.places
        colors = encoded(colors, self.colors)[1] * (l1 * l3).rsqrt()[:, None]
        return steps, shapes, colors


@torch.no_grad()
def told(rows: Plane) -> tuple[Tensor, Tensor]:
    """What codebooks are for: shapes [N,3] as log_cholesky, and colours [N,D] times sqrt(l1 l3)."""
    covariance = rows.covariance
    return SHAPE.shapes(covariance), rows.colors * covariance.det.clamp_min(1e-12).pow(0.25)[:, None]
