"""The streams of one layer of a .gsi file: one routine that an encoder and a decoder run alike (docs/gsi.md).

Gaussians are a set: first the number in each cell is coded, row by row, then their symbols, attribute by
attribute, in the order of the cells. The contexts of each number are in `_counts` and in `STREAMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from splatexp.image.codec.symbols import (
    PRECISION_MAX,
    Header,
    Ints,
    LimitError,
    Symbols,
    check,
    check_shapes,
    place_counts,
)
from splatexp_kernels.entropy import Coder, Column

CLASSES = PRECISION_MAX + 1
SHAPE_CLASS = 1  # contexts see finer shapes in steps of this class
COLOR_CLASS = 2  # contexts see colours in steps of 2^(e - COLOR_CLASS)


@dataclass
class LayerContext:
    """The state that encoder and decoder share before a stream: what both know of a layer's n Gaussians.

    That is the positions first, then whatever has been coded.

    Attributes:
        left, above: [n] rows of the nearest earlier Gaussian in the same row of cells, and in the row above;
            or -1.
        together: [n] 1 where `left` lies in the same cell, else 0: precision classes fall within a cell.
        density: [n] a bucket, 0 to 7, of how many Gaussians lie around its cell.
        e: [n] precision classes.
        i1, i3, s: [n] shapes; colors: [channels so far][n].
    """

    left: Ints
    above: Ints
    together: Ints
    density: Ints
    e: Ints | None = None
    i1: Ints | None = None
    i3: Ints | None = None
    s: Ints | None = None
    colors: tuple[Ints, ...] = ()


def _clip(values: Ints, most: int) -> Ints:
    return np.clip(values, -most, most) + most


def _coarse(values: Ints, e: Ints, to: int) -> Ints:
    """Return numbers in steps of class e, rounded to those of the class `to`."""
    down, up = np.maximum(e - to, 0), np.maximum(to - e, 0)
    return ((values.astype(np.int64) << up) + (1 << down >> 1)) >> down


def _precision(k: LayerContext) -> list[Column]:
    return [
        Column(),
        Column(k.density, 8),
        Column(k.together, 2, k.left, 12),
        Column(None, 1, k.above, 12),
    ]


def _i1(k: LayerContext) -> list[Column]:
    return [
        Column(np.minimum(k.e, SHAPE_CLASS + 1), SHAPE_CLASS + 2),
        Column(k.e, CLASSES),
        Column(np.minimum(k.e, SHAPE_CLASS + 1) * 8 + k.density, 8 * SHAPE_CLASS + 16),
        Column(np.minimum(k.e, SHAPE_CLASS + 1), SHAPE_CLASS + 2, k.left, 10),
        Column(np.minimum(k.e, SHAPE_CLASS + 1), SHAPE_CLASS + 2, k.above, 10),
    ]


def _i3(k: LayerContext) -> list[Column]:
    e, first = np.minimum(k.e, SHAPE_CLASS + 1), _clip(_coarse(k.i1, k.e, SHAPE_CLASS), 10)
    return [
        Column(e, SHAPE_CLASS + 2),
        Column(k.e, CLASSES),
        Column(e * 8 + k.density, 8 * SHAPE_CLASS + 16),
        Column(e * 21 + first, 21 * SHAPE_CLASS + 42),
        Column(e, SHAPE_CLASS + 2, k.left, 10),
        Column(e, SHAPE_CLASS + 2, k.above, 10),
    ]


def _s(k: LayerContext) -> list[Column]:
    e = np.minimum(k.e, SHAPE_CLASS + 1)
    long = _clip(_coarse(k.i1, k.e, SHAPE_CLASS) - _coarse(k.i3, k.e, SHAPE_CLASS), 6)
    return [
        Column(e, SHAPE_CLASS + 2),
        Column(k.e, CLASSES),
        Column(e * 13 + long, 13 * SHAPE_CLASS + 26),
        Column(e * 13 + np.clip(_coarse(k.i3, k.e, SHAPE_CLASS), 0, 12), 13 * SHAPE_CLASS + 26),
        Column(e, SHAPE_CLASS + 2, k.left, 2),
        Column(e, SHAPE_CLASS + 2, k.above, 2),
    ]


def _color(k: LayerContext) -> list[Column]:
    e = np.minimum(k.e, COLOR_CLASS + 1)
    so_far = [_clip(_coarse(color, k.e, COLOR_CLASS), 2) for color in k.colors]
    before = sum((color * 5**i for i, color in enumerate(so_far[-2:])), np.zeros_like(e))
    area = np.clip(_coarse(k.i1, k.e, SHAPE_CLASS) + _coarse(k.i3, k.e, SHAPE_CLASS), 0, 11)
    return [
        Column(e, COLOR_CLASS + 2),
        Column(k.e, CLASSES),
        Column(e * 25 + before, 25 * COLOR_CLASS + 50),
        Column(e * 12 + area, 12 * COLOR_CLASS + 24),
        Column(e, COLOR_CLASS + 2, k.left, 2),
        Column(e, COLOR_CLASS + 2, k.above, 2),
    ]


STREAMS: dict[str, Callable[[LayerContext], list[Column]]] = {
    "precision": _precision,
    "i1": _i1,
    "i3": _i3,
    "s": _s,
    "color": _color,
}


def code_layer(coder: Coder, header: Header, n: int, symbols: Symbols | None = None) -> Symbols:
    """Write a layer's n Gaussians, or read them.

    Args:
        coder: an encoder or a decoder, with the models of the layers before.
        symbols: those to write, within the limits and `sorted`; None for a decoder.

    Returns: what was written or read, in the order of the file, within all limits.
    Raises: LimitError, EntropyError where what is read is not a layer.
    """
    cell, known = _cells(coder, header, n, symbols)
    given = symbols or Symbols.empty(header.channels)
    writes = symbols is not None

    def integers(bank: str, stream: str, values: Ints, fine: int | None, sign: bool = True) -> Ints:
        shift = None if fine is None else known.e - fine
        columns = STREAMS[stream](known)
        return coder.integers(bank, columns, n, values if writes else None, shift=shift, sign=sign)

    known.e = integers("precision", "precision", given.precision, None, sign=False)
    check_shapes(header.quantizer, known.e, np.zeros((n, 3), np.int32))
    known.i1 = integers("i1", "i1", given.shape[:, 0], SHAPE_CLASS)
    known.i3 = integers("i3", "i3", given.shape[:, 1], SHAPE_CLASS)
    known.s = integers("s", "s", given.shape[:, 2], SHAPE_CLASS)
    shape = np.stack([known.i1, known.i3, known.s], -1)
    counts = place_counts(header.quantizer, known.e, shape)
    place = [coder.uniform(counts[:, a], given.place[:, a] if writes else None) for a in (0, 1)]
    for channel in range(header.channels):
        color = integers(f"color{channel}", "color", given.color[:, channel], COLOR_CLASS)
        known.colors = (*known.colors, color)
    found = Symbols(known.e, shape, cell, np.stack(place, -1), np.stack(known.colors, -1))
    check(header, found)
    return found


def _cells(coder: Coder, header: Header, n: int, symbols: Symbols | None) -> tuple[Ints, LayerContext]:
    """Code the cells of all Gaussians; return their columns and rows [n,2], and what follows from them."""
    across, down = header.grid
    counts = np.zeros((down + 2, across + 2), np.int32)  # two rows above, and a column on both sides
    given = None
    if symbols is not None:
        flat = symbols.cell[:, 1].astype(np.int64) * across + symbols.cell[:, 0]
        given = np.bincount(flat, minlength=across * down).reshape(down, across)
    total = 0
    for y in range(down):
        row = counts[y + 2, 1:-1]
        row[:] = _counts(coder, counts[y : y + 2], None if given is None else given[y])
        total += int(row.sum(dtype=np.int64))
        if total >= n:  # all further cells are empty, which is not coded
            break
    if total != n:
        raise LimitError(f"cells: expected {n} Gaussians in all, got {total}{' or more' * (total > n)}")
    inner = counts[2:, 1:-1].ravel()
    taken = np.flatnonzero(inner)
    flat = np.repeat(taken, inner[taken])
    return np.stack([flat % across, flat // across], -1), _neighbors(flat, across, counts)


def _counts(coder: Coder, above: Ints, values: Ints | None) -> Ints:
    """Code how many Gaussians lie in each cell of a row, given the counts of the two rows above [2,across +
    2].
    """
    n = above.shape[1] - 2
    far, near = above
    sides = near[:-2] + near[2:]
    around = np.minimum(near[1:-1] + sides + far[:-2] + far[1:-1] + far[2:], 9)
    edge = np.zeros(n, np.int32)
    edge[[0, -1]] = 1
    left = np.arange(n) - 1
    columns = [
        Column(edge, 2),
        Column(np.minimum(near[1:-1], 2) * 3 + np.minimum(sides, 2), 9, left, 2),
        Column(around, 10, left, 3),
    ]
    return coder.integers("counts", columns, n, values, sign=False)


def _neighbors(flat: Ints, across: int, counts: Ints) -> LayerContext:
    n, rows = len(flat), flat // across
    index = np.arange(n)
    left = np.where((index > 0) & (np.roll(rows, 1) == rows), index - 1, -1)
    after = np.searchsorted(flat, flat - across)
    above, best = np.full(n, -1), np.full(n, across)
    for candidate in (after - 1, after):
        row = np.clip(candidate, 0, max(n - 1, 0))
        far = np.abs(flat[row] - (flat - across))
        better = (candidate >= 0) & (rows[row] == rows - 1) & (far < best)
        above[better], best[better] = row[better], far[better]
    around = np.pad(counts[2:], ((2, 2), (1, 1)))  # two cells on every side, for sums over 5 x 5 cells
    around = sum(around[i : i + len(around) - 4] for i in range(5))
    around = sum(around[:, i : i + around.shape[1] - 4] for i in range(5))
    density = np.searchsorted([2, 3, 5, 8, 12, 18, 28], around.ravel()[flat], side="right")
    together = ((index > 0) & (np.roll(flat, 1) == flat)).astype(np.int32)
    return LayerContext(left, above, together, density)
