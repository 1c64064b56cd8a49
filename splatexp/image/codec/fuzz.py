"""Fuzz test of the reader with damaged .gsi files: each must give an image or a GsiError, in little time and
memory.

    python -m splatexp.image.codec.fuzz [count=1_000_000] [seed=0] [jobs=0]

Files are made, then cut, spliced and overwritten; most get their checksums repaired, so that the damage
reaches the decoder behind them. Of a file that was only truncated, the layers read must be the first ones of
the whole file.

jobs: number of processes; 0: one per processor. The exit status is 1 where anything else happened.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np

from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import FRAME, MAGIC, File, GsiError, Limits, dump, load
from splatexp.image.codec.symbols import Header, Quantizer, Symbols, place_counts
from splatexp_kernels.entropy import crc32c

CHUNK = 2000  # files per task
SECONDS_MAX = 5.0  # of one file
MEMORY_MAX = 2**28  # bytes of a process, its code included
SMALL = Limits(gaussians=2**14, image_bytes=2**18, work=2**22)
DEFAULT_EVERY = 500  # files after which one is read with the reader's own limits
EXTREMES = (0, 1, 2, 127, 128, 254, 255)


class Trials(NamedTuple):
    """The results of a fuzzing session: counts by result, a line for each failure, and the peak memory in bytes."""

    counts: Counter[str]
    failures: list[str]
    peak: int


def header_of(
    width: int = 48,
    height: int = 32,
    channels: int = 3,
    *,
    bits: int = 8,
    mode: str = "sum",
    top_k: int = 0,
    background: tuple[int, ...] = (),
    cell_shift: int = 3,
    scale_step: int = 1700,
    shear_step: int = 2048,
    position_index: int = -2,
    step: float = 0.2,
) -> Header:
    """Return a header with the given settings; the background is grey unless it is given."""
    steps = (step, *(1.5 * step for _ in range(channels - 1)))
    quantizer = Quantizer(cell_shift, scale_step, shear_step, position_index, steps)
    return Header(width, height, channels, bits, mode, top_k, background or (30000,) * channels, quantizer)


def layer_of(
    header: Header,
    n: int,
    seed: int = 0,
    *,
    precision: tuple[int, int] = (0, 6),
    log2: tuple[float, float] = (-0.5, 3.0),
    shear: float = 0.8,
) -> Symbols:
    """Return n Gaussians, denser in one corner than in the other, of sizes 2^log2 px and with colours of
    either sign.
    """
    rng, q = np.random.default_rng(seed), header.quantizer
    e = rng.integers(*precision, n, endpoint=True)
    fine = np.exp2(-e) / 1024
    scales = rng.uniform(*log2, (n, 2))
    shape = np.stack(
        [*(scales.T / (q.scale_step * fine)), rng.normal(0, shear, n) / (q.shear_step * fine)], -1
    )
    shape = np.rint(shape).astype(np.int32)
    cell = (rng.beta(1.2, 2, (n, 2)) * header.grid).astype(np.int32)
    place = rng.integers(0, place_counts(q, e, shape))
    size = np.exp2(e)[:, None] / np.arange(1, header.channels + 1)
    color = np.rint(rng.normal(0, 1, (n, header.channels)) * size).astype(np.int32)
    return Symbols(e, shape, cell, place, color)


def seed_files() -> list[bytes]:
    """Return the files that are damaged."""
    headers = [
        header_of(channels=channels, bits=bits, mode=mode, top_k=top_k)
        for channels, bits, mode, top_k in ((3, 8, "sum", 0), (1, 8, "normalized", 3), (4, 16, "sum", 2))
    ]
    headers += [
        header_of(cell_shift=0),
        header_of(9, 40, 2, cell_shift=8, position_index=20),
        header_of(1, 1),
    ]
    files = [dump(header, [layer_of(header, 40, i)]) for i, header in enumerate(headers)]
    layers = [layer_of(headers[0], n, n) for n in (10, 0, 30, 20)]
    wide = layer_of(headers[0], 60, precision=(0, 12), log2=(-4, 6), shear=50)
    return [*files, dump(headers[0], layers, metadata=b"of no interest"), dump(headers[0], [wide])]


def damaged(files: list[bytes], rng: np.random.Generator) -> tuple[bytes, int | None]:
    """Return one damaged file, and the number of the file that it is a truncation of, if it is one."""
    number = int(rng.integers(len(files)))
    data = bytearray(files[number])
    if rng.random() < 0.08:
        return bytes(data[: rng.integers(len(data))]), number
    for _ in range(int(rng.integers(1, 4))):
        KINDS[int(rng.integers(len(KINDS)))](data, files, rng)
    if rng.random() < 0.85:
        repair_checksums(data)
    return bytes(data), None


def repair_checksums(data: bytearray) -> None:
    """Write the right checksums into all sections whose lengths lie inside the file."""
    at = len(MAGIC)
    while at + FRAME <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if length > len(data) - at - FRAME:
            return
        end = at + 8 + length
        struct.pack_into("<I", data, end, crc32c(bytes(data[at:end])))
        at = end + 4


def _place(data: bytearray, rng: np.random.Generator, least: int = 0) -> int:
    return int(rng.integers(min(least, len(data) - 1), len(data)))


def _flip(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 6))):
        data[_place(data, rng, len(MAGIC))] ^= 1 << int(rng.integers(8))


def _extreme(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        data[_place(data, rng, len(MAGIC))] = EXTREMES[int(rng.integers(len(EXTREMES)))]


def _head(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    at = len(MAGIC) + 8 + int(rng.integers(30))
    if at < len(data):
        data[at] = int(rng.integers(256))


def _number(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    """Overwrite the length of a section, or the number of Gaussians that a layer states."""
    at = bytes(data).find(b"LAYR", int(rng.integers(len(data))))
    if at >= 0 and at + 12 <= len(data):
        value = [0, 1, 2**31, 2**32 - 1, int(rng.integers(2000))][int(rng.integers(5))]
        struct.pack_into("<I", data, at + 4 * int(rng.integers(1, 3)), value)


def _splice(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    other = files[int(rng.integers(len(files)))]
    a, b = sorted(rng.integers(0, len(other), 2))
    at = _place(data, rng)
    data[at : at + int(rng.integers(0, b - a + 1))] = other[a:b]


def _cut(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 30))]
    data += bytes(max(len(MAGIC) + 1 - len(data), 0))


def _noise(data: bytearray, files: list[bytes], rng: np.random.Generator) -> None:
    at = _place(data, rng, len(MAGIC) + 49)
    data[at : at + 20] = rng.bytes(int(rng.integers(1, 20)))


KINDS = (_flip, _extreme, _head, _number, _splice, _cut, _noise)


def read(data: bytes, limits: Limits) -> tuple[File | None, str]:
    """Return a file, if the data are one, and the outcome: "image" or the name of an error.

    Raises: whatever a reader must not raise.
    """
    try:
        file = load(data, limits=limits)
        image = decode(file, limits=limits)
    except GsiError as error:
        return None, type(error).__name__
    header = file.header
    assert image.shape == (header.height, header.width, header.channels), "the image has another size"
    return file, "image"


def trial(files: list[bytes], whole: list[tuple[Symbols, ...]], seed: int, index: int) -> str:
    """Damage and read the file of a number; return the outcome of `read`.

    Raises: AssertionError, and whatever else a reader must not do.
    """
    data, number = damaged(files, np.random.default_rng([seed, index]))
    began = time.perf_counter()
    file, what = read(data, Limits() if index % DEFAULT_EVERY == 0 else SMALL)
    seconds = time.perf_counter() - began
    assert seconds < SECONDS_MAX, f"took {seconds:.1f} s"
    if number is not None:
        assert file is not None or what == "NotGsiError", f"a truncated file gave {what}"
        assert file is None or file.layers == whole[number][: len(file.layers)], "not the first layers"
        complete = file is None or len(file.layers) == file.declared
        assert complete or file.truncated, "not called truncated"
    return what


def trials(seed: int, numbers: Iterable[int]) -> Trials:
    """Run the trials of the given numbers."""
    files = seed_files()
    whole = [load(data).layers for data in files]
    counts, failures = Counter[str](), []
    for index in numbers:
        try:
            counts[trial(files, whole, seed, index)] += 1
        except Exception as error:  # any exception is a finding
            failures.append(f"seed={seed} file {index}: {type(error).__name__}: {error}")
    return Trials(counts, failures, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def fuzz(
    count: int = 1_000_000, seed: int = 0, jobs: int = 0
) -> Iterator[tuple[Counter[str], list[str], int]]:
    """Yield the results of `trials` for one chunk of files after the other."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    context = get_context("spawn")  # new processes, whose peak memory does not include this one's
    with ProcessPoolExecutor(jobs or os.cpu_count() or 1, mp_context=context) as pool:
        yield from pool.map(trials, repeat(seed), chunks)


def main() -> None:
    """Run the command `python -m splatexp.image.codec.fuzz`."""
    from splatexp.settings.arguments import parse_arguments

    try:
        settings = parse_arguments(sys.argv[1:], {"count": int, "seed": int, "jobs": int})
    except ValueError as error:
        sys.exit(str(error))
    counts, failed, peak, began = Counter[str](), 0, 0, time.perf_counter()
    for some, failures, memory in fuzz(**settings):
        counts.update(some)
        peak, failed = max(peak, memory), failed + len(failures)
        print(*failures, sep="\n", end="\n" * bool(failures))
        if sum(counts.values()) % (50 * CHUNK) == 0:
            print(f"{sum(counts.values()):9d} files, {time.perf_counter() - began:.0f} s", flush=True)
    summary = ", ".join(f"{name} {n}" for name, n in counts.most_common())
    print(
        f"{sum(counts.values())} files ({summary}), {failed} failures, at most {peak / 2**20:.0f} MiB a process"
    )
    sys.exit(1 if failed or peak > MEMORY_MAX else 0)


if __name__ == "__main__":
    main()
