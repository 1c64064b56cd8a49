"""Range coding: both backends write the same bytes and read them back, at what the numbers are worth."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import python

from splatexp_kernels.entropy import (
    BACKENDS,
    VALUE_MAX,
    Column,
    Decoder,
    Encoder,
    EntropyError,
    Models,
    crc32c,
    reference,
)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def columns_of(rng, n):
    contexts = rng.integers(0, 5, n)
    previous = np.arange(n) - rng.integers(1, 4, n)
    return [Column(), Column(contexts, 5), Column(contexts, 5, np.maximum(previous, -1), 2)]


def written(backend, calls):
    encoder = Encoder(Models(backend))
    for call in calls:
        call(encoder, True)
    return encoder.finish()


def calls_of(rng, n, spread):
    """Some of everything: functions of a coder and of whether it writes, which hold what is read."""
    columns = columns_of(rng, n)
    values = np.rint(rng.laplace(0, spread, n)).astype(np.int32)
    shift, counts = rng.integers(-3, 7, n), rng.integers(1, 65537, n)
    places = rng.integers(0, counts)

    def integers(coder, writes):
        got = coder.integers("a", columns, n, values if writes else None, shift=shift)
        assert got.dtype == np.int32 and np.array_equal(got, values)

    def unsigned(coder, writes):
        sizes = np.abs(values)
        got = coder.integers("b", columns[:1], n, sizes if writes else None, sign=False)
        assert np.array_equal(got, sizes)

    def uniform(coder, writes):
        assert np.array_equal(coder.uniform(counts, places if writes else None), places)

    return [integers, uniform, unsigned, integers]


@pytest.mark.parametrize("spread", [0.1, 3, 1e3, 1e8])
def test_both_backends_write_the_same_and_read_it_back(rng, spread):
    calls = calls_of(rng, 300, spread)
    data = written("cpu", calls)
    assert data == written("reference", calls)
    for backend in BACKENDS:
        decoder = Decoder(Models(backend), data)
        for call in calls:
            call(decoder, False)
        decoder.finish()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(-VALUE_MAX, VALUE_MAX) | st.integers(-40, 40), max_size=30),
    st.integers(-16, 16),
    st.integers(1, 65536),
)
def test_any_numbers_come_back(values, shift, count):
    values = np.array(values, np.int32)
    n, shifts, counts = len(values), np.full(len(values), shift), np.full(len(values), count)
    blobs = []
    for backend in BACKENDS:
        encoder = Encoder(Models(backend))
        encoder.integers("a", [Column(), Column(None, 1, np.arange(n) - 1, 64)], n, values, shift=shifts)
        encoder.uniform(counts, np.abs(values.astype(np.int64)) % count)
        blobs.append(encoder.finish())
    assert blobs[0] == blobs[1]
    decoder = Decoder(Models(), blobs[0])
    got = decoder.integers("a", [Column(), Column(None, 1, np.arange(n) - 1, 64)], n, shift=shifts)
    assert np.array_equal(got, values)
    assert np.array_equal(decoder.uniform(counts), np.abs(values.astype(np.int64)) % count)
    decoder.finish()


def test_models_go_on_from_one_piece_of_data_to_the_next(rng):
    values = rng.poisson(2, 400)
    sizes = []
    for backend in BACKENDS:
        models = Models(backend)
        pieces = []
        for _ in range(2):
            encoder = Encoder(models)
            encoder.integers("a", [Column()], 400, values, sign=False)
            pieces.append(encoder.finish())
        sizes.append([len(piece) for piece in pieces])
        models = Models(backend)
        for piece in pieces:
            assert np.array_equal(Decoder(models, piece).integers("a", [Column()], 400, sign=False), values)
    assert sizes[0] == sizes[1]
    assert sizes[0][1] < sizes[0][0]


def entropy_bytes(values):
    _, counts = np.unique(values, return_counts=True)
    return -(counts * np.log2(counts / len(values))).sum() / 8


@pytest.mark.parametrize("make", ["poisson", "geometric", "laplace"])
def test_the_cost_is_close_to_the_entropy(rng, make):
    n = 2000
    values = {
        "poisson": lambda: rng.poisson(0.3, n),
        "geometric": lambda: rng.geometric(0.4, n),
        "laplace": lambda: np.rint(rng.laplace(0, 3, n)).astype(int),
    }[make]()
    encoder = Encoder(Models())
    encoder.integers("a", [Column()], n, values)
    assert len(encoder.finish()) < 1.05 * entropy_bytes(values) + 8


def test_a_context_that_tells_all_costs_next_to_nothing(rng):
    values = rng.integers(0, 6, 3000)
    encoder = Encoder(Models())
    encoder.integers("a", [Column(), Column(values, 6)], 3000, values)
    assert len(encoder.finish()) < 0.06 * entropy_bytes(values)
    alternating = np.tile([5, 1, 3], 1000)
    encoder = Encoder(Models())
    encoder.integers("a", [Column(None, 1, np.arange(3000) - 1, 6)], 3000, alternating)
    assert len(encoder.finish()) < 60


def test_equally_likely_numbers_cost_their_logarithm(rng):
    counts = rng.integers(1, 65537, 3000)
    encoder = Encoder(Models())
    encoder.uniform(counts, rng.integers(0, counts))
    assert len(encoder.finish()) == pytest.approx(np.log2(counts).sum() / 8, rel=1e-3, abs=3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_data_that_ends_early_or_late_is_refused(rng, backend):
    calls = calls_of(rng, 60, 20)
    data = written(backend, calls)
    with pytest.raises(EntropyError, match="behind the end"):
        decoder = Decoder(Models(backend), data[:-8])
        for _ in range(200):
            decoder.uniform(np.full(30, 1000))
    decoder = Decoder(Models(backend), data + b"12345")
    for call in calls:
        call(decoder, False)
    with pytest.raises(EntropyError, match="more data follows"):
        decoder.finish()
    with pytest.raises(EntropyError, match="cannot have written"):
        Decoder(Models(backend), b"\xff" * 9)


def test_any_data_gives_numbers_or_an_error(rng):
    for _ in range(300):
        data = rng.bytes(rng.integers(0, 60)) if rng.random() < 0.7 else b"\0" * rng.integers(0, 60)
        found = []
        for backend in BACKENDS:
            try:
                decoder = Decoder(Models(backend), data)
                got = [decoder.integers("a", columns_of(np.random.default_rng(1), 40), 40).tolist()]
                got += [decoder.uniform(np.full(20, 50)).tolist()]
            except EntropyError as error:
                got = str(error)
            found.append(got)
        assert found[0] == found[1]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (dict(columns=[]), "columns: expected 1 to 8"),
        (dict(columns=[Column(np.array([0, 1, 2]), 2)]), "contexts: expected"),
        (dict(columns=[Column(None, 1, np.array([-1, 1, 0]))]), "previous: expected"),
        (dict(columns=[Column(None, 0)]), "a size in"),
        (dict(columns=[Column(np.zeros(2, int), 1)]), r"contexts: expected \[3\]"),
        (dict(values=np.arange(4)), r"values: expected \[3\]"),
        (dict(values=np.array([0, -1, 0]), sign=False), "without a sign"),
        (dict(shift=np.full(3, 17)), "shift: expected"),
        (dict(values=np.full(3, 2**30)), "values: expected numbers in"),
    ],
)
def test_arguments_are_held_to_their_limits(wrong, match):
    call = dict(columns=[Column()], n=3, values=np.arange(3)) | wrong
    with pytest.raises(ValueError, match=match):
        Encoder(Models()).integers("a", **call)


def test_banks_places_and_backends_are_held_to_their_limits():
    encoder = Encoder(Models())
    encoder.integers("a", [Column()], 1, np.zeros(1))
    with pytest.raises(ValueError, match="other sizes"):
        encoder.integers("a", [Column(None, 2)], 1, np.zeros(1))
    for counts, values in (([0], [0]), ([65537], [0]), ([3], [3]), ([3], [-1])):
        with pytest.raises(ValueError, match="counts"):
            encoder.uniform(np.array(counts), np.array(values))
    with pytest.raises(ValueError, match="backend: expected one of"):
        Models("gpu")


def test_the_tables_are_what_the_specification_says():
    tables = repr((reference.SQUASH, reference.STRETCH, reference.RATE))
    assert len(reference.SQUASH) == len(reference.STRETCH) == 4096
    assert hashlib.sha256(tables.encode()).hexdigest()[:16] == "192502b783a09784"


def test_the_checksum_is_that_of_castagnoli(rng):
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the catalogue of CRCs
    for size in (0, 1, 300):
        data = rng.bytes(size)
        assert crc32c(data) == crc32c(data, backend="reference")


def test_no_torch_is_needed(tmp_path):
    code = "import sys; from splatexp_kernels.entropy import *; Encoder(Models()).finish(); "
    python("-c", code + "assert 'torch' not in sys.modules", cwd=tmp_path)
