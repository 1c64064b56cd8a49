"""The symbols of a .gsi file: integers, and what they stand for (docs/gsi.md).

Notation: Sigma = L L^T px^2 with L = [[l1, 0], [l2, l3]], the shear l2 / l3. A Gaussian's precision class e
    halves the steps of its shape and of its position, class by class; its colour is in steps of the square
    root of its area, so that a step of any colour costs the image the same squared error. Nothing here needs
    torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MODES = ("sum", "normalized")
PRECISION_MAX = 12
CELL_SHIFT_MAX = 8
LOG2_MAX = 16  # largest |log2 l1| and |log2 l3|, l in px
SHEAR_MAX = 4096
COLOR_MAX = 2**24 - 1  # steps, of either sign
SIDE_MAX = 65535  # px
CELLS_MAX = 2**21
TOP_K_MAX = 32
STEP_MIN, STEP_MAX = 2.0**-40, 2.0**16  # of colours
UNIT = 1024  # steps of shape are whole numbers of 1/UNIT octaves, or of shear
WEIGHT_MIN = 1 / 255  # a Gaussian ends where its weight is smaller
_SQRT2_44 = 24879108095804  # ceil(sqrt(2) 2^44)
PLACES = np.array(  # round(2^(t/4)) for t from 0 to 64
    [
        1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108,
        128, 152, 181, 215, 256, 304, 362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896,
        3444, 4096, 4871, 5793, 6889, 8192, 9742, 11585, 13777, 16384, 19484, 23170, 27554, 32768, 38968,
        46341, 55109, 65536,
    ]
)  # fmt: skip

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]


class GsiError(ValueError):
    """A .gsi file, or what should become one, breaks the rules of the format; the message says which."""


class LimitError(GsiError):
    """A number lies outside of what the format, or the reader's limit, allows."""


@dataclass(frozen=True)
class Quantizer:
    """The step sizes of all symbols of a file.

    Attributes:
        cell_shift: positions are coded in cells of 2^cell_shift px, 0 to 8.
        scale_step: of log2 l1 and log2 l3 at precision class 0, 1/1024 octaves, 1 to 65535.
        shear_step: of the shear at class 0, 1/1024, 1 to 65535.
        position_index: places per standard deviation at class 0, as log2 in quarters, -32768 to 32767.
        color_steps: of each channel (Y, or Y Cb Cr, then alpha) times the root of l1 l3; float32 numbers.
    """

    cell_shift: int
    scale_step: int
    shear_step: int
    position_index: int
    color_steps: tuple[float, ...]

    def __post_init__(self) -> None:
        _hold("cell_shift", self.cell_shift, 0, CELL_SHIFT_MAX)
        _hold("scale_step", self.scale_step, 1, 65535)
        _hold("shear_step", self.shear_step, 1, 65535)
        _hold("position_index", self.position_index, -32768, 32767)
        object.__setattr__(self, "color_steps", tuple(float(np.float32(step)) for step in self.color_steps))
        for step in self.color_steps:
            if not STEP_MIN <= step <= STEP_MAX:
                raise LimitError(f"color_steps: expected numbers in [2^-40, 2^16], got {step}")


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        width, height: px, 1 to 65535.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        bits: of a channel of the image, 8 or 16.
        mode, top_k: as in `blend2d`; top_k at most 32.
        background: a number of 0 to 65535 for each channel of the image, 65535 being 1.
        quantizer: the step sizes.
    """

    width: int
    height: int
    channels: int
    bits: int
    mode: str
    top_k: int
    background: tuple[int, ...]
    quantizer: Quantizer

    def __post_init__(self) -> None:
        _hold("width", self.width, 1, SIDE_MAX)
        _hold("height", self.height, 1, SIDE_MAX)
        _hold("channels", self.channels, 1, 4)
        _hold("top_k", self.top_k, 0, TOP_K_MAX)
        if self.bits not in (8, 16):
            raise LimitError(f"bits: expected 8 or 16, got {self.bits}")
        if self.mode not in MODES:
            raise LimitError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        object.__setattr__(self, "background", tuple(int(value) for value in self.background))
        for value in self.background:
            _hold("background", value, 0, 65535)
        for name, got in (("background", self.background), ("color_steps", self.quantizer.color_steps)):
            if len(got) != self.channels:
                raise LimitError(f"{name}: expected {self.channels} numbers, one a channel, got {len(got)}")
        if self.grid.across * self.grid.down > CELLS_MAX:
            got = f"{self.grid.across} x {self.grid.down}"
            raise LimitError(f"cell_shift: expected one that makes at most {CELLS_MAX} cells, got {got}")

    @property
    def grid(self) -> Grid:
        """Return the numbers of cells: those of the image and one more on every side; the first begins at
        (-cell, -cell).
        """
        cell = 1 << self.quantizer.cell_shift
        return Grid(-(-self.width // cell) + 2, -(-self.height // cell) + 2)

    @property
    def background_color(self) -> Floats:
        """Return the background as [channels] numbers of 0 to 1, float64."""
        return np.array(self.background) / 65535


class Grid(NamedTuple):
    """The numbers of cells beside and below each other."""

    across: int
    down: int


@dataclass(frozen=True)
class Symbols:
    """The Gaussians of one layer as integers, in any order; arrays become int32.

    Attributes:
        precision: [n] the class e, 0 to 12.
        shape: [n,3] i1, i3, s: log2 l1 = i1 scale_step 2^-e / 1024, l3 alike; shear = s shear_step 2^-e/1024.
        cell: [n,2] column and row of the grid.
        place: [n,2] position in the cell, from 0 to below `place_counts`.
        color: [n,channels] color = k color_step / sqrt(l1 l3).
    """

    precision: Ints
    shape: Ints
    cell: Ints
    place: Ints
    color: Ints

    def __post_init__(self) -> None:
        for field, tail in zip(fields(self), ((), (3,), (2,), (2,), (-1,)), strict=True):
            given = np.asarray(getattr(self, field.name))
            if given.size and not np.issubdtype(given.dtype, np.integer):
                raise GsiError(f"{field.name}: expected integers, got {given.dtype}")
            if given.size and max(abs(int(given.min())), abs(int(given.max()))) >= 2**31:
                raise LimitError(f"{field.name}: expected numbers of 32 bits, got larger ones")
            array = np.ascontiguousarray(given, dtype=np.int32)
            wanted = (len(self.precision), *(array.shape[-1:] if tail == (-1,) else tail))
            if array.shape != wanted:
                raise GsiError(f"{field.name}: expected {list(wanted)}, got {array.shape}")
            object.__setattr__(self, field.name, array)

    def __len__(self) -> int:
        return len(self.precision)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Symbols):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    def sorted(self) -> Symbols:
        """Return the same Gaussians in the order of the file: by row and column of cells, then by all
        else.
        """
        last = [self.place[:, 1], self.place[:, 0], *self.color.T[::-1], *self.shape.T[::-1]]
        return self.take(np.lexsort([*last, -self.precision, self.cell[:, 0], self.cell[:, 1]]))

    def take(self, rows: NDArray) -> Symbols:
        """Return the Gaussians that an index or a mask of rows selects, in its order."""
        return Symbols(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def empty(channels: int) -> Symbols:
        """Return symbols of no Gaussians."""
        shapes = ((0,), (0, 3), (0, 2), (0, 2), (0, channels))
        return Symbols(*(np.zeros(shape, np.int32) for shape in shapes))


class Gaussians(NamedTuple):
    """Gaussians as `blend2d` draws them, all float32, with weights of 1."""

    means: Floats  # [n,2] px
    conics: Floats  # [n,3] px^-2
    radii: Floats  # [n,2] px: the box in which the weight reaches 1/255
    colors: Floats  # [n,channels] of the picture


def place_counts(quantizer: Quantizer, precision: Ints, shape: Ints) -> Ints:
    """Return the number of places that a cell has along x and y for each Gaussian, [n,2], from classes [n]
    and shapes [n,3].

    All is computed in integers, so that every machine finds the same.

    Raises: LimitError for a shape outside the limits.
    """
    e = precision.astype(np.int64)
    check_shapes(quantizer, precision, shape)
    quarters = (shape[:, :2].astype(np.int64) * quantizer.scale_step >> e[:, None]) >> 8
    shear = shape[:, 2].astype(np.int64) * quantizer.shear_step >> e
    v = UNIT * UNIT + shear * shear  # at most 2^45, which a double holds exactly
    power = np.frexp(v.astype(np.float64))[1].astype(np.int64) - 1
    longer = 2 * power + (v << (44 - power) >= _SQRT2_44) - 40  # quarter octaves of sqrt(1 + shear^2)
    t = quantizer.position_index + 4 * (quantizer.cell_shift + e)
    return PLACES[np.stack([t - quarters[:, 0] + longer, t - quarters[:, 1]], -1).clip(0, 64)]


def check_shapes(quantizer: Quantizer, precision: Ints, shape: Ints) -> None:
    """Check classes [n] and shapes [n,3] against their limits.

    Raises: LimitError.
    """
    _hold_all("precision", precision, 0, PRECISION_MAX)
    e = precision.astype(np.int64)
    for column, name, step, most in (
        (0, "log2 l1", quantizer.scale_step, LOG2_MAX),
        (1, "log2 l3", quantizer.scale_step, LOG2_MAX),
        (2, "shear", quantizer.shear_step, SHEAR_MAX),
    ):
        far = np.abs(shape[:, column].astype(np.int64) * step) > (most * UNIT << e)
        if far.any():
            got = int(shape[far.argmax(), column])
            raise LimitError(f"shape: expected |{name}| <= {most}, got a larger one from the symbol {got}")


def check(header: Header, symbols: Symbols) -> None:
    """Check a layer's symbols against the limits of the format and against its header.

    Raises: GsiError, most often LimitError.
    """
    if symbols.color.shape[1] != header.channels:
        raise GsiError(f"color: expected {header.channels} channels, got {symbols.color.shape[1]}")
    counts = place_counts(header.quantizer, symbols.precision, symbols.shape)
    for axis, name in enumerate("xy"):
        _hold_all(f"cell {name}", symbols.cell[:, axis], 0, header.grid[axis] - 1)
        _hold_all(f"place {name}", symbols.place[:, axis], 0, counts[:, axis] - 1)
    _hold_all("color", symbols.color, -COLOR_MAX, COLOR_MAX)


def gaussians(
    header: Header, symbols: Symbols, scale: float = 1.0, origin: tuple[int, int] = (0, 0)
) -> Gaussians:
    """Return what the symbols stand for, `scale` times as large, relative to `origin`; a reduced sum is
    blurred.

    Raises: LimitError for what `check` refuses in shapes.
    """
    q = header.quantizer
    counts = place_counts(q, symbols.precision, symbols.shape)
    fine = np.ldexp(1 / UNIT, -symbols.precision)
    l1, l3 = np.exp2(symbols.shape[:, :2].T * (q.scale_step * fine))
    shear = symbols.shape[:, 2] * (q.shear_step * fine)
    cell = float(1 << q.cell_shift) * scale
    means = (symbols.cell - 1 + (symbols.place + 0.5) / counts) * cell - origin
    l1, l3 = l1 * scale, l3 * scale
    blur = max(0.0, 1 - scale * scale) / 12 if header.mode == "sum" else 0.0  # the variance of a square pixel
    xx, xy, yy = l1 * l1 + blur, l1 * l3 * shear, l3 * l3 * (1 + shear * shear) + blur
    spread = (l1 * l3) ** 2 + blur * (xx + yy - blur)  # the determinant, without cancellation for thin ones
    conics = np.stack([yy, -xy, xx] / spread, -1)
    radii = np.sqrt(2 * np.log(1 / WEIGHT_MIN) * np.stack([xx, yy], -1))
    colors = symbols.color * np.array(q.color_steps) * (scale * np.sqrt(l1 * l3 / spread))[:, None]
    parts = (means, conics, radii, ycc_to_rgb(colors))
    return Gaussians(*(np.ascontiguousarray(part, dtype=np.float32) for part in parts))


def ycc_to_rgb(colors: Floats) -> Floats:
    """Convert colours of a file, [...,channels] of Y (Cb Cr) (alpha), to those of the image: grey or RGB
    (alpha).

    Source: ITU-R BT.601 (full range, JFIF), chroma without an offset.
    """
    if colors.shape[-1] < 3:
        return colors
    y, cb, cr = colors[..., 0], colors[..., 1], colors[..., 2]
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return np.stack([*rgb, *np.moveaxis(colors[..., 3:], -1, 0)], -1)


def _hold(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise LimitError(f"{name}: expected a whole number in [{low}, {high}], got {value!r}")


def _hold_all(name: str, values: Ints, low: int, high: int | Ints) -> None:
    wrong = (values < low) | (values > high)
    if wrong.any():
        most = "its count - 1" if isinstance(high, np.ndarray) else high
        raise LimitError(f"{name}: expected numbers in [{low}, {most}], got {int(values[wrong][0])}")
