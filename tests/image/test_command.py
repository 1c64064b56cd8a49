"""`python -m splatexp.image`: encode, decode, info, view; folders, failures, exit codes."""

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from support import simulated_codec
from support.command import python

from splatexp.image import __main__, viewer
from splatexp.image.codec import describe, gsi, symbols
from splatexp.image.codec.fuzz import header_of, layer_of
from splatexp.io import image_file


@pytest.fixture
def image(tmp_path, monkeypatch, capsys):
    """The command line in an empty folder; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    simulated_codec.install(monkeypatch)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["splatexp.image", *words])
        status = __main__.main()
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder with two pictures, one of 16 bits, one broken, and a text."""
    folder = tmp_path / "photos"
    y, x = np.mgrid[:24, :40] / 8
    smooth = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) / 2.5 + 0.5
    image_file.write_image(folder / "a.png", smooth)
    image_file.write_image(folder / "b.png", smooth[..., :1], 16)
    (folder / "c.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture at all")
    return folder


def test_there_and_back(image, photos, tmp_path):
    status, out, err = image("encode", "photos/a.png", "a.gsi", "bytes=300", "layers=2")
    assert status == 0 and not err
    assert "photos/a.png -> a.gsi" in out and f"{(tmp_path / 'a.gsi').stat().st_size:,} bytes" in out
    assert image("decode", "a.gsi", "a.png")[0] == 0
    found, truth = image_file.read_image("a.png"), image_file.read_image("photos/a.png")
    assert found.bits == 8 and np.abs(found.pixels - truth.pixels).mean() < 0.05
    assert image("decode", "a.gsi", "b.png", "scale=2", "crop=10,6,50,30", "layers=1")[0] == 0
    assert image_file.read_image("b.png").pixels.shape == (30, 50, 3)
    before = (tmp_path / "a.png").read_bytes()
    status, out, err = image("decode", "a.gsi", "layers=1")  # beside it, where the original may lie
    assert (status, out) == (2, "") and (tmp_path / "a.png").read_bytes() == before
    assert err == "error: a.png exists already; name a different target, or say overwrite=true\n"
    assert image("decode", "a.gsi", "layers=1", "overwrite=true")[0] == 0
    assert (tmp_path / "a.png").read_bytes() != before
    assert image("decode", "a.gsi", "suffix=.webp")[0] == 0 and (tmp_path / "a.webp").exists()


def test_nothing_beside_a_source_is_replaced_unasked(image, photos):
    for name in "ab":
        assert image("encode", f"photos/{name}.png")[0] == 0
    before = {path: path.read_bytes() for path in photos.iterdir()}
    status, _, err = image("decode", "photos")
    assert status == 2 and "photos/a.png exists already (and 1 more)" in err
    assert image("encode", "photos/a.png", "bytes=200")[0] == 2
    (photos / "c.png").unlink()
    assert image("encode", "photos", "skip_existing=true") == (0, "", "")
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "c.png")
    assert image("encode", "photos/a.png", "bytes=200", "overwrite=true")[0] == 0
    assert image("encode", "photos/a.png", "photos/a.gsi")[0] == 0  # named


def test_a_folder_with_a_picture_that_is_none(image, photos, tmp_path):
    status, out, err = image("encode", "photos", "new", "bytes=400", "jobs=2")
    assert status == 1
    assert err.splitlines() == ["error: photos/c.png: cannot read the image: its format is not known"]
    assert sorted(line.split(":")[0] for line in out.splitlines()) == [
        "photos/a.png -> new/a.gsi",
        "photos/b.png -> new/b.gsi",
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.gsi", "b.gsi"]
    before = (tmp_path / "new/a.gsi").stat().st_mtime_ns
    assert image("encode", "photos/a.png", "photos/b.png", "new/", "skip_existing=true")[:2] == (0, "")
    assert (tmp_path / "new/a.gsi").stat().st_mtime_ns == before
    assert image("decode", "new", "back", "suffix=.png")[0] == 0
    assert image_file.read_image("back/b.png").bits == 16
    status, out, err = image("decode", "new", "back", "suffix=.jpg")
    assert status == 1 and "expected .png for 16 bits, got .jpg" in err and "back/a.jpg" in out


def test_what_is_refused_is_one_line(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi")
    (tmp_path / "notes").write_text("no picture")
    for words, status, why in (
        (["encoed"], 2, "expected one of encode, decode"),
        (["encode"], 2, "expected a file or a folder"),
        (["encode", "none.png"], 2, "none.png: no such file"),
        (["encode", "photos/a.png", "a.png"], 2, "ends in .gsi"),
        (["encode", "photos/a.png", "bp=3"], 1, "photos/a.png: bp: no such key"),
        (["decode", "a.gsi", "layer=1"], 2, "did you mean layers"),
        (["decode", "a.gsi", "a.png", "crop=1,2,3"], 2, "crop: expected 4 whole numbers"),
        (["decode", "a.gsi", "a.png", "crop=0,0,99,9"], 1, "crop"),
        (["decode", "a.gsi", "a.png", "scale=big"], 2, "scale: expected a number, got 'big'"),
        (["decode", "a.gsi", "a.png", "layers=2"], 1, "layers"),
        (["decode", "photos/a.png", "x.png"], 1, "expected a .gsi file"),
        (["decode", "a.gsi", "a.doc"], 1, "a.doc: expected an image format"),
        (["decode", "a.gsi", "d.png", "suffix=.webp"], 2, "suffix: expected none where the target is named"),
        (["decode", "a.gsi", "d.png", "scale=1e4"], 1, "take a crop or a smaller scale"),
        (["encode", "photos/a.png", "photos/b.png", "both.gsi"], 2, "both.gsi: expected a folder"),
        (["info", "none.gsi"], 1, "none.gsi: no such file"),
        (["info", "notes"], 1, "notes: expected a .gsi file"),
        (["view", "notes"], 2, "notes: expected a .gsi file"),
        (["view", "a.gsi", "port=-1"], 2, "port: expected a number in [0, 65535], got -1"),
        (["bench", "photos", "codecs=jpeg", "foo=3"], 2, "foo: expected gsi among the codecs"),
        (["bench", "photos", "codecs=jpeg", "bpp=1"], 2, "bpp: expected gsi among the codecs"),
        (["bench", "photos", "codecs=jpeg,jpeg"], 2, "codecs: expected each once"),
        (["bench", "photos", "out=notes", "codecs=jpeg"], 2, "notes: file exists"),
        (["bench", "photos", "foo=3"], 2, "foo: no such key"),
        (["encode", "photos", "new", "foo=3"], 2, "foo: no such key"),
        (["encode", "photos/a.png", "a=b.gsi"], 2, "for a file of this name say ./a=b.gsi"),
        (["decode", "a.gsi", "suffix=png"], 2, "suffix: expected one such as .png, got 'png'"),
        (["info", "a.gsi", "json=true", "json=false"], 2, "json: expected once"),
        (["encode", "photos/a.png", "notes/a.gsi"], 2, "notes: not a directory"),
        (["view", "a.gsi", "b.gsi"], 2, "expected one file"),
        (["bench", "photos", "codecs=heic"], 2, "codecs: expected some of gsi"),
    ):
        got, out, err = image(*words)
        assert got == status, words
        assert len(err.splitlines()) == 1 and err.startswith("error: "), err
        assert why in err and "raise" not in err and "Errno" not in err, err
    assert image("encode", "photos/a.png", "./a=b.gsi")[0] == 0 and (tmp_path / "a=b.gsi").exists()
    assert image("decode", "a=b.gsi", "./scale=2.png")[0] == 0 and (tmp_path / "scale=2.png").exists()
    assert image()[0] == 2 and image("--help")[0] == 0


def test_a_file_that_was_cut_off_is_decoded_as_far_as_it_goes(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi", "layers=2")
    (tmp_path / "cut.gsi").write_bytes((tmp_path / "a.gsi").read_bytes()[:-9])
    with pytest.warns(UserWarning, match="cut.gsi: truncated: 1 of 2 layers are there"):
        assert image("decode", "cut.gsi", "cut.png")[0] == 0
    done = python("-m", "splatexp.image", "decode", "cut.gsi", "cut.png", cwd=tmp_path)
    assert done.stderr == "warning: cut.gsi: truncated: 1 of 2 layers are there\n"
    assert done.stdout == "cut.gsi -> cut.png: 40 x 24\n"
    image("decode", "a.gsi", "one.png", "layers=1")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "cut.png").read_bytes()
    out = image("info", "cut.gsi")[1]
    assert "truncated: 1 of 2 layers are there" in out
    (tmp_path / "more.gsi").write_bytes((tmp_path / "a.gsi").read_bytes() + b"stray")
    status, out, err = image("info", "more.gsi", "none.gsi", "a.gsi")  # one fails, the rest goes on
    assert status == 1 and err == "error: none.gsi: no such file or directory\n"
    assert "  all layers are there, followed by 5 bytes that are no whole section\n" in out
    assert "truncated" not in out and "\na.gsi: " in out


def test_info_adds_up(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi", "layers=2")
    found = json.loads(image("info", "a.gsi", "json=true")[1])
    size = (tmp_path / "a.gsi").stat().st_size
    assert found["bytes"] == size == sum(section["bytes"] for section in found["sections"])
    assert found["bpp"] == pytest.approx(8 * size / (24 * 40))
    assert found["gaussians"] == sum(layer["gaussians"] for layer in found["layers"])
    assert found == json.loads(describe.to_json(describe.describe(tmp_path / "a.gsi"))) | {"file": "a.gsi"}
    payload = sum(s["bytes"] - gsi.FRAME - 4 for s in found["sections"] if s["name"] == "LAYR")
    told = sum(sum(layer["bits"].values()) for layer in found["layers"]) / 8
    assert told == pytest.approx(payload, rel=0.25)  # each stream alone, rounded to bytes
    out = image("info", "a.gsi")[1]
    assert f"{size:,} bytes" in out and "40 x 24, RGB, 8 bits" in out and "color2" in out


def test_decoding_needs_no_torch(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi")
    code = "import sys; sys.argv = ['x', 'decode', 'a.gsi', 'b.png']; "
    code += "from splatexp.image.__main__ import main; assert main() == 0; "
    code += "print([name for name in ('torch', 'scipy', 'rich', 'hydra') if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.splitlines()[-1] == "[]"


def test_a_name_that_is_no_text_is_written_and_said(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi")
    done = python("-m", "splatexp.image", "decode", "a.gsi", "\udcff.png", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("a.gsi -> \\udcff.png: 40 x 24\n", "")
    assert (tmp_path / "\udcff.png").exists()


def test_the_page_shows_what_the_decoder_draws(image, photos, tmp_path):
    image("encode", "photos/a.png", "a.gsi", "layers=2")
    with viewer.serve(tmp_path / "a.gsi", original=str(photos / "a.png")) as address:

        def get(path: str) -> bytes:
            with urllib.request.urlopen(address + path, timeout=20) as answer:
                return answer.read()

        about = json.loads(get("/about"))
        assert (about["width"], about["height"], len(about["layers"]), about["original"]) == (40, 24, 2, True)
        assert b"<canvas" in get("/")
        (tmp_path / "drawn.png").write_bytes(get("/render?x=8&y=4&width=50&height=40&scale=2.5&layers=1"))
        image("decode", "a.gsi", "b.png", "scale=2.5", "crop=8,4,50,40", "layers=1")
        assert np.array_equal(
            image_file.read_image("drawn.png").pixels, image_file.read_image("b.png").pixels
        )
        (tmp_path / "truth.png").write_bytes(get("/original"))
        assert np.array_equal(
            image_file.read_image("truth.png").pixels, image_file.read_image("photos/a.png").pixels
        )
        rows = np.frombuffer(get("/outlines"), "<f4").reshape(-1, 6)
        assert len(rows) == sum(about["layers"])
        for path, status in (
            ("/render?x=0", 400), ("/render?x=0&y=0&width=9&height=9&scale=1e9&layers=1", 400),
            ("/render?x=0&y=0&width=900&height=9&scale=1&layers=1", 400), ("/etc/passwd", 404),
        ):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError) as error:
                get(path)
            assert error.value.code == status
            error.value.close()
        with viewer.serve(tmp_path / "a.gsi") as other:  # the next port
            assert other != address
    assert not [thread for thread in threading.enumerate() if thread.daemon and "serve" in thread.name]
    with pytest.raises(ValueError, match="original: expected 40 x 24"):
        image_file.write_image(tmp_path / "small.png", np.zeros((2, 2, 3)))
        viewer.GsiPage(tmp_path / "a.gsi", tmp_path / "small.png")


def test_outlines_are_the_ellipses_of_the_covariances(tmp_path):
    header = header_of()
    layer = layer_of(header, 40, log2=(-1, 3), shear=3)
    (tmp_path / "a.gsi").write_bytes(gsi.dump(header, [layer]))
    rows = np.frombuffer(viewer.GsiPage(tmp_path / "a.gsi").outlines, "<f4").reshape(-1, 6).astype(float)
    drawn = symbols.gaussians(header, gsi.load((tmp_path / "a.gsi").read_bytes()).layers[0])
    cos, sin = np.cos(rows[:, 4]), np.sin(rows[:, 4])
    turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    sigma = turn * (rows[:, None, 2:4] ** 2) @ turn.swapaxes(1, 2)
    a, b, c = drawn.conics.astype(float).T
    wanted = np.linalg.inv(np.stack([np.stack([a, b], -1), np.stack([b, c], -1)], -2))
    assert np.allclose(sigma, wanted, rtol=2e-3, atol=1e-3)
    assert np.allclose(rows[:, :2], drawn.means) and (rows[:, 2] >= rows[:, 3]).all()
