"""The container .gsi: what was written is read, what is damaged is refused by name."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from support.gsi_cases import cases, header_of, layer_of

from splatexp.image.codec import fuzz, gsi, streams
from splatexp.image.codec.gsi import LimitError, Limits, bits_by_stream, dump, load
from splatexp.image.codec.symbols import PLACES, Quantizer, Symbols, place_counts
from splatexp_kernels.entropy import Decoder, Encoder, Models

CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read(name):
    header, layers = CASES[name]
    data = dump(header, layers, metadata=b"told" * (name == "rgb"))
    file = load(data)
    assert file.header == header and not file.truncated and file.declared == len(layers)
    assert [len(found) for found in file.layers] == [len(made) for made in layers]
    assert all(found == made.sorted() for found, made in zip(file.layers, layers, strict=True))
    assert sum(section.size for section in file.sections) == len(data)
    assert file.metadata == b"told" * (name == "rgb")
    assert dump(header, file.layers, metadata=file.metadata) == data


def test_the_order_of_gaussians_makes_no_difference():
    header, (made,) = CASES["rgb"]
    mixed = made.take(np.random.default_rng(1).permutation(len(made)))
    assert mixed != made and dump(header, [mixed]) == dump(header, [made])


def test_framing_is_small():
    header, layers = CASES["rgb"]
    sizes = bits_by_stream(header, layers)
    data = dump(header, layers)
    assert len(dump(header, [Symbols.empty(3)])) <= 76
    assert len(data) - sum(sizes[0].values()) / 8 <= 76
    assert set(sizes[0]) == {"counts", "place", *streams.STREAMS} - {"color"} | {
        f"color{i}" for i in range(3)
    }


def test_numbers_cost_less_than_their_entropies():
    header = header_of(384, 256, step=0.3)
    made = layer_of(header, 800, precision=(2, 5))

    def bits(values):
        _, counts = np.unique(values, return_counts=True)
        return -(counts * np.log2(counts / len(values))).sum()

    flat = np.bincount(made.cell @ [1, header.grid.across], minlength=np.prod(header.grid))
    columns = [flat, made.precision, *made.shape.T, *made.color.T]
    places = place_counts(header.quantizer, made.precision, made.shape)
    assert 8 * len(dump(header, [made])) < 0.99 * (sum(map(bits, columns)) + np.log2(places).sum())


def test_python_reads_what_cpp_writes():
    header, layers = CASES["layers"]
    models, reading = Models("cpu"), Models("reference")
    for made in layers:
        encoder = Encoder(models)
        streams.code_layer(encoder, header, len(made), made.sorted())
        decoder = Decoder(reading, encoder.finish())
        assert streams.code_layer(decoder, header, len(made)) == made.sorted()
        decoder.finish()


def test_every_beginning_gives_the_first_layers():
    header, layers = CASES["layers"]
    data = dump(header, layers, metadata=b"x" * 30)
    whole = load(data)
    ends = np.cumsum([section.size for section in whole.sections])
    for size in range(len(data)):
        if size < ends[1]:
            with pytest.raises(gsi.NotGsiError):
                load(data[:size])
            continue
        file = load(data[:size])
        count = int((ends[2:5] <= size).sum())
        assert file.layers == whole.layers[:count] and file.truncated == (size != ends[4])
        assert sum(section.size for section in file.sections) == size


def test_a_flipped_bit_is_found_wherever_it_is():
    data = dump(*CASES["layers"])
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 4
        try:
            file = load(bytes(changed))
        except gsi.GsiError:
            continue
        assert file.truncated, f"byte {at}"  # a length that reaches behind the end


def framed(data, name, payload, at):
    """A file with one more section in front of its section number `at`."""
    ends = np.cumsum([0] + [section.size for section in load(data).sections])
    return data[: ends[at]] + gsi._frame(name, payload) + data[ends[at] :]


def test_what_need_not_be_understood_is_skipped():
    data = dump(*CASES["layers"])
    more = framed(data, b"note", b"hello", 3)
    assert load(more).layers == load(data).layers and gsi.Section("note", 17) in load(more).sections
    with pytest.raises(gsi.UnsupportedError, match="section NOTE"):
        load(framed(data, b"NOTE", b"hello", 3))


def head(data, offset, form, *values):
    """A file with a part of its header written over, and the right checksum."""
    changed = bytearray(data)
    struct.pack_into(form, changed, 16 + offset, *values)
    fuzz.repair_checksums(changed)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "form", "value", "kind", "match"),
    [
        (0, "<B", 2, gsi.UnsupportedError, "version: expected 1, got 2.0"),
        (2, "<H", 0, LimitError, "width"),
        (6, "<B", 5, gsi.DamageError, "5 channels"),
        (6, "<B", 2, gsi.DamageError, "bytes, got 37"),
        (7, "<B", 9, LimitError, "bits: expected 8 or 16, got 9"),
        (8, "<B", 2, gsi.DamageError, "mode 2"),
        (9, "<B", 33, LimitError, "top_k"),
        (10, "<B", 1, gsi.UnsupportedError, "colour space"),
        (11, "<B", 17, gsi.DamageError, "17 layers"),
        (11, "<B", 2, gsi.DamageError, "got more"),
        (12, "<B", 9, LimitError, "cell_shift"),
        (13, "<H", 0, LimitError, "scale_step"),
        (25, "<f", float("nan"), LimitError, "color_steps"),
        (25, "<f", float("inf"), LimitError, "color_steps"),
        (25, "<f", 0.0, LimitError, "color_steps"),
    ],
)
def test_headers_are_held_to_their_limits(offset, form, value, kind, match):
    with pytest.raises(kind, match=match):
        load(head(dump(*CASES["layers"]), offset, form, value))


def test_a_later_minor_version_may_say_more():
    data = dump(*CASES["rgb"])
    payload = bytearray(data[16:53] + b"more")
    payload[1] = 1
    assert load(data[:8] + gsi._frame(b"HEAD", bytes(payload)) + data[57:]).layers == load(data).layers
    payload[1] = 0
    with pytest.raises(gsi.DamageError, match="expected 37 bytes, got 41"):
        load(data[:8] + gsi._frame(b"HEAD", bytes(payload)) + data[57:])


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (lambda d: b"\xff\xd8" + d, gsi.NotGsiError, "begins with"),
        (lambda d: d.replace(b"\r\n", b"\n"), gsi.NotGsiError, "begins with"),
        (lambda d: d[:8] + d[57:], gsi.DamageError, "HEAD in front"),
        (lambda d: d[:57] + d[8:], gsi.DamageError, "HEAD in front"),
        (lambda d: d + gsi._frame(b"LAYR", b""), gsi.DamageError, "got more"),
        (lambda d: d[:57] + gsi._frame(b"LAYR", b"ab"), gsi.DamageError, "4 bytes or more"),
        (lambda d: d[:57] + gsi._frame(b"LAYR", b"\xff\xff\xff\xff" * 9), gsi.DamageError, "at most 576 Gau"),
        (lambda d: d[:57] + gsi._frame(b"LAYR", d[65:-4] + b"12345"), gsi.DamageError, "more data"),
        (lambda d: d[:57] + gsi._frame(b"LAYR", d[65:-60]), gsi.DamageError, "end of the data"),
        (lambda d: d + gsi._frame(b"no e", b""), gsi.DamageError, "four letters"),
        (lambda d: d + gsi._frame(b"note", b"") * 64, LimitError, "at most 64"),
    ],
)
def test_what_is_no_file_is_refused(change, kind, match):
    with pytest.raises(kind, match=match):
        load(change(dump(*CASES["rgb"])))


def test_readers_set_limits():
    data = dump(*CASES["layers"])
    assert len(load(data, limits=Limits(gaussians=120)).layers) == 3
    with pytest.raises(LimitError, match="at most 49 more, got 50 .the limit"):
        load(data, limits=Limits(gaussians=119))


def test_what_cannot_be_written_is_refused(monkeypatch):
    header, (made,) = CASES["rgb"]
    wrong = {
        "precision": (made.precision + 13, "precision"),
        "shape": (made.shape + 10_000_000, "log2 l1"),
        "cell": (made.cell + 8, "cell x"),
        "place": (made.place + 70_000, "place x"),
        "color": (made.color * 0 + 2**24, "color"),
    }
    for name, (values, match) in wrong.items():
        with pytest.raises(LimitError, match=match):
            dump(header, [replace(made, **{name: values})])
    with pytest.raises(gsi.GsiError, match="3 channels"):
        dump(header, [Symbols.empty(1)])
    with pytest.raises(LimitError, match="1 to 16"):
        dump(header, [])
    says = "at most 9 Gaussians of so little information"
    with monkeypatch.context() as patch, pytest.raises(LimitError, match=says):
        patch.setattr(gsi, "_max_gaussians", lambda size: 9)
        dump(header, [made])
    with pytest.raises(LimitError, match="cells"):
        header_of(60000, 60000, cell_shift=2)
    with pytest.raises(gsi.GsiError, match="place: expected integers"):
        replace(made, place=made.place * 0.5)


def test_counts_of_places_are_what_the_formula_says():
    assert [round(2 ** (t / 4)) for t in range(65)] == PLACES.tolist()
    rng = np.random.default_rng(0)
    for q in (
        Quantizer(3, 1700, 2048, -2, (1,)),
        Quantizer(8, 65535, 65535, 3, (1,)),
        Quantizer(0, 1, 1, 9, (1,)),
    ):
        e = rng.integers(0, 13, 400)
        most = np.array([16384 / q.scale_step, 16384 / q.scale_step, 2**22 / q.shear_step])
        shape = np.trunc(rng.uniform(-1, 1, (400, 3)) ** 3 * most * 2.0 ** e[:, None]).astype(int)
        for k, got in enumerate(place_counts(q, e, shape)):
            i1, i3 = (int(i) * q.scale_step >> int(e[k]) for i in shape[k, :2])
            v = 2**20 + (int(shape[k, 2]) * q.shear_step >> int(e[k])) ** 2
            power = v.bit_length() - 1
            longer = 2 * power + (v * v >= 2 ** (2 * power + 1)) - 40
            t = q.position_index + 4 * q.cell_shift + 4 * int(e[k])
            want = [t - (i1 >> 8) + longer, t - (i3 >> 8)]
            assert got.tolist() == [PLACES[min(max(i, 0), 64)] for i in want]


def test_damaged_files_give_a_picture_or_a_named_error():
    counts, failures, _ = fuzz.trials(7, range(1, 2001))
    assert not failures
    assert sum(counts.values()) == 2000 and counts["image"] > 400 and len(counts) == 6
