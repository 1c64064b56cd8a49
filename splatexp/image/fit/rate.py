"""What a picture may cost: bits join the loss at a price, and the budget says how many Gaussians there are.

Notation: a price is what a bit may cost of the squared error, summed over pixels and channels. A budget can
be spent on more Gaussians or on finer ones: the best exchange was found where one takes about as many bits in
any picture and at any rate, so the price is led to where it does, and the rest is a matter of their number.
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
from splatexp.gaussians.plane import LAYER, Plane
from splatexp.image.codec import gsi
from splatexp.image.codec.gsi import LIMITS
from splatexp.image.fit.prefixes import all_but, framing, layers_of, measured
from splatexp.image.fit.quantize import (
    NAMES,
    STEPS_OF,
    Quantized,
    Size,
    Whole,
    cell_shift,
    coded,
    header,
    price_of,
    symbols,
)
from splatexp.io.atomic import replaced
from splatexp.settings.checks import STEPS, check_choice, check_range
from splatexp.system.rng import generator
from splatexp.train.rate import Rate
from splatexp_kernels.adam import adam

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows
    from splatexp.raster.plane import Plane as Drawing

STATE = "rate"  # a shared leaf: a `State`
LUMA = 0.67  # the first step of colours over the root of the price
FIRST = (1.0, 0.8, 1.0, 1.0)  # the first steps: chroma over luma, then scale (ln), shear, place (deviations)
LOOKS = 30  # in a run: how often bits are counted, and rows that are not worth theirs go
MOST = 64.0  # bits per pixel, framing apart, that a picture may take
LATE = 0.93  # of a run: after it the rows stay
WORTH = 0.4  # of what a row takes off the squared error alone, what is missed when others have closed the gap
SPARE = 1.04  # bits still shrink when a budget is met, and what is too much goes at the end


@dataclass
class Scalar(Rate):
    """Scalar quantisation with learned steps, trained through, and coded by adaptive models into a .gsi file.

    One of `bytes`, `bpp` and `price` says what the file is to be; the number of Gaussians follows. A quality
    is met by `encode`, which looks for the bytes that it takes.

    From `start` on rows are drawn as they are coded, so that training sees their rounding, and `learn` lets
    the steps follow. At the few hundred steps of a fast encoder rounding once, at the end, came out better.

    Source: quantisers Esser et al. 2020, "LSQ"; a rate in the loss Balle et al. 2017, "End-to-end optimized
    image compression". Differs: steps follow what an error costs the picture, Gaussian by Gaussian.
    """

    domain: ClassVar[str] = "image"

    codes: ClassVar[bool] = True

    bytes: int = 0  # of the file, at most
    bpp: float = 0.0  # bits per pixel of the file, at most
    price: float = 0.0  # squared error that a bit may cost
    levels: int = 1  # layers of the file: each prefix is a coarser picture
    grow_until: int = field(default=18_000, metadata=STEPS)  # rows come to their number in so many steps
    price_start: int = field(default=9_000, metadata=STEPS)  # bits count in the loss from here on
    start: int = field(default=0, metadata=STEPS)  # rows are drawn as they are coded from here on; 0: never
    first: float = 0.25  # share of the rows that it begins with
    per: float = 34.0  # bits of a Gaussian that the price is to lead to
    rounding: str = "through"  # from `start` on: through (as if it were not there), noise (of a step's width)
    learn: float = 0.0  # rate at which the steps' logarithms learn, from `start` on; 0: they do not

    def __post_init__(self) -> None:
        given = [name for name in ("bytes", "bpp", "price") if getattr(self, name)]
        if len(given) != 1:
            got = ", ".join(given) or "none"
            raise ValueError(f"rate.bytes, bpp, price: expected one of them, got {got}")
        for name in ("bytes", "bpp", "price", "grow_until", "price_start", "start", "learn"):
            check_range(f"rate.{name}", getattr(self, name), 0)
        check_range("rate.levels", self.levels, 1, 16)
        check_range("rate.first", self.first, 1e-3, 1)
        check_choice("rate.rounding", self.rounding, ("through", "noise"))
        if not self.start and (self.learn or self.rounding != "through"):
            raise ValueError("rate.start: expected a step with rate.learn or rate.rounding, got 0")
        check_range("rate.per", self.per, 8, 256)

    def check(self, scene: Scene) -> None:
        """As `Rate` says: what decoders refuse, with the limits that they have by themselves."""
        height, width, channels = scene.train[0].values.shape
        taken = height * width * channels * scene.train[0].bits // 8
        check_range("bytes of the decoded picture", taken, 1, LIMITS.picture_bytes)
        rows = round(self._budget(height * width) / self.per)
        check_range("rate.bytes, bpp: Gaussians that they come to", rows, 0, LIMITS.gaussians)

    def begin(self, rows: Rows, scene: Scene) -> None:
        """As `Rate` says."""
        assert isinstance(rows, Plane)
        image = scene.train[0].values
        budget = self._budget(image.shape[0] * image.shape[1])
        goal = max(self.per, budget - 8 * self._frame(scene)) if budget else self.per * max(1, len(rows))
        spread = float((image - image.mean((0, 1))).square().sum())  # D of the background alone
        price = self.price or 0.03 * max(spread, 1e-3) / goal
        chroma, scale, shear, place = FIRST
        luma = LUMA * math.sqrt(price)
        learned = torch.tensor([luma, luma * chroma, scale, shear, place]).log()
        rows.add_shared(STEPS_OF, learned).requires_grad_(self.learn > 0)
        state = State(price, self.per, goal / self.per, goal, spread)
        rows.add_shared(STATE, torch.tensor(state, dtype=torch.float64)).requires_grad_(False)

    def ready(self, rows: Rows, scene: Scene, step: int, steps: int) -> None:
        """As `Rate` says."""
        assert isinstance(rows, Plane)
        if self.levels > 1 and step < self.grow_until:
            rows.carried[LAYER] = layers_of(rows, self.levels)
        size, upto = size_of(rows, scene), self._upto(step, steps)
        random = generator("rounding", step) if self.rounding == "noise" else None
        coding = self._coding(step)
        rows.quantizer = Quantized(size, upto, random) if coding else Whole(upto) if upto else None

    def terms(self, rows: Rows, scene: Scene, step: int, steps: int) -> dict[str, Tensor]:
        """The price of all bits, in the unit of a mean squared error."""
        assert isinstance(rows, Plane)
        if step < self.price_start:
            return {}
        size = size_of(rows, scene)
        share = _state(rows).price / (size.width * size.height * size.channels)
        return {"rate": price_of(rows, rows.shared[STEPS_OF], size).sum() * share}

    @torch.no_grad()
    def update(
        self, rows: Rows, scene: Scene, raster: Drawing, terms: Mapping[str, Tensor], step: int, steps: int
    ) -> None:
        """As `Rate` says: the steps, the price, and how many rows the budget is worth."""
        assert isinstance(rows, Plane)
        learned = rows.shared[STEPS_OF]
        if self.learn and learned.grad is not None and self._coding(step):
            fade = 0.1 + 0.9 * (1 - step / steps)
            adam(
                learned, learned.grad, rows.exp_avg[STEPS_OF], rows.exp_avg_sq[STEPS_OF],
                step=step - self.start + 1, lr=self.learn * fade, beta2=0.99,
            )  # fmt: skip
        learned.grad = None
        if self._upto(step, steps):  # the price is one of the whole picture
            return
        size, state = size_of(rows, scene), _state(rows)
        error = terms["l2"].item() * size.width * size.height * size.channels
        state = state._replace(error=error)
        if _due(step, steps):
            state = self._looked(rows, scene, raster, state, step, steps)
        rows.shared[STATE].copy_(torch.tensor(state, dtype=torch.float64))

    def count(self, rows: Rows, step: int, steps: int) -> int | None:
        """As `Rate` says."""
        if self.price:
            return None
        grown = min(1.0, self.first + (1 - self.first) * step / self.grow_until)
        return max(1, round(_state(rows).count * grown))

    def worth(self, rows: Rows, step: int) -> float:
        """As `Rate` says."""
        return WORTH * self.price * _state(rows).per

    def plan(self, rows: Rows, step: int, steps: int) -> Iterator[Edit]:
        """At a given price, rows that make less of the picture than their bits may cost go, look by look.

        Where a budget or a quality is given, density control chooses which rows the number of rows leaves.
        """
        assert isinstance(rows, Plane)
        if not self.price or not _due(step, steps) or step < self.price_start or step > LATE * steps:
            return
        with torch.no_grad():
            poor = rows.strength() * math.pi < self.worth(rows, step)
        if poor.any() and not poor.all():
            kept = (~poor).nonzero().squeeze(1)
            edit = Edit(kept, torch.zeros_like(kept, dtype=torch.bool), {}, step=step)
            edit.by, edit.kind = "price", "prune"
            yield edit

    def finish(self, rows: Rows, scene: Scene, raster: Drawing, folder: Path | None) -> dict[str, float]:
        """Write picture.gsi.  Returns: `measured`."""
        data = self.file(rows, scene, raster)
        if folder is not None:
            with replaced(folder / "picture.gsi") as temp:
                temp.write_bytes(data)
        return measured(data, scene)

    @torch.no_grad()
    def file(self, rows: Rows, scene: Scene, raster: Drawing) -> bytes:
        """The file, of at most the bytes that it may have; from then on rows are drawn as it has them.

        The weakest rows go, as few as will do.

        Raises: GsiError for what a file cannot hold.
        """
        assert isinstance(rows, Plane)
        height, width, _ = scene.train[0].values.shape
        budget = self._budget(height * width) // 8
        few, many = 0, len(rows)  # how many go: `few` are too few
        if budget and len(dumped(rows, scene, raster)) > budget:
            while many - few > 1:
                middle = (few + many) // 2
                small = len(self.without(rows, scene, raster, middle)) <= budget
                few, many = (few, middle) if small else (middle, many)
            rows.apply(Edit(*all_but(rows, many)))
        rows.quantizer = Quantized(size_of(rows, scene))
        return dumped(rows, scene, raster)

    @torch.no_grad()
    def without(self, rows: Plane, scene: Scene, raster: Drawing, gone: int) -> bytes:
        """The file of all rows but so many of the weakest, which stay where they are."""
        kept, _ = all_but(rows, gone)
        some = Plane({name: leaf.detach()[kept] for name, leaf in rows.params.items()}, rows.form)
        some.carried[LAYER] = rows.carried[LAYER][kept]
        some.shared = rows.shared
        return dumped(some, scene, raster)

    def status(self, rows: Rows, step: int) -> dict[str, float]:
        """As `Rate` says."""
        state, learned = _state(rows), rows.shared[STEPS_OF].detach().exp().tolist()
        values = {"price": state.price, "bits": state.bits, "bits_per_gaussian": state.per}
        return values | {f"step_{name}": value for name, value in zip(NAMES, learned, strict=True)}

    def _coding(self, step: int) -> bool:
        """Whether rows are drawn as they are coded at a step."""
        return 0 < self.start <= step

    def _budget(self, pixels: int) -> float:
        """Bits that the file may have, at most MOST a pixel; 0 where it is not that which is given."""
        return min(8.0 * self.bytes or self.bpp * pixels, MOST * pixels + 8 * framing(self.levels, 4))

    def _frame(self, scene: Scene) -> int:
        return framing(self.levels, scene.train[0].values.shape[2])

    def _upto(self, step: int, steps: int) -> int:
        """How many layers are drawn at a step; 0: all. Every other step is one of the prefixes, in turn."""
        if self.levels == 1 or step % 2 or step < self.grow_until or _due(step, steps):
            return 0
        return 1 + step // 2 % (self.levels - 1)

    def _looked(
        self, rows: Plane, scene: Scene, raster: Drawing, state: State, step: int, steps: int
    ) -> State:
        """What the rows would take as a file now, and so what a bit may cost."""
        bits = 8.0 * (len(dumped(rows, scene, raster)) - self._frame(scene))
        state = state._replace(bits=bits, per=max(1.0, bits / max(1, len(rows))))
        if not self.price:
            height, width, _ = scene.train[0].values.shape
            budget = self._budget(height * width) - 8 * self._frame(scene) if step >= self.grow_until else 0.0
            goal = max(SPARE * budget / max(1, len(rows)), self.per / 2) if budget > 0 else self.per
            dearer = min(1.5, max(0.67, (state.per / goal) ** 0.7))
            rows.shared[STEPS_OF][:2] += 0.5 * math.log(dearer)
            state = state._replace(price=state.price * dearer)
        return state


class State(NamedTuple):
    """Where a rate stands, as numbers that a checkpoint keeps."""

    price: float
    per: float  # bits of a Gaussian
    count: float  # rows that there should be
    bits: float  # of the file, when it was last looked at
    error: float  # D of the last step


def _due(step: int, steps: int) -> bool:  # whether bits are counted after a step
    return (step + 1) % max(1, steps // LOOKS) == 0


def _state(rows: Rows) -> State:
    return State(*rows.shared[STATE].tolist())


def size_of(rows: Rows, scene: Scene) -> Size:
    """What a file's symbols are measured by; the cells follow the number of rows that there should be."""
    height, width, channels = scene.train[0].values.shape
    return Size(width, height, channels, cell_shift(width, height, round(_state(rows).count)))


@torch.no_grad()
def dumped(rows: Plane, scene: Scene, raster: Drawing) -> bytes:
    """The rows as a file.  Raises: GsiError for what a file cannot hold."""
    view, size = scene.train[0], size_of(rows, scene)
    found, _ = coded(rows, rows.shared[STEPS_OF], size)
    behind = scene.background or (0.0,) * size.channels
    head = header(size, found.steps, behind, view.bits, raster.mode, raster.top_k)
    return gsi.dump(head, symbols(found, rows))
