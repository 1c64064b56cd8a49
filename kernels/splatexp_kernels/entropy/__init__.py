"""Adaptive range coding of integers, in integers alone: every machine writes and reads the same bytes.

Needs no torch. What a number costs is learned while it is written, from the numbers before it; `Column` says
what each number is likened to.
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
    """Data that no encoder has written."""


class Column(NamedTuple):
    """One thing that is known of each of n numbers: numbers of equal contexts are likened to each other.

    The first column of a call should be the coarsest: where a context of a column is new, it begins with what
    the column before it expects. All columns are mixed, and how much each is worth is learned too.

    Attributes:
        contexts: [n] from 0 on; None: all the same.
        size: contexts are below it, at most 65536.
        previous: [n] rows of the same call, each earlier than the number itself, or -1, whose numbers are
            part of the context too; None: no such thing.
        reach: numbers of `previous` beyond it, on both sides of 0, are all the same; at most 64.
    """

    contexts: Ints | None = None
    size: int = 1
    previous: Ints | None = None
    reach: int = 3


class Coder(Protocol):
    """Both directions: an encoder returns the values that it was given, a decoder those that it found."""

    def integers(
        self, bank: str, columns: list[Column], n: int, values: Ints | None = None,
        *, shift: Ints | None = None, sign: bool = True,
    ) -> Ints:  # fmt: skip
        """n whole numbers of less than 31 bits and a sign.

        Args:
            bank: a name; the models of one name go on from call to call.
            columns: what is known, one to eight.
            n: how many.
            values: [n], from 0 on without `sign`; a decoder takes None.
            shift: [n] bits of each number that its context does not see, 0 to 16: contexts see the number
                rounded to a multiple of 2^shift, over 2^shift; a negative one makes `previous` see the number
                times 2^-shift. None: 0.
            sign: whether numbers may be below 0.

        Raises: ValueError for arguments, EntropyError for data.
        """
        ...

    def uniform(self, counts: Ints, values: Ints | None = None) -> Ints:
        """Whole numbers [n], each from 0 on and below its count, at most 65536, all of them as likely.

        Raises: ValueError for arguments, EntropyError for data.
        """
        ...


class Models:
    """What was learned so far: encoders and decoders of several pieces of data may go on from each other.

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
        """The number of a bank's name."""
        return self._banks.setdefault(bank, len(self._banks))


class Encoder:
    """Writes numbers, see `Coder`; `finish` gives the bytes."""

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
        """All that was written; nothing can be written after it."""
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
        """Hold that all of the data has been read, but for less than four bytes.

        Raises: EntropyError where more follows.
        """
        if not self._coder.finished():
            raise EntropyError("more data follows behind the last number")


def crc32c(data: bytes, *, backend: str = "cpu") -> int:
    """The checksum of 32 bits that storage and networks use, CRC-32C (Castagnoli)."""
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
    """Sizes and reaches [columns], contexts and previous rows [n,columns], shifts [n], held to limits."""
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
