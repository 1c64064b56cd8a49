"""Adaptive range coding of integers, in integer arithmetic: every machine writes and reads the same bytes.

It needs no torch. The cost of a number is learned while numbers are coded; a `Column` says in which context
each number is coded.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["BACKENDS", "Coder", "Column", "Decoder", "Encoder", "EntropyError", "Models", "crc32c"]

BACKENDS = ("reference", "cpu")
COLUMNS_MAX, SIZE_MAX, REACH_MAX, SHIFT_MAX, COUNT_MAX = 8, 65536, 64, 16, 65536
VALUE_MAX = 2**30 - 1

Ints = NDArray[np.integer]


class EntropyError(ValueError):
    """The data were not written by an encoder."""


class Column(NamedTuple):
    """One context for each of n numbers: numbers in equal contexts share a model.

    The first column of a call should be the coarsest: a new context of a column starts from the prediction of
    the column before it. The predictions of all columns are mixed, with weights that are learned too.

    Attributes:
        contexts: [n] from 0 on; None: all are equal.
        size: contexts are below it, at most 65536.
        previous: [n] rows of the same call, each earlier than the number itself, or -1; the numbers of these
            rows are part of the context. None: no such part.
        reach: numbers of `previous` are clipped to [-reach, reach]; at most 64.
    """

    contexts: Ints | None = None
    size: int = 1
    previous: Ints | None = None
    reach: int = 3


class Coder(Protocol):
    """Both directions of coding: an encoder returns the values that it was given, a decoder those that it
    reads.
    """

    def integers(
        self, bank: str, columns: list[Column], n: int, values: Ints | None = None,
        *, shift: Ints | None = None, sign: bool = True,
    ) -> Ints:  # fmt: skip
        """Code n whole numbers of less than 31 bits and a sign.

        Args:
            bank: a name; the models of one name are shared between calls.
            columns: the contexts, one to eight.
            n: number of values.
            values: [n], from 0 on without `sign`; None for a decoder.
            shift: [n] bits of each number that its context does not see, 0 to 16: contexts see the number
                rounded to a multiple of 2^shift, divided by 2^shift; a negative one makes `previous` see the
                number times 2^-shift. None: 0.
            sign: whether numbers may be below 0.

        Raises: ValueError for arguments, EntropyError for data.
        """
        ...

    def uniform(self, counts: Ints, values: Ints | None = None) -> Ints:
        """Code whole numbers [n], each from 0 to below its count (at most 65536), all equally likely.

        Raises: ValueError for arguments, EntropyError for data.
        """
        ...


class Models:
    """The adaptive models; encoders and decoders of several pieces of data may share them.

    Args:
        backend: cpu or reference.
    """

    def __init__(self, backend: str = "cpu") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        self._module = import_module(f"splatexp_kernels.entropy.{backend}")
        self._state = self._module.Models()
        self._banks: dict[str, int] = {}

    def key(self, bank: str) -> int:
        """Return the number of a bank's name."""
        return self._banks.setdefault(bank, len(self._banks))


class Encoder:
    """Writes numbers, see `Coder`; `finish` returns the bytes."""

    def __init__(self, models: Models) -> None:
        self._models, self._coder = models, models._module.Encoder(models._state)

    def integers(self, bank, columns, n, values=None, *, shift=None, sign=True):
        """See `Coder`."""
        values = _ints("values", values, n)
        if not sign and n and values.min() < 0:
            raise ValueError(f"values: expected none below 0 without a sign, got {values.min()}")
        if n and np.abs(values).max() > VALUE_MAX:
            raise ValueError(f"values: expected numbers in [-{VALUE_MAX}, {VALUE_MAX}]")
        known = _known(columns, n, shift)
        self._coder.integers(self._models.key(bank), *known, sign, values)
        return values

    def uniform(self, counts, values=None):
        """See `Coder`."""
        counts = _counts(counts)
        values = _ints("values", values, len(counts))
        wrong = (values < 0) | (values >= counts)
        if wrong.any():
            raise ValueError(f"values: expected numbers below their counts, got {values[wrong][0]}")
        self._coder.uniform(counts, values)
        return values

    def finish(self) -> bytes:
        """Return all that was written; nothing can be written afterwards."""
        return self._coder.finish()


class Decoder:
    """Reads numbers, see `Coder`, in the order and with the columns that they were written with."""

    def __init__(self, models: Models, data: bytes) -> None:
        self._models = models
        try:
            self._coder = models._module.Decoder(models._state, data)
        except OverflowError as error:
            raise EntropyError(str(error)) from None

    def integers(self, bank, columns, n, values=None, *, shift=None, sign=True):
        """See `Coder`."""
        known = _known(columns, n, shift)
        try:
            return np.asarray(self._coder.integers(self._models.key(bank), *known, sign, n), np.int32)
        except OverflowError as error:
            raise EntropyError(str(error)) from None

    def uniform(self, counts, values=None):
        """See `Coder`."""
        try:
            return np.asarray(self._coder.uniform(_counts(counts)), np.int32)
        except OverflowError as error:
            raise EntropyError(str(error)) from None

    def finish(self) -> None:
        """Check that all data have been read, except for less than four bytes.

        Raises: EntropyError where more follows.
        """
        if not self._coder.finished():
            raise EntropyError("more data follows behind the last number")


def crc32c(data: bytes, *, backend: str = "cpu") -> int:
    """Return the 32-bit checksum CRC-32C (Castagnoli), as used in storage and networks."""
    return import_module(f"splatexp_kernels.entropy.{backend}").crc32c(data)


def _ints(name: str, values: Ints | None, n: int) -> Ints:
    array = np.ascontiguousarray(values, dtype=np.int32)
    if array.shape != (n,):
        raise ValueError(f"{name}: expected [{n}], got {array.shape}")
    return array


def _counts(counts: Ints) -> Ints:
    counts = np.ascontiguousarray(counts, dtype=np.int32)
    if counts.ndim != 1 or (len(counts) and not 1 <= counts.min() <= counts.max() <= COUNT_MAX):
        raise ValueError(f"counts: expected [n] numbers in [1, {COUNT_MAX}], got {counts.shape}")
    return counts


def _known(columns: list[Column], n: int, shift: Ints | None):
    """Return sizes and reaches [columns], contexts and previous rows [n,columns], and shifts [n], after
    checking their limits.
    """
    if not 1 <= len(columns) <= COLUMNS_MAX:
        raise ValueError(f"columns: expected 1 to {COLUMNS_MAX}, got {len(columns)}")
    contexts = np.zeros((n, len(columns)), np.int32)
    previous = np.full((n, len(columns)), -1, np.int32)
    for m, column in enumerate(columns):
        if not 1 <= column.size <= SIZE_MAX or not 1 <= column.reach <= REACH_MAX:
            raise ValueError(
                f"columns[{m}]: expected a size in [1, {SIZE_MAX}] and a reach in [1, {REACH_MAX}]"
            )
        if column.contexts is not None:
            contexts[:, m] = _ints(f"columns[{m}].contexts", column.contexts, n)
        if column.previous is not None:
            previous[:, m] = _ints(f"columns[{m}].previous", column.previous, n)
    sizes = [column.size for column in columns]
    if ((contexts < 0) | (contexts >= sizes)).any():
        raise ValueError("contexts: expected numbers from 0 on and below their column's size")
    if ((previous < -1) | (previous >= np.arange(n)[:, None])).any():
        raise ValueError("previous: expected rows before the number itself, or -1")
    if shift is not None:
        shift = _ints("shift", shift, n)
        if n and np.abs(shift).max() > SHIFT_MAX:
            raise ValueError(f"shift: expected numbers in [-{SHIFT_MAX}, {SHIFT_MAX}]")
    return sizes, [0 if c.previous is None else c.reach for c in columns], contexts, previous, shift
