"""Rate control of an image: bits join the loss at a price, and the bit budget decides the number of
Gaussians.

Notation: lambda (`rd_lambda`) is the squared error, summed over pixels and channels, that one bit may cost. A
    budget can be spent on more Gaussians or on finer ones. The best trade-off was found where a Gaussian
    takes about the same number of bits in any image and at any rate; so lambda is steered towards that
    number, and the budget then decides how many Gaussians there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from splatexp.gaussians.edit import Edit
from splatexp.gaussians.splats2d import LAYER, Splats2D
from splatexp.image.codec import gsi
from splatexp.image.codec.gsi import LIMITS
from splatexp.image.fit.prefixes import assign_layers, measure_file, overhead_bytes, without_weakest
from splatexp.image.fit.quantize import (
    NAMES,
    STEP_SIZES,
    CodingGrid,
    DrawLayers,
    DrawQuantized,
    cell_shift,
    estimate_bits,
    make_header,
    quantize,
    to_symbols,
)
from splatexp.io.atomic import atomic_write
from splatexp.settings.checks import STEPS, check_choice, check_range
from splatexp.system.rng import generator
from splatexp.train.rate import Rate
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.raster.image import ImageRaster

STATE = "rate"  # name of a tensor that all rows share: a `RateState`
LUMA = 0.67  # first step size of colours over the square root of lambda
FIRST = (1.0, 0.8, 1.0, 1.0)  # first step sizes: chroma over luma, scale (ln), shear, position (sigmas)
CHECKS = 30  # per run: how often bits are counted and rows that do not pay for theirs are removed
MAX_BPP = 64.0  # bits per pixel that an image may take, without the container
LAST_PRUNE = 0.93  # of a run: rows are not removed later
REMAINING = 0.4  # of a row's own reduction of the squared error is lost once the others adapt to its removal
SPARE = 1.04  # of the budget may be used in training: bits still shrink, and the excess is removed at the end


@dataclass
class ScalarQuantization(Rate):
    """Scalar quantization whose step sizes follow from the rate, coded by adaptive models into a .gsi file.

    One of `bytes`, `bpp` and `rd_lambda` sets the rate; the number of Gaussians follows. To meet a quality,
    `encode` searches for the bytes that it takes.

    From `quantize_start` on, rows are rendered as they are coded, so that training sees the rounding, and
    with `step_size_lr` the step sizes are learned. In the few hundred steps of a fast encoder, rounding once
    at the end was better.

    Source: quantizers: Esser et al. 2020, "LSQ"; the rate in the loss: Balle et al. 2017, "End-to-end
        optimized image compression". Differs: step sizes follow what an error costs the image, Gaussian by
        Gaussian.
    """

    domain: ClassVar[str] = "image"

    bytes: int = 0  # size of the file, at most; 0: not given
    bpp: float = 0.0  # bits per pixel of the file, at most; 0: not given
    rd_lambda: float = 0.0  # squared error that one bit may cost; 0: not given
    layers: int = 1  # of the file: each prefix of layers decodes to a coarser image
    grow_until: int = field(default=18_000, metadata=STEPS)  # step at which all Gaussians are there
    rd_start: int = field(default=9_000, metadata=STEPS)  # step from which bits count in the loss
    # step from which rows are rendered as they are coded; 0: never
    quantize_start: int = field(default=0, metadata=STEPS)
    initial_fraction: float = 0.25  # of the Gaussians is there at the start
    bits_per_gaussian: float = 34.0  # target that lambda is steered to
    # gradient of rounding, from quantize_start on: straight_through, or noise of a step's width in its place
    rounding: str = "straight_through"
    step_size_lr: float = 0.0  # learning rate of the step sizes' logarithms, from quantize_start on; 0: fixed

    def __post_init__(self) -> None:
        given = [name for name in ("bytes", "bpp", "rd_lambda") if getattr(self, name)]
        if len(given) != 1:
            got = ", ".join(given) or "none"
            raise ValueError(f"rate.bytes, bpp, rd_lambda: expected one of them, got {got}")
        for name in ("bytes", "bpp", "rd_lambda", "grow_until", "rd_start", "quantize_start", "step_size_lr"):
            check_range(f"rate.{name}", getattr(self, name), 0)
        check_range("rate.layers", self.layers, 1, 16)
        check_range("rate.initial_fraction", self.initial_fraction, 1e-3, 1)
        check_choice("rate.rounding", self.rounding, ("straight_through", "noise"))
        if not self.quantize_start and (self.step_size_lr or self.rounding != "straight_through"):
            raise ValueError(
                "rate.quantize_start: expected a step with rate.step_size_lr or rate.rounding, got 0"
            )
        check_range("rate.bits_per_gaussian", self.bits_per_gaussian, 8, 256)

    def check(self, scene: Scene) -> None:
        """Check the image against the limits that decoders have by default.

        Raises: ValueError for an image that is too large, or for a budget of too many Gaussians.
        """
        height, width, channels = scene.train[0].float_image.shape
        taken = height * width * channels * scene.train[0].bits // 8
        check_range("bytes of the decoded image", taken, 1, LIMITS.image_bytes)
        rows = round(self._budget(height * width) / self.bits_per_gaussian)
        check_range("Gaussians that rate.bytes or rate.bpp allow", rows, 0, LIMITS.gaussians)

    def initialize(self, rows: Rows, scene: Scene) -> None:
        """Lay out the step sizes and the state before the first step."""
        assert isinstance(rows, Splats2D)
        image = scene.train[0].float_image
        budget = self._budget(image.shape[0] * image.shape[1])
        if budget:
            goal = max(self.bits_per_gaussian, budget - 8 * self._overhead(scene))
        else:
            goal = self.bits_per_gaussian * max(1, len(rows))
        spread = float((image - image.mean((0, 1))).square().sum())  # squared error of the background alone
        rd_lambda = self.rd_lambda or 0.03 * max(spread, 1e-3) / goal
        chroma, scale, shear, position = FIRST
        luma = LUMA * math.sqrt(rd_lambda)
        learned = torch.tensor([luma, luma * chroma, scale, shear, position]).log()
        rows.add_shared(STEP_SIZES, learned).requires_grad_(self.step_size_lr > 0)
        state = RateState(rd_lambda, self.bits_per_gaussian, goal / self.bits_per_gaussian, goal, spread)
        rows.add_shared(STATE, torch.tensor(state, dtype=torch.float64)).requires_grad_(False)

    def before_step(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """Assign layers, and have the rows rendered as they are coded where that is due."""
        assert isinstance(rows, Splats2D)
        if self.layers > 1 and step < self.grow_until:
            rows.carried[LAYER] = assign_layers(rows, self.layers)
        size, upto = coding_grid(rows, scene), self._upto(step, steps)
        random = generator("rounding", step) if self.rounding == "noise" else None
        coding = self._coding(step)
        rows.quantizer = DrawQuantized(size, upto, random) if coding else DrawLayers(upto) if upto else None

    def loss_terms(self, rows: Rows, scene: Scene, step: int, steps: int) -> dict[str, Tensor]:
        """Return the cost of all bits, in the unit of a mean squared error."""
        assert isinstance(rows, Splats2D)
        if step < self.rd_start:
            return {}
        size = coding_grid(rows, scene)
        share = _state(rows).rd_lambda / (size.width * size.height * size.channels)
        return {"rate": estimate_bits(rows, rows.shared[STEP_SIZES], size).sum() * share}

    @torch.no_grad()
    def after_backward(
        self,
        rows: Rows,
        scene: Scene,
        raster: ImageRaster,
        terms: Mapping[str, Tensor],
        step: int,
        steps: int,
    ) -> None:
        """Update the step sizes, lambda, and the number of rows that the budget allows."""
        assert isinstance(rows, Splats2D)
        learned = rows.shared[STEP_SIZES]
        if self.step_size_lr and learned.grad is not None and self._coding(step):
            decay = 0.1 + 0.9 * (1 - step / steps)
            adam(
                learned,
                learned.grad,
                rows.exp_avg[STEP_SIZES],
                rows.exp_avg_sq[STEP_SIZES],
                step=step - self.quantize_start + 1,
                lr=self.step_size_lr * decay,
                beta2=0.99,
            )
        learned.grad = None
        if self._upto(step, steps):  # lambda refers to the whole image, not to a prefix of its layers
            return
        size, state = coding_grid(rows, scene), _state(rows)
        error = terms["l2"].item() * size.width * size.height * size.channels
        state = state._replace(error=error)
        if _due(step, steps):
            state = self._check_bits(rows, scene, raster, state, step, steps)
        rows.shared[STATE].copy_(torch.tensor(state, dtype=torch.float64))

    def max_rows(self, rows: Rows, step: int, steps: int) -> int | None:
        """Return the number of rows that the budget allows after a step; None where lambda is given."""
        if self.rd_lambda:
            return None
        grown = min(1.0, self.initial_fraction + (1 - self.initial_fraction) * step / self.grow_until)
        return max(1, round(_state(rows).count * grown))

    def min_gain(self, rows: Rows, step: int) -> float:
        """Return the reduction of the squared error that a row needs to pay for its bits."""
        return REMAINING * self.rd_lambda * _state(rows).bits_per_gaussian

    def plan(self, rows: Rows, step: int, steps: int) -> Iterator[Edit]:
        """Remove rows whose contribution is worth less than their bits, at a given lambda.

        Where a budget or a quality is given, density control chooses the rows that the number of rows leaves.
        """
        assert isinstance(rows, Splats2D)
        if not self.rd_lambda or not _due(step, steps) or step < self.rd_start or step > LAST_PRUNE * steps:
            return
        with torch.no_grad():
            poor = rows.contribution() * math.pi < self.min_gain(rows, step)
        if poor.any() and not poor.all():
            kept = (~poor).nonzero().squeeze(1)
            edit = Edit(kept, torch.zeros_like(kept, dtype=torch.bool), {}, step=step)
            edit.rule, edit.operator = "rate", "prune"
            yield edit

    def finish(self, rows: Rows, scene: Scene, raster: ImageRaster, folder: Path | None) -> dict[str, float]:
        """Write image.gsi into the folder.

        Returns: the numbers of `measure_file`.
        """
        data = self.encode(rows, scene, raster)
        if folder is not None:
            with atomic_write(folder / "image.gsi") as temp:
                temp.write_bytes(data)
        return measure_file(data, scene)

    @torch.no_grad()
    def encode(self, rows: Rows, scene: Scene, raster: ImageRaster) -> bytes:
        """Return the file within its budget; from then on, rows are rendered as it contains them.

        The rows that contribute least are removed, as few as possible.

        Raises: GsiError for what a file cannot hold.
        """
        assert isinstance(rows, Splats2D)
        height, width, _ = scene.train[0].float_image.shape
        budget = self._budget(height * width) // 8
        few, many = 0, len(rows)  # removing `few` rows is not enough, removing `many` is
        if budget and len(encode_rows(rows, scene, raster)) > budget:
            while many - few > 1:
                middle = (few + many) // 2
                small = len(self.without(rows, scene, raster, middle)) <= budget
                few, many = (few, middle) if small else (middle, many)
            rows.apply(Edit(*without_weakest(rows, many)))
        rows.quantizer = DrawQuantized(coding_grid(rows, scene))
        return encode_rows(rows, scene, raster)

    @torch.no_grad()
    def without(self, rows: Splats2D, scene: Scene, raster: ImageRaster, removed: int) -> bytes:
        """Return the file of all rows except the `removed` that contribute least; the rows themselves do not
        change.
        """
        kept, _ = without_weakest(rows, removed)
        some = Splats2D(
            {name: leaf.detach()[kept] for name, leaf in rows.params.items()}, rows.parametrization
        )
        some.carried[LAYER] = rows.carried[LAYER][kept]
        some.shared = rows.shared
        return encode_rows(some, scene, raster)

    def metrics(self, rows: Rows, step: int) -> dict[str, float]:
        """Return lambda, bits and step sizes, for the log."""
        state, learned = _state(rows), rows.shared[STEP_SIZES].detach().exp().tolist()
        values = {
            "rd_lambda": state.rd_lambda,
            "bits": state.bits,
            "bits_per_gaussian": state.bits_per_gaussian,
        }
        return values | {f"step_size_{name}": value for name, value in zip(NAMES, learned, strict=True)}

    def _coding(self, step: int) -> bool:
        """Return whether rows are rendered as they are coded at a step."""
        return 0 < self.quantize_start <= step

    def _budget(self, pixels: int) -> float:
        """Return the bits that the file may have, at most MAX_BPP a pixel; 0 where lambda is given."""
        return min(
            8.0 * self.bytes or self.bpp * pixels, MAX_BPP * pixels + 8 * overhead_bytes(self.layers, 4)
        )

    def _overhead(self, scene: Scene) -> int:
        return overhead_bytes(self.layers, scene.train[0].float_image.shape[2])

    def _upto(self, step: int, steps: int) -> int:
        """Return the number of layers that a step renders; 0: all. Every other step renders one of the
        prefixes, in turn.
        """
        if self.layers == 1 or step % 2 or step < self.grow_until or _due(step, steps):
            return 0
        return 1 + step // 2 % (self.layers - 1)

    def _check_bits(
        self, rows: Splats2D, scene: Scene, raster: ImageRaster, state: RateState, step: int, steps: int
    ) -> RateState:
        """Return the state after counting the bits of the rows as a file, with lambda adjusted to them."""
        bits = 8.0 * (len(encode_rows(rows, scene, raster)) - self._overhead(scene))
        state = state._replace(bits=bits, bits_per_gaussian=max(1.0, bits / max(1, len(rows))))
        if not self.rd_lambda:
            height, width, _ = scene.train[0].float_image.shape
            budget = (
                self._budget(height * width) - 8 * self._overhead(scene) if step >= self.grow_until else 0.0
            )
            goal = self.bits_per_gaussian
            if budget > 0:
                goal = max(SPARE * budget / max(1, len(rows)), goal / 2)
            factor = min(1.5, max(0.67, (state.bits_per_gaussian / goal) ** 0.7))
            rows.shared[STEP_SIZES][:2] += 0.5 * math.log(factor)
            state = state._replace(rd_lambda=state.rd_lambda * factor)
        return state


class RateState(NamedTuple):
    """The state of rate control, as numbers that a checkpoint keeps."""

    rd_lambda: float
    bits_per_gaussian: float
    count: float  # number of Gaussians that the budget allows
    bits: float  # of the file, when bits were last counted
    error: float  # squared error of the last step, summed over pixels and channels


def _due(step: int, steps: int) -> bool:
    """Return whether bits are counted after a step."""
    return (step + 1) % max(1, steps // CHECKS) == 0


def _state(rows: Rows) -> RateState:
    return RateState(*rows.shared[STATE].tolist())


def coding_grid(rows: Rows, scene: Scene) -> CodingGrid:
    """Return the grid for the file's symbols; its cells follow the number of Gaussians that the budget
    allows.
    """
    height, width, channels = scene.train[0].float_image.shape
    return CodingGrid(width, height, channels, cell_shift(width, height, round(_state(rows).count)))


@torch.no_grad()
def encode_rows(rows: Splats2D, scene: Scene, raster: ImageRaster) -> bytes:
    """Return the rows as a file.

    Raises: GsiError for what a file cannot hold.
    """
    view, size = scene.train[0], coding_grid(rows, scene)
    found, _ = quantize(rows, rows.shared[STEP_SIZES], size)
    behind = scene.background or (0.0,) * size.channels
    head = make_header(size, found.steps, behind, view.bits, raster.mode, raster.top_k)
    return gsi.dump(head, to_symbols(found, rows))
