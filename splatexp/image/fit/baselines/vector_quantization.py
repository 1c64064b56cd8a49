"""Vector quantization of shapes and colours, for comparison with the scalar quantization of the .gsi format.

A shape is (ln l1, shear, ln l3) as in log_cholesky; a colour is multiplied by sqrt(l1 l3), as in the format,
so that distances between codewords match errors of the image. Each is coded by one index a stage; every stage
has a codebook for the residual of the stages before it. Nothing is written to a file: the bits are computed,
those of all parts.

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

from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats2d import RenderParams, Splats2D
from splatexp.settings.checks import STEPS, check_range
from splatexp.train.rate import Rate

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.raster.rasterizer import Rasterizer

SHAPES, COLORS = "vq_shapes", "vq_colors"  # names of tensors that all rows share: codebooks [S,M,K]
STORED_DTYPE = torch.float16  # in which a codebook would be written
MAX_ITERATIONS = 25  # of k-means
PARAMETRIZATION = "log_cholesky"
SHAPE = PARAMETRIZATIONS[PARAMETRIZATION]
POSITIVE = (PARAMETRIZATION, "cholesky", "rotation_scale", "log_rotation_scale", "inverse_scale")


def missing() -> str:
    """Return why scikit-learn cannot be used and how to install it; "" where it is installed."""
    from importlib.util import find_spec

    return "" if find_spec("sklearn") else "scikit-learn is missing; pip install 'splatexp[vq]' brings it"


def learn_codebooks(
    values: Tensor, weights: Tensor, stages: int, words: int, seed: int, before: Tensor | None = None
) -> Tensor:
    """Learn codebooks [S,M,K] for values [N,K], whose rows have `weights` [N], stage by stage; return them as
    stored.

    Where there are fewer different values than codewords, the last codeword is repeated.

    Args:
        before: codebooks to start from, instead of k-means++.

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
        means = KMeans(count, init=init, n_init=1, max_iter=MAX_ITERATIONS, random_state=seed % 2**32)
        with threadpool_limits(1):  # sums depend on how many threads share them
            means.fit(left.numpy(), sample_weight=weights.numpy())
        book = torch.from_numpy(means.cluster_centers_).to(STORED_DTYPE).to(values.dtype)
        left = left - book[nearest(left.to(values.dtype), book)].double()
        books.append(torch.cat([book, book[-1:].expand(words - count, -1)]))
    return torch.stack(books).to(values.device)


def nearest(values: Tensor, book: Tensor) -> Tensor:
    """Return the index [N] of the codeword that is nearest to each of values [N,K]."""
    return torch.cdist(values, book, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def encode(values: Tensor, books: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices [N,S] of values [N,K], and what they decode to [N,K]: each stage takes the nearest
    codeword.
    """
    indices, made = [], torch.zeros_like(values)
    for book in books:
        indices.append(nearest(values - made, book))
        made = made + book[indices[-1]]
    return torch.stack(indices, 1), made


def index_bits(indices: Tensor, words: int) -> float:
    """Return the bits of indices [N] below `words` under an adaptive coder that starts with one count for
    each.

    That is exactly log2 of (N + M - 1)! / (M - 1)! / prod(n_j!); no table is sent.
    """
    counts = torch.bincount(indices, minlength=words).double()
    total = torch.lgamma(torch.tensor(float(len(indices) + words), dtype=torch.float64))
    bits = total - math.lgamma(words) - torch.lgamma(counts + 1).sum()
    return float(bits) / math.log(2)


def book_bits(books: Tensor) -> float:
    """Return the bits of codebooks as they would be stored."""
    return float(books.numel() * torch.finfo(STORED_DTYPE).bits)


def position_bits(steps: Tensor, size: tuple[int, int]) -> float:
    """Return the bits of positions in an image (width, height) as a set: all positions of steps [N,2] px,
    without their order.
    """
    width, height = size
    choices = (width / steps[:, 0]).clamp_min(1).log2() + (height / steps[:, 1]).clamp_min(1).log2()
    return max(0.0, float(choices.double().sum()) - math.lgamma(len(steps) + 1) / math.log(2))


@dataclass
class VectorQuantization(Rate):
    """Codebooks for shapes and colours in place of step sizes; density control decides the number of
    Gaussians.

    Positions are rounded to steps relative to the standard deviations. The metric `bits` says what the image
    would take; there is no file.
    """

    domain: ClassVar[str] = "image"

    shape_codebook_size: int = 64  # codewords of a codebook for shapes
    color_codebook_size: int = 64  # codewords of a codebook for colours
    stages: int = 2  # codebooks for shapes, and as many for colours
    positions_per_sigma: float = 4.0  # steps in a standard deviation of x given y, or of y given x
    # step from which rows are rendered as decoded
    quantize_start: int = field(default=21_000, metadata=STEPS)
    codebook_every: int = field(default=900, metadata=STEPS)  # steps between two updates of the codebooks
    codebook_stop: int = field(default=28_500, metadata=STEPS)  # step from which the codebooks stay fixed

    def __post_init__(self) -> None:
        check_range("rate.shape_codebook_size", self.shape_codebook_size, 2)
        check_range("rate.color_codebook_size", self.color_codebook_size, 2)
        check_range("rate.stages", self.stages, 1, 8)
        check_range("rate.positions_per_sigma", self.positions_per_sigma, 0.1)
        check_range("rate.quantize_start", self.quantize_start, 0)
        check_range("rate.codebook_every", self.codebook_every, 1)
        check_range("rate.codebook_stop", self.codebook_stop, 0)

    def initialize(self, rows: Rows, scene: Scene) -> None:
        """Allocate the codebooks, which checkpoints keep.

        Raises: ValueError where none can be learned.
        """
        assert isinstance(rows, Splats2D)
        if reason := missing():
            raise ValueError(f"rate: vector cannot be used here: {reason}")
        if rows.parametrization not in POSITIVE:
            expected = ", ".join(POSITIVE)
            raise ValueError(
                f"model.covariance: expected one of {expected} with rate=vector, got {rows.parametrization}"
            )
        channels = rows.colors.shape[1]
        for name, words, length in (
            (SHAPES, self.shape_codebook_size, 3),
            (COLORS, self.color_codebook_size, channels),
        ):
            empty = torch.zeros(self.stages, words, length, device=rows.colors.device)
            rows.add_shared(name, empty).requires_grad_(False)

    def before_step(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """Learn codebooks where that is due, and have the rows rendered as decoded."""
        assert isinstance(rows, Splats2D)
        since = step - self.quantize_start
        if since == 0 or since > 0 and since % self.codebook_every == 0 and step < self.codebook_stop:
            self._learn(rows, step, fresh=since == 0)
        if since >= 0:
            rows.quantizer = self._decoded(rows, scene)

    def finish(self, rows: Rows, scene: Scene, raster: Rasterizer, folder: Path | None) -> dict[str, float]:
        """Have the rows rendered as decoded; codebooks that do not exist yet are learned here.

        Returns: bits, and bits per pixel, that a file would have.
        """
        assert isinstance(rows, Splats2D)
        if rows.quantizer is None:
            self._learn(rows, self.quantize_start, fresh=True)
        rows.quantizer = self._decoded(rows, scene)
        bits, (width, height) = sum(rows.quantizer.bits(rows).values()), rows.quantizer.size
        return {"bits": bits, "bpp": bits / (width * height)}

    def metrics(self, rows: Rows, step: int) -> dict[str, float]:
        """Return the bits of every part and of all, once there are codebooks."""
        assert isinstance(rows, Splats2D)
        if not isinstance(rows.quantizer, Decoded):
            return {}
        parts = rows.quantizer.bits(rows)
        return {f"bits_{name}": value for name, value in parts.items()} | {"bits": sum(parts.values())}

    @torch.no_grad()
    def _learn(self, rows: Splats2D, seed: int, fresh: bool) -> None:
        shapes, colors = coded_values(rows)
        costs = colors.square().sum(1).clamp_min(1e-12)  # of an error of a shape, in the image
        for name, found, weights in ((SHAPES, shapes, costs), (COLORS, colors, torch.ones_like(costs))):
            books = rows.shared[name]
            made = learn_codebooks(
                found, weights, *books.shape[:2], seed=seed, before=None if fresh else books
            )
            books.copy_(made)

    def _decoded(self, rows: Splats2D, scene: Scene) -> Decoded:
        camera = scene.train[0].camera
        size = camera.width, camera.height
        return Decoded(rows.shared[SHAPES], rows.shared[COLORS], self.positions_per_sigma, size)


@dataclass
class Decoded:
    """Renders rows as their codebooks reproduce them."""

    shapes: Tensor  # [S,M,3]
    colors: Tensor  # [S,M,D]
    positions_per_sigma: float
    size: tuple[int, int]  # width and height of the image, px

    def __call__(self, rows: Splats2D) -> RenderParams:
        """Return the parameters to render; gradients go to the rows as if nothing had been rounded."""
        made = SHAPE.shapes(rows.covariance)
        with torch.no_grad():
            steps, shapes, colors = self._decoded(rows)
            means = ((rows.means / steps).floor() + 0.5) * steps
        pairs = (rows.means, means), (made, shapes), (rows.colors, colors)
        drawn = (value + (other - value).detach() for value, other in pairs)
        return RenderParams(*drawn, rows.weights, PARAMETRIZATION)

    @torch.no_grad()
    def bits(self, rows: Splats2D) -> dict[str, float]:
        """Return the bits that rows take: positions, shapes, colors, codebooks."""
        found = {"positions": position_bits(self._decoded(rows)[0], self.size)}
        for name, values, books in zip(
            ("shapes", "colors"), coded_values(rows), (self.shapes, self.colors), strict=True
        ):
            indices, _ = encode(values, books)
            found[name] = sum(index_bits(index, books.shape[1]) for index in indices.unbind(1))
        return found | {"codebooks": book_bits(self.shapes) + book_bits(self.colors)}

    def _decoded(self, rows: Splats2D) -> tuple[Tensor, Tensor, Tensor]:
        """Return the steps of positions [N,2] px, shapes and colours, all as decoded."""
        shapes, colors = coded_values(rows)
        shapes = encode(shapes, self.shapes)[1]
        l1, shear, l3 = shapes[:, 0].exp(), shapes[:, 1], shapes[:, 2].exp()
        steps = torch.stack([l1 * (1 + shear.square()).rsqrt(), l3], 1) / self.positions_per_sigma
        colors = encode(colors, self.colors)[1] * (l1 * l3).rsqrt()[:, None]
        return steps, shapes, colors


@torch.no_grad()
def coded_values(rows: Splats2D) -> tuple[Tensor, Tensor]:
    """Return what codebooks are for: shapes [N,3] as log_cholesky, and colours [N,D] times sqrt(l1 l3)."""
    covariance = rows.covariance
    return SHAPE.shapes(covariance), rows.colors * covariance.det.clamp_min(1e-12).pow(0.25)[:, None]
