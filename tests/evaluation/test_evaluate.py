"""Held-out numbers, the result file, the summary, and what survives a second evaluation."""

import errno
import json
import os
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.result_cases import Flat, scene, splats

from splatexp.commands import evaluate as module
from splatexp.data.colmap import Colmap
from splatexp.evaluation.evaluate import (
    EvaluationSettings,
    compute_result,
    evaluate,
    mean_metrics,
    measure_views,
    read_result,
)
from splatexp.evaluation.metrics import available_metrics, psnr, ssim
from splatexp.evaluation.summary import print_summary
from splatexp.io import atomic
from splatexp.io.ply import save_ply
from splatexp.train.rate import Rate

QUIET = EvaluationSettings(renders=False, turntable=False)


def test_result_holds_what_the_protocol_asks_for(tmp_path: Path) -> None:
    world, model = scene(), splats()
    save_ply(tmp_path / "point_cloud.ply", model)
    data = Colmap(path="somewhere", downscale=2)
    result = evaluate(
        model, Flat(), world, tmp_path, QUIET,
        train_seconds=1.5, wall_seconds=2.0, peak_memory_bytes=123, data=data, overrides=["steps=3"],
    )  # fmt: skip
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved == json.loads(json.dumps(result)) == read_result(tmp_path)
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        values = []
        for view in world.test:
            target, mask, _ = view.target()
            values.append(metric(torch.full_like(target, 0.5), target, mask))
        assert saved[name] == pytest.approx(sum(values) / 2)
        assert [row[name] for row in saved["per_view"]] == pytest.approx(values)
    assert [row["view"] for row in saved["per_view"]] == ["side/06.png", "side/07.png"]
    assert [row["target_sha256"] for row in saved["per_view"]] == [view.sha256 for view in world.test]
    assert saved["num_gaussians"] == 7 and saved["train_seconds"] == 1.5 and saved["wall_seconds"] > 2
    assert saved["peak_memory_bytes"] == 123 and saved["overrides"] == ["steps=3"]
    assert saved["bytes_on_disk"] == {"point_cloud.ply": (tmp_path / "point_cloud.ply").stat().st_size}
    assert saved["protocol"].startswith("splatexp-1.own.x2.") and saved["data"]["path"] == "somewhere"
    about = {"name": "ring", "train_views": 6, "test_views": 2, "data_sha256": world.fingerprint}
    assert saved["scene"] == about
    assert set(saved["skipped"]) == {"lpips_vgg", "lpips_alex", "lpips_vgg01"} and "lpips_vgg" not in saved
    assert len(saved["code_sha256"]) == 64 and saved["packages"]["torch"] and saved["hardware"]["cores"] >= 1
    assert "git" in saved and "ssim" in saved["definitions"]


def test_masks_reach_the_metrics() -> None:
    metrics = {"psnr": psnr}
    whole, masked = (measure_views(splats(), Flat(), scene(masked=on), metrics) for on in (False, True))
    assert [row["masked"] for row in whole + masked] == [False, False, True, True]
    assert whole[0]["psnr"] != masked[0]["psnr"]


def test_a_metric_without_a_value_is_left_out_and_says_why(tmp_path: Path) -> None:
    small = scene(width=10, height=8)  # smaller than the window of SSIM
    result = compute_result(splats(), Flat(), small, tmp_path, QUIET)
    assert result["ssim"] is None and result["psnr"] > 0
    assert result["skipped"]["ssim"] == "no value for side/06.png and 1 more views"
    nan = evaluate(splats(), Flat(float("nan")), scene(), tmp_path, EvaluationSettings(turntable=False))
    assert nan["psnr"] is None and "psnr" in nan["skipped"]
    assert read_result(tmp_path)["per_view"][0]["psnr"] is None  # still JSON that anybody reads
    skipped: dict[str, str] = {}
    assert mean_metrics([], {"psnr": psnr}, skipped) == {"psnr": None}
    assert skipped == {"psnr": "no held-out views"}


def test_pictures_and_film(tmp_path: Path) -> None:
    evaluate(splats(), Flat(), scene(), tmp_path, EvaluationSettings(turntable_frames=3))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    views = ["side_06.png", "side_07.png"]
    folders = [f"renders/plain/{name}" for name in views] + [f"renders/{name}" for name in views]
    assert names == ["metrics.json", *folders, "turntable.mp4"]


def test_full_disk_keeps_the_previous_result(tmp_path: Path, monkeypatch) -> None:
    evaluate(splats(), Flat(), scene(), tmp_path, QUIET)
    before = (tmp_path / "metrics.json").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="metrics.json: No space left on device .the previous file is kept"):
        evaluate(splats(), Flat(0.1), scene(), tmp_path, QUIET)
    assert (tmp_path / "metrics.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_settings_are_checked() -> None:
    for name in ("turntable_frames", "turntable_fps"):
        with pytest.raises(ValueError, match=f"evaluate.{name}: expected at least 1, got 0"):
            EvaluationSettings(**{name: 0})
    with pytest.raises(ValueError, match="evaluate.every"):
        EvaluationSettings(every=-1)


def test_summary_names_numbers_reasons_and_places(tmp_path: Path) -> None:
    result = evaluate(splats(), Flat(), scene(), tmp_path, QUIET, train_seconds=3.0, peak_memory_bytes=2**21)
    out = StringIO()
    print_summary(result, tmp_path, Console(file=out, width=300))
    text = out.getvalue()
    for words in ("ring: 2 held-out views", f"{result['psnr']:.2f} dB", "3.0 s", "2.0 MiB"):
        assert words in text
    assert "lpips_vgg, lpips_alex, lpips_vgg01" in text
    assert str(tmp_path) in text and "metrics.json" in text and "point_cloud" not in text


class _Run:
    """What is needed of a run."""

    def __init__(self, **settings):
        self.evaluate, self.raster, self.data = EvaluationSettings(**settings), Flat(), Colmap(path="p")
        self.rate = Rate()


def test_a_second_evaluation_keeps_the_times(tmp_path: Path, monkeypatch) -> None:
    known = {"train_seconds": 9.0, "wall_seconds": 9.5, "overrides": ["seed=1"]}
    evaluate(splats(), Flat(0.2), scene(), tmp_path, QUIET, **known)
    before = read_result(tmp_path)
    monkeypatch.setattr(
        import_module("splatexp.commands.open_run"), "open_run", lambda folder: (_Run(), scene(), splats())
    )
    words = ["evaluate", f"run={tmp_path}", "turntable=false", "renders=false", "lpips_weights=/nowhere"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("warnings.formatwarning", None)  # restores it: the command sets its own
    module.main()
    after = read_result(tmp_path)
    for name in module.KEPT:
        assert after.get(name) == before.get(name)  # peak_device_bytes: of a device alone
    assert after["psnr"] != before["psnr"]
    assert after["skipped"]["lpips_alex"].startswith("no weights: /nowhere/alexnet")
    assert after["trained_with"] == {name: before[name] for name in module.TRAINED_WITH}
    monkeypatch.setattr(
        import_module("splatexp.commands.open_run"),
        "open_run",
        lambda folder: (_Run(), scene(width=35), splats()),
    )
    with pytest.warns(UserWarning, match="the data differ from those of the training"):
        module.main()
    assert read_result(tmp_path)["trained_with"] == after["trained_with"]


def test_a_broken_result_file_is_named(tmp_path: Path) -> None:
    assert read_result(tmp_path) == {}
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="metrics.json: not a readable result file"):
        read_result(tmp_path)


def test_every_metric_is_measured_by_default() -> None:
    rows = measure_views(splats(), Flat(), scene(), available_metrics()[0])
    assert {"psnr", "psnr_u8", "ssim"} <= set(rows[0])
