"""The bench of the image codec: rows, their cache, what the report makes of them."""

import csv
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from support import simulated_codec

from splatexp.image.bench import bench, codecs, fidelity, isolated_decode, report
from splatexp.image.bench.bdrate import at_rate
from splatexp.image.bench.settings import BenchSettings
from splatexp.io import image_file


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Two pictures to be compared by two codecs, in few points."""
    simulated_codec.install(monkeypatch)
    monkeypatch.setitem(codecs.CODECS, "jpeg", replace(codecs.CODECS["jpeg"], qualities=(3, 30, 80)))
    monkeypatch.setattr(bench, "COLD_STARTS", 1)
    rng = np.random.default_rng(0)
    for name in "ab":
        y, x = np.mgrid[:180, :190]
        smooth = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1) / 2.5 + 0.5
        image_file.write_image(
            tmp_path / "photos" / f"{name}.png", smooth + rng.normal(0, 0.02, smooth.shape)
        )
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    folder, out = str(tmp_path / "photos"), str(tmp_path / "out")
    return lambda **more: BenchSettings(
        **{"folder": folder, "out": out, "codecs": "gsi,jpeg", "bpp": "0.3,1"} | more
    )


@pytest.fixture
def said():
    """What was said."""
    return []


def test_a_bench_from_files_to_page(settings, said, tmp_path):
    files, failed = bench.run_bench(settings(), lambda *line: said.append(line))
    assert failed == 0 and not [line for line, bad in said if bad]
    assert sorted(path.name for path in files) == ["curves.png", "report.md", "results.csv", "results.json"]
    assert all(path.is_file() for path in files)
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 + len(settings().points("jpeg")))
    for row in rows:
        path = tmp_path / "out" / row["file"]
        assert int(row["bytes"]) == path.stat().st_size
        assert float(row["bpp"]) == pytest.approx(8 * path.stat().st_size / (180 * 190))
        assert float(row["encode_seconds"]) > 0 and float(row["decode_seconds"]) > 0
    truth = image_file.read_image(tmp_path / "photos" / "a.png").integers()
    row = next(row for row in rows if row["codec"] == "jpeg" and row["image"] == "a")
    image = image_file.read_image(tmp_path / "out" / row["file"]).integers()
    assert float(row["psnr"]) == pytest.approx(fidelity.psnr(image, truth))
    assert float(row["ms_ssim"]) == pytest.approx(fidelity.ms_ssim(image, truth))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["images"] == ["a", "b"] and not found["failed"]
    assert {s["codec"]: s.get("cold_seconds", 0) > 0 for s in found["settings"]} == {
        "gsi": True,
        "jpeg": False,
    }
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| .gsi | `bpp=0.3` | 2 |" in page and "| JPEG 4:2:0 | `quality=3` | 2 |" in page
    assert "BD-rate" in page and "versions of the code" not in page


def test_what_is_there_is_not_made_again(settings, said, monkeypatch, tmp_path):
    few = settings(codecs="gsi", bpp="1")
    say = lambda *line: said.append(line)  # noqa: E731
    bench.run_bench(few, say)
    made = []
    monkeypatch.setattr(bench, "_encoded_gsi", lambda settings, rows: made.extend(rows) or [])
    bench.run_bench(few, say)
    assert not made
    monkeypatch.setattr(bench, "_version", lambda codec: "another state of the code")
    bench.run_bench(few, say)
    assert [row["image"] for row in made] == ["a", "b"]
    made.clear()
    bench.run_bench(settings(codecs="gsi", bpp="1", reuse_results=True), say)
    assert not made
    image_file.write_image(tmp_path / "photos" / "a.png", np.zeros((180, 190, 3)))
    bench.run_bench(settings(codecs="gsi", bpp="1", reuse_results=True), say)
    assert [row["image"] for row in made] == ["a"]


def test_a_bench_that_was_interrupted_keeps_what_was_encoded(settings, monkeypatch, tmp_path):
    few = settings(codecs="gsi", bpp="1")

    def interrupted(pairs):
        raise KeyboardInterrupt

    monkeypatch.setattr(isolated_decode, "measure_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run_bench(few, lambda *line: None)
    rows = [json.loads(path.read_text()) for path in (tmp_path / "out" / "rows").iterdir()]
    assert len(rows) == 2 and all("psnr" not in row and row["encode_seconds"] > 0 for row in rows)
    monkeypatch.undo()
    made = []
    monkeypatch.setattr(bench, "_encoded_gsi", lambda settings, rows: made.extend(rows) or [])
    files, failed = bench.run_bench(few, lambda *line: None)
    assert not made and not failed


def test_what_a_codec_cannot_hold_is_left_out_and_said(settings, said, tmp_path):
    image_file.write_image(tmp_path / "photos" / "deep.png", np.zeros((20, 20, 3)), 16)
    few = settings(codecs="jpeg", bpp="", only="a,deep")
    _, failed = bench.run_bench(few, lambda *line: said.append(line))
    assert failed == len(few.points("jpeg"))
    assert all("expected an image of 8 bits, got 16" in line for line, bad in said if bad)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Left out" in page and page.count("deep.png") == failed


def test_orders_that_are_refused(settings, tmp_path):
    for more, why in (
        ({"codecs": "gsi,heic"}, "codecs: expected some of gsi, jpeg"),
        ({"bpp": "1", "quality": "30"}, "points of one kind"),
        ({"jobs": 0}, "jobs"),
        ({"codecs": "jpeg", "bpp": "", "extra": ("foo=3",)}, "foo: expected gsi among the codecs"),
        ({"codecs": "jpeg"}, "bpp: expected gsi among the codecs"),
    ):
        with pytest.raises(ValueError, match=why):
            settings(**more)
    with pytest.raises(ValueError, match="bpp: expected positive numbers"):
        settings(bpp="0.1,x").points("gsi")
    with pytest.raises(ValueError, match="only: expected images of"):
        settings(only="c").image_paths()
    with pytest.raises(FileNotFoundError):
        settings(folder=str(tmp_path / "none")).image_paths()
    assert settings(bpp="", quality="30,33").points("gsi") == ["quality=30", "quality=33"]
    assert settings(bpp="").points("gsi")[0] == "bpp=0.1"
    assert settings(quick=True).points("avif") == settings().points("avif")[::3]


def test_words_for_encode_are_checked_before_anything_is_made(settings, said, tmp_path):
    for more, why in (
        ({"extra": ("stepz=3",)}, "stepz: no such key"),
        ({"bpp": "0.3,x", "codecs": "jpeg,gsi"}, "bpp: expected positive numbers"),
    ):
        with pytest.raises(ValueError, match=why):
            bench.run_bench(settings(**more), lambda *line: said.append(line))
    assert not said and not (tmp_path / "out").exists()


def test_a_decoding_process_that_is_killed_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "killed"))
    (tmp_path / "killed").write_text("#!/bin/sh\nkill -KILL $$\n")
    (tmp_path / "killed").chmod(0o755)
    with pytest.raises(OSError, match="the decoding process was killed by SIGKILL$"):
        list(isolated_decode.measure_all([(tmp_path / "a.gsi", tmp_path / "a.png")]))


def test_the_decoding_process_answers_for_each_file(tmp_path):
    image_file.write_image(tmp_path / "a.png", np.full((8, 8, 3), 0.5))
    (tmp_path / "broken.gsi").write_bytes(b"nothing")
    answers = list(
        isolated_decode.measure_all(
            [(tmp_path / "a.png", tmp_path / "a.png"), (tmp_path / "broken.gsi", tmp_path / "a.png")]
        )
    )
    assert answers[0]["psnr"] == 100 and answers[0]["ms_ssim"] is None
    assert "expected a .gsi file" in answers[1]["error"]
    assert list(isolated_decode.measure_all([])) == []


def rows(codec: str, image: str, points) -> list[dict]:
    """Rows of one picture."""
    more = {
        "width": 10,
        "height": 10,
        "bytes": 1,
        "ms_ssim": 0.9,
        "encode_seconds": 1.0,
        "decode_seconds": 1.0,
    }
    more |= {"version": "1", "path": image, "file": image, "codec": codec, "image": image}
    return [
        more | {"setting": f"quality={i}", "bpp": rate, "psnr": db} for i, (rate, db) in enumerate(points)
    ]


def test_a_page_of_one_point_beside_a_curve(settings):
    table = rows("gsi", "a", [(0.3, 28)]) + rows("jpeg", "a", [(0.1, 24), (0.2, 27), (0.4, 30)])
    page = report._page(settings(), report.summary(table, {}))
    assert "| .gsi | no overlap |  |  |  |  |" in page


def test_numbers_of_the_report():
    base = [(0.1, 24), (0.2, 27), (0.4, 30), (0.8, 33), (1.6, 36)]
    late = [(0.3, 26), (0.6, 29), (1.2, 32), (2.4, 35)]
    table = rows("jpeg", "a", base) + rows("jpeg", "b", late)
    for image, curve in (("a", base), ("b", late)):
        table += rows("webp", image, [(rate / 2, db) for rate, db in curve])
    table.append(rows("webp", "c", [(1, 1)])[0] | {"error": "why"})
    found = report.summary(table, {})
    assert found["failed"] == [["c", "webp", "quality=0", "why"]] and found["images"] == ["a", "b"]
    by_rate = {entry["bpp"]: entry for entry in found["at_rates"]["jpeg"]}
    assert by_rate[1.0]["whole"] and by_rate[1.0]["images"] == 2
    assert by_rate[1.0]["psnr"] == pytest.approx((at_rate(base, 1.0) + at_rate(late, 1.0)) / 2)
    assert not by_rate[0.2]["whole"] and by_rate[0.2]["images"] == 1  # the curve of means reaches it
    means = [((x[0] + y[0]) / 2, (x[1] + y[1]) / 2) for x, y in zip(base, late, strict=False)] + [(1.6, 36)]
    assert by_rate[0.2]["psnr"] == pytest.approx(at_rate(means, 0.2))
    assert by_rate[0.1] | {"bpp": 0} == {"bpp": 0, "psnr": None, "whole": False, "images": 1}
    rate = found["bjontegaard"]["webp"]["bd_rate"]
    assert rate["images"] == rate["better"] == 2 and rate["mean"] == pytest.approx(-50, abs=0.01)
    assert found["bjontegaard"]["webp"]["bd_psnr"]["mean"] == pytest.approx(3, abs=0.05)
