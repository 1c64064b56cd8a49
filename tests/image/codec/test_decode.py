"""From a .gsi file to its picture: as the float64 reference draws it, whole or cropped, at any scale."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import python
from support.gsi_cases import cases, header_of, layer_of

from splatexp.image.codec import decode as module
from splatexp.image.codec.decode import decode
from splatexp.image.codec.gsi import LimitError, Limits, dump, load
from splatexp.image.codec.symbols import Symbols, gaussians
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.tiles import tiles

CASES = cases()
GOLDEN = Path(__file__).parents[2] / "golden" / "gsi"


def reference(header, layers, scale=1.0):
    """The picture [H,W,D] by the float64 reference of `blend2d`, from 0 to 255 or 65535, not rounded."""
    parts = [gaussians(header, symbols.sorted(), scale) for symbols in layers]
    drawn = [torch.from_numpy(np.concatenate(part)).double()[None] for part in zip(*parts, strict=True)]
    means, conics, radii, colors = drawn
    width, height = round(header.width * scale), round(header.height * scale)
    lists = tiles(means, radii, torch.zeros(means.shape[:2]).double(), width, height, backend="reference")
    image, _ = blend2d(
        means, conics, colors, torch.ones(means.shape[:2]).double(), lists, width, height, mode=header.mode,
        top_k=header.top_k, background=torch.from_numpy(header.background_color)[None], backend="reference",
    )  # fmt: skip
    return image[0].clamp(0, 1).numpy() * (2**header.bits - 1)


@pytest.mark.parametrize("name", CASES)
def test_a_decoded_picture_is_that_of_the_reference(name):
    header, layers = CASES[name]
    got = decode(dump(header, layers))
    assert got.dtype == (np.uint8 if header.bits == 8 else np.uint16)
    assert got.shape == (header.height, header.width, header.channels)
    off = np.abs(got - reference(header, layers))
    # where a weight lies next to 1/255, or two are equal but for rounding, one more Gaussian may be taken
    assert (off > 0.51 + 3e-5 * 2**header.bits).mean() < 0.003
    assert np.median(off) <= 0.5


def test_symbols_mean_what_the_specification_says():
    q = dict(scale_step=2048, shear_step=512, position_index=0, step=0.5, cell_shift=3)
    header = header_of(**q)
    one = Symbols([1], [[2, 1, 6]], [[3, 2]], [[1, 0]], [[4, 0, 0]])
    drawn = gaussians(header, one)
    l1, l3, shear = 2.0**2, 2.0**1, 1.5
    L = np.array([[l1, 0], [shear * l3, l3]])
    conic = np.linalg.inv(L @ L.T)
    # quarters of octaves: 0 + 4*3 + 4*1 - 8 + 3 (of sqrt(1 + 1.5^2), rounded down), and 0 + 4*3 + 4*1 - 4
    nx, ny = 7, 8  # round(2^(11/4)), 2^(12/4)
    assert drawn.means[0] == pytest.approx([(2 + 1.5 / nx) * 8, (1 + 0.5 / ny) * 8])
    assert drawn.conics[0] == pytest.approx([conic[0, 0], conic[0, 1], conic[1, 1]])
    assert drawn.radii[0] == pytest.approx(np.sqrt(2 * np.log(255) * np.diag(L @ L.T)))
    assert drawn.colors[0] == pytest.approx([4 * 0.5 / np.sqrt(8)] * 3)
    chroma = gaussians(header, Symbols([1], [[2, 1, 6]], [[3, 2]], [[1, 0]], [[0, 4, 2]])).colors[0]
    cb, cr = np.array([4, 2]) * 0.75 / np.sqrt(8)
    assert chroma == pytest.approx([1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb])


def test_layers_add_up():
    header, layers = CASES["layers"]
    data = dump(header, layers)
    for count in (1, 2, 3):
        assert np.abs(decode(data, layers=count) - reference(header, layers[:count])).max() < 1.6
        cut = data[: sum(section.size for section in load(data).sections[: 2 + count])]
        assert np.array_equal(decode(cut), decode(data, layers=count))
    assert np.array_equal(decode(cut), decode(data))
    assert (decode(data[:60]) == np.rint(header.background_color * 255)).all()
    with pytest.raises(ValueError, match="layers: expected 1 to 3, got 4"):
        decode(data, layers=4)


@pytest.mark.parametrize("mode", ["sum", "normalized"])
def test_a_crop_is_a_part_of_the_whole(mode):
    header = header_of(120, 90, mode=mode)
    file = load(dump(header, [layer_of(header, 150)]))
    whole = decode(file)
    for x, y, w, h in ((0, 0, 120, 90), (37, 11, 50, 60), (119, 89, 1, 1), (0, 40, 120, 1)):
        part = decode(file, crop=(x, y, w, h))
        assert np.abs(part.astype(int) - whole[y : y + h, x : x + w]).max() <= 1
    for crop in ((-1, 0, 5, 5), (0, 0, 121, 5), (0, 0, 0, 5), (100, 80, 20, 11)):
        with pytest.raises(ValueError, match="crop: expected"):
            decode(file, crop=crop)


@pytest.mark.parametrize("scale", [0.5, 2, 3.25])
def test_a_scaled_picture_is_drawn_anew(scale):
    header = header_of(64, 40)
    layers = [layer_of(header, 60, log2=(1, 3))]
    got = decode(dump(header, layers), scale=scale)
    assert got.shape == (round(40 * scale), round(64 * scale), 3)
    assert (np.abs(got - reference(header, layers, scale)) > 0.52).mean() < 0.01
    part = decode(dump(header, layers), scale=scale, crop=(7, 3, 20, 9))
    assert np.abs(part.astype(int) - got[3:12, 7:27]).max() <= 1
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale: expected"):
            decode(dump(header, layers), scale=wrong)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 4, 1 / 8])
def test_a_smaller_picture_is_the_mean_over_its_pixels(scale):
    header = header_of(128, 64, bits=16, step=0.01)
    layers = [layer_of(header, 500, log2=(-1, 2), precision=(0, 0), shear=0.5)]
    k, whole = round(1 / scale), decode(dump(header, layers)).astype(float)
    wanted = whole.reshape(64 // k, k, 128 // k, k, 3).mean((1, 3))
    away = decode(dump(header, layers), scale=scale) - wanted
    points = whole[k // 2 :: k, k // 2 :: k] - wanted
    assert np.square(away).mean() < 0.05 * np.square(points).mean()
    assert abs(away.mean()) < 0.02 * np.abs(points).mean()


def test_large_pictures_are_drawn_in_parts(monkeypatch):
    header = header_of(150, 70)
    file = load(dump(header, [layer_of(header, 200)]))
    whole = decode(file)
    for name, value in (("MAX_WINDOW", 2000), ("MAX_SIDE", 40), ("MAX_PAIRS", 300), ("ROWS", 17)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert np.abs(decode(file).astype(int) - whole).max() <= 1, name


def test_what_is_too_much_is_refused():
    data = dump(*CASES["rgb"])
    with pytest.raises(LimitError, match="expected at most 4000 bytes, got 4608"):
        decode(data, limits=Limits(image_bytes=4000))
    with pytest.raises(LimitError, match="work: expected at most 50 px"):
        decode(data, limits=Limits(work=50))
    with pytest.raises(LimitError, match="image: expected at most"):
        decode(data, scale=1000)
    assert decode(data, scale=1000, crop=(20000, 10000, 30, 20)).shape == (20, 30, 3)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.gsi")))
def test_conformance(name):
    """Files of old are read as they were: their symbols to the bit, their pictures within 1 of 255."""
    file = load((GOLDEN / f"{name}.gsi").read_bytes())
    symbols = hashlib.sha256()
    for made in file.layers:
        for values in (made.precision, made.shape, made.cell, made.place, made.color):
            symbols.update(values.astype("<i4").tobytes())
    assert symbols.hexdigest() == json.loads((GOLDEN / "symbols.json").read_text())[name]
    want = np.load(GOLDEN / "images.npz")[name]
    off = np.abs(decode(file).astype(int) - want)
    assert off.max() <= (1 if file.header.bits == 8 else 64)
    assert (off > 1).mean() < 0.01


def test_there_are_twenty_files_of_old_at_least():
    assert len(list(GOLDEN.glob("*.gsi"))) >= 20


def test_decoding_needs_no_torch(tmp_path):
    (tmp_path / "a.gsi").write_bytes(dump(*CASES["rgb"]))
    code = (
        "import sys; from splatexp.image.codec.decode import decode; p = decode(open('a.gsi', 'rb').read()); "
    )
    python("-c", code + "assert p.shape == (32, 48, 3) and 'torch' not in sys.modules", cwd=tmp_path)
