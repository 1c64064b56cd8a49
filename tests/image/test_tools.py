"""Tools of the image codec that need no codec: fidelity, differences of curves, which file becomes which."""

import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from splatexp.image.bench import bdrate, chart, codecs, fidelity
from splatexp.image.files import IMAGE_SUFFIXES, FilePair, file_pairs, one_line, run_each
from splatexp.io import image_file
from splatexp.io.atomic import write_text

RNG = np.random.default_rng(1)
# rates and PSNR of two encoders, as in the README of the package bjontegaard 1.3.0, whose results with
# method="pchip" follow
ANCHOR = [(9487.76, 40.037), (4593.60, 38.615), (2486.44, 36.845), (1358.24, 34.851)]
TEST = [(9787.80, 40.121), (4469.00, 38.651), (2451.52, 36.970), (1356.24, 34.987)]
UNEVEN = [(0.1, 25), (0.2, 28), (0.4, 30.5), (0.8, 33.2), (1.6, 37)]
OTHER = [(0.12, 27.0), (0.22, 29.4), (0.35, 31), (0.7, 34), (1.1, 36.2)]


def photo(height: int = 180, width: int = 180, channels: int = 3) -> np.ndarray:
    """Something smooth with some noise, uint8 [H,W,channels]."""
    y, x = np.mgrid[:height, :width][..., None] / 20
    smooth = np.sin(x + np.arange(channels)) * np.cos(y * 1.3) * 90 + 128
    return np.clip(smooth + RNG.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "anchor, test, rate, quality",
    [(ANCHOR, TEST, -4.417485350589, 0.119692785425), (UNEVEN, OTHER, -24.718706678978, 1.161283666345)],
)
def test_bjontegaard_differences_are_those_of_the_library(anchor, test, rate, quality):
    assert bdrate.bd_rate(anchor, test) == pytest.approx(rate, rel=1e-9)
    assert bdrate.bd_psnr(anchor, test) == pytest.approx(quality, rel=1e-9)
    assert bdrate.bd_rate(anchor[::-1], test[::-1]) == pytest.approx(rate, rel=1e-9)


def test_differences_of_curves_that_are_known():
    less = [(rate * 0.8, value) for rate, value in UNEVEN]
    better = [(rate, value + 1.5) for rate, value in UNEVEN]
    assert bdrate.bd_rate(UNEVEN, less) == pytest.approx(-20)
    assert bdrate.bd_rate(UNEVEN, less, 0.2, 0.8) == pytest.approx(-20)
    assert bdrate.bd_rate(less, UNEVEN) == pytest.approx(25)
    assert bdrate.bd_psnr(UNEVEN, better) == pytest.approx(1.5)
    assert bdrate.bd_psnr(UNEVEN, better, 0.15, 0.9) == pytest.approx(1.5)
    assert bdrate.bd_rate(UNEVEN, UNEVEN) == pytest.approx(0)
    assert bdrate.bd_rate(UNEVEN, UNEVEN, 2, 3) is None  # no curve reaches it
    assert bdrate.bd_rate([(1, 20), (2, 22)], [(1, 30), (2, 32)]) is None  # no quality that both have
    assert bdrate.bd_rate(UNEVEN[:1], UNEVEN) is None and bdrate.bd_psnr([], UNEVEN) is None
    wasteful = [*UNEVEN, (0.5, 30.1), (0.4, 30.0)]  # points that are worse and larger have no say
    assert bdrate.bd_rate(UNEVEN, wasteful) == pytest.approx(0)


def test_quality_at_a_rate_is_linear_in_the_logarithm_and_ends_with_the_curve():
    assert bdrate.at_rate(UNEVEN, 0.2) == pytest.approx(28)
    assert bdrate.at_rate(UNEVEN, math.sqrt(0.1 * 0.2)) == pytest.approx(26.5)
    assert bdrate.at_rate(UNEVEN, 0.0999) is None and bdrate.at_rate(UNEVEN, 1.601) is None
    assert bdrate.at_rate([], 1) is None


def test_psnr_is_over_all_channels():
    truth = photo(8, 8, 4)
    image = truth.copy()
    image[..., 3] ^= 1
    assert fidelity.psnr(image, truth) == pytest.approx(20 * math.log10(255 * 2))
    assert fidelity.psnr(truth, truth) == 100
    for wrong in (truth[:7], truth.astype(np.uint16)):
        with pytest.raises(ValueError, match="expected images of the same size and bits"):
            fidelity.psnr(wrong, truth)


def test_ms_ssim_is_that_of_torchmetrics():
    from splatexp.evaluation.metrics import patch_torchvision_import

    patch_torchvision_import()
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs

    truth = photo(190, 200)
    image = np.clip(truth + RNG.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    sides = [torch.from_numpy(side).double().movedim(-1, 0)[None] / 255 for side in (image, truth)]
    assert fidelity.ms_ssim(image, truth) == pytest.approx(float(theirs(*sides, data_range=1.0)), abs=2e-3)
    assert fidelity.ms_ssim(truth, truth) == pytest.approx(1)
    assert fidelity.ms_ssim(truth[:100], truth[:100]) is None


@pytest.mark.parametrize("name", codecs.CODECS)
def test_curves_of_other_codecs_rise(name):
    coder, picture = codecs.CODECS[name], image_file.ImageData(photo() / np.float32(255))
    assert coder.version()
    found = []
    for quality in coder.qualities[:: len(coder.qualities) - 1]:
        data = coder.encode(picture, quality)
        found.append((len(data), fidelity.psnr(codecs.decode(data, 3), picture.integers())))
    assert found[0][0] < found[1][0] and found[0][1] + 2 < found[1][1]
    grey = image_file.ImageData(photo(40, 40, 1) / np.float32(255))
    assert codecs.decode(coder.encode(grey, 80), 1).shape == (40, 40, 1)
    with pytest.raises(ValueError, match="expected an image of 8 bits"):
        coder.encode(image_file.ImageData(grey.pixels, 16), 80)
    with pytest.raises(ValueError, match="cannot hold grey and alpha"):
        coder.encode(image_file.ImageData(grey.pixels.repeat(2, -1)), 80)


def test_jpeg_has_half_the_colours_each_way_and_a_whole_file():
    data = codecs.CODECS["jpeg"].encode(image_file.ImageData(photo() / np.float32(255)), 50)
    marker = data.index(b"\xff\xc2")  # progressive; after it size, bits, height, width, components
    assert data[marker + 11] == 0x22 and data.endswith(b"\xff\xd9")


def test_which_file_becomes_which(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("in/a.png", "in/b.JPG", "in/notes.txt", "c.png"):
        (tmp_path / name).touch()

    def told(*names: str) -> list[str]:
        return [
            f"{p.source.as_posix()}>{p.target.as_posix()}" for p in file_pairs(names, IMAGE_SUFFIXES, ".gsi")
        ]

    assert told("c.png") == ["c.png>c.gsi"]
    assert told("c.png", "d.gsi") == ["c.png>d.gsi"]
    assert told("c.png", "in") == ["c.png>in/c.gsi"]
    assert told("c.png", "new/") == ["c.png>new/c.gsi"]
    assert told("in", "out") == ["in/a.png>out/a.gsi", "in/b.JPG>out/b.gsi"]
    assert told("in") == ["in/a.png>in/a.gsi", "in/b.JPG>in/b.gsi"]
    assert told("in/a.png", "c.png", "out") == ["in/a.png>out/a.gsi", "c.png>out/c.gsi"]
    (tmp_path / "in/a.jpg").touch()
    for names, why in (
        ((), "expected a file or a folder"),
        (("none.png",), "no such file"),
        (("in", "out"), "expected one source"),
        (("c.png", "c.png"), "expected a target that differs"),
        (("in", "c.png"), "expected a folder .* got a file$"),
        (("in", "both.gsi"), "both.gsi: expected a folder .* got the name of a file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=why):
            told(*names)
    os.makedirs("taken/c.gsi")
    with pytest.raises(IsADirectoryError):
        told("c.png", "taken")
    assert told("c.png", "c.png", "out") == ["c.png>out/c.gsi"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path.name != "in")
        with pytest.raises(PermissionError, match="in'$"):
            told("c.png", "in/new/c.gsi")
    for target in ("in/a.png/c.gsi", "in/a.png/more/c.gsi"):
        with pytest.raises(NotADirectoryError, match="a.png'$"):
            told("c.png", target)
    assert told("c.png", "both.gsi/") == ["c.png>both.gsi/c.gsi"]
    os.mkdir("empty")
    with pytest.raises(FileNotFoundError, match="found none"):
        told("empty", "out")


def test_where_one_fails_the_rest_goes_on(tmp_path):
    found = [FilePair(tmp_path / name, tmp_path / "x") for name in "abc"]
    said = []

    def act(pair: FilePair) -> str:
        if pair.source.name == "b":
            raise ValueError("two\nlines")
        return pair.source.name

    assert run_each(found, act, 2, lambda *line: said.append(line), "trying") == 1
    assert sorted(said) == sorted([("a", False), ("c", False), (f"{tmp_path / 'b'}: two lines", True)])
    with pytest.raises(TypeError):  # an error of the program, not of a file
        run_each(found, lambda pair: 1 + "", 2, lambda *line: None, "")  # type: ignore[operator]


def test_an_error_of_the_system_is_said_without_its_number(tmp_path):
    with pytest.raises(OSError, match="could not write") as error:
        write_text(tmp_path, "a folder is there")
    assert one_line(error.value).startswith(f"could not write {tmp_path}: ")
    (tmp_path / "file").touch()
    for name in ("file/a.gsi", "file/more/a.gsi"):
        with pytest.raises(NotADirectoryError) as error:
            write_text(tmp_path / name, "a file is where a folder should be")
        assert one_line(error.value) == f"could not write {tmp_path / name}: Not a directory"


def test_a_plot_is_a_picture_with_all_curves(tmp_path):
    curves = {"gsi": (".gsi", OTHER), "jpeg": ("JPEG", UNEVEN), "webp": ("WebP", [])}
    (tmp_path / "a.png").write_bytes(
        chart.draw_chart([chart.Panel("PSNR", curves), chart.Panel("none")], "what")
    )
    with Image.open(tmp_path / "a.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
        assert image.width == 2 * chart.WIDTH
    near = [
        min(sum(abs(a - b) for a, b in zip(c, chart.COLOURS[k], strict=True)) for c in shown) for k in curves
    ]
    assert near[0] <= 6 and near[1] <= 6 < near[2]
    with pytest.raises(ValueError, match="expected some points"):
        chart.draw_chart([chart.Panel("none")])
