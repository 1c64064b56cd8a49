"""Whole runs, as small as they can be, and the command line around them."""

import csv
import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch
from command import python

from splatexp.config import build, compose, conf_dir, load_run

PRESETS = sorted(path.stem for path in (conf_dir() / "preset").glob("*.yaml"))
TINY = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
TINY += ["data.cache=false", "evaluate.turntable=false", "threads=1", "tracker=[csv]"]
COMMAND = ("-m", "splatexp")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_for_twenty_steps(preset, tmp_path, capsys):
    words = [
        f"preset={preset}",
        *TINY,
        "steps=20",
        "log_every=5",
        "evaluate.renders=false",
        "densify.every=4",
    ]
    if preset == "memory_low":
        words.append("data.size=96")
    metrics = build(compose(words))(tmp_path)
    assert metrics["psnr"] > 5 and metrics["num_gaussians"] > 0
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "9", "14", "19"]
    assert float(rows[-1]["test_psnr"]) == pytest.approx(metrics["psnr"])
    assert all(torch.tensor(float(row["loss"])).isfinite() for row in rows)


def test_a_run_leaves_what_others_rely_on(tmp_path, capsys):
    run = build(compose([*TINY, "steps=6", "evaluate.every=2", "regularizer=[opacity,scale]", "log_every=6"]))
    metrics = run(tmp_path, ["steps=6"])
    stored = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("psnr", "ssim", "num_gaussians", "train_seconds", "wall_seconds", "per_view", "protocol"):
        assert stored[name] == metrics[name]
    assert 0 < stored["train_seconds"] < stored["wall_seconds"] and stored["peak_memory_bytes"] > 1e6
    assert stored["overrides"] == ["steps=6"] and len(stored["per_view"]) == 2
    assert (tmp_path / "point_cloud.ply").stat().st_size > 1000 and (tmp_path / "point_cloud.splat").is_file()
    assert len(list((tmp_path / "renders").glob("*.png"))) == 2
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {row["step"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"1", "3", "5"} and float(rows["1"]["test_psnr"]) > 0
    assert float(rows["5"]["opacity"]) > 0 and float(rows["5"]["scale"]) > 0


def test_runs_in_one_process_do_not_know_of_each_other(tmp_path, capsys):
    words = [*TINY, "steps=4", "evaluate.renders=false"]
    first = build(compose(words))(tmp_path / "first")
    build(compose([*words, "seed=7", "model.sh_degree=1", "threads=2"]))(tmp_path / "other")
    again = build(compose(words))(tmp_path / "again")
    assert first["per_view"] == again["per_view"]
    clouds = [(tmp_path / name / "point_cloud.ply").read_bytes() for name in ("first", "other", "again")]
    assert clouds[0] == clouds[2] != clouds[1]


def test_the_command_line_trains_sweeps_and_evaluates(tmp_path):
    words = [word for word in TINY if "tracker" not in word] + ["steps=3", "evaluate.renders=false"]
    done = python(*COMMAND, *words, cwd=tmp_path)
    assert "psnr" in done.stdout and "multirun" in done.stderr.splitlines()[0]
    (folder,) = (tmp_path / "multirun").glob("*/*")
    names = {path.name for path in folder.iterdir()}
    assert names >= {".hydra", "metrics.json", "metrics.csv", "point_cloud.ply", "tensorboard", "wandb"}
    assert load_run(folder).steps == 3
    assert json.loads((folder / "metrics.json").read_text())["overrides"] == words
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) == 0  # nothing beside it

    again = python("-m", "splatexp.evaluate", f"run={folder}", "renders=false", "turntable=false", cwd="/")
    assert "psnr" in again.stdout

    done = python(*COMMAND, "-m", *words, "seed=0,1", "tracker=[csv]", "hydra.sweep.dir=sweep", cwd=tmp_path)
    jobs = [load_run(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert [job.seed for job in jobs] == [0, 1] and all(list(job.tracker) == ["csv"] for job in jobs)
    clouds = [(tmp_path / "sweep" / job / "point_cloud.ply").read_bytes() for job in ("0", "1")]
    assert clouds[0] != clouds[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stpes=5"], "error: stpes: no such key; did you mean steps?"),
        (
            ["-m", "preset=quick,qiuck", "seed=0,1"],
            "error: preset=qiuck: no such option of preset; did you mean quick?",
        ),
        (["data.path=nowhere"], "error: data.path: expected the folder of a data set, got 'nowhere'"),
        (["data.path=broken"], "cameras.bin"),
        (["-m", "data.path=broken", "seed=0,1"], "cameras.bin"),
        (["model.init=ply", "model.init_path=no.ply", *TINY], "no.ply"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, words, said):
    broken = tmp_path / "broken"
    (broken / "sparse" / "0").mkdir(parents=True)
    (broken / "images").mkdir()
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (broken / "sparse" / "0" / name).write_bytes(b"\x02")
    done = python(*COMMAND, *words, cwd=tmp_path, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and said in lines[-1] and lines[-1].startswith("error: ")
    assert len(lines) == 1 or words[0] == "-m"  # a sweep also says which of its jobs it was
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path, monkeypatch, capsys):
    from splatexp import __main__, export

    def full(path, splats):
        raise OSError(errno.ENOSPC, f"could not write {path}: No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "save_ply", full)
    monkeypatch.setattr("sys.argv", ["splatexp", *TINY, "steps=2", "hydra.run.dir=out"])
    assert __main__.main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: could not write")
    assert (tmp_path / "out" / "metrics.csv").is_file() and not (tmp_path / "out" / "metrics.json").exists()


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    from splatexp import __main__, train

    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", broken)
    monkeypatch.setattr("sys.argv", ["splatexp", *TINY, "steps=2"])
    with pytest.raises(ValueError, match="a bug"):
        __main__.main()


def test_help_is_quick_and_lists_every_choice(tmp_path):
    began = time.perf_counter()
    text = python(*COMMAND, "--help", cwd=tmp_path).stdout
    assert time.perf_counter() - began < 3
    for path in conf_dir().glob("*/*.yaml"):
        assert path.stem in text and path.parent.name in text
    assert "python -m splatexp.evaluate run=" in text and not list(tmp_path.iterdir())


def test_cfg_and_info_show_what_would_run(tmp_path):
    shown = python(*COMMAND, "--cfg", "job", "preset=inria", "steps=300", cwd=tmp_path).stdout
    assert "steps: 300\n" in shown and "  stop: 150\n" in shown
    info = python(*COMMAND, "--info", "defaults", cwd=tmp_path).stdout
    assert "preset/quick" in info and not list(tmp_path.iterdir())


def test_examples_of_the_help_compose(tmp_path, monkeypatch):
    from splatexp.__main__ import EXAMPLES

    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES.values():
        words = example.split()
        if any(word.startswith("data.path=") for word in words):
            os.makedirs("lego", exist_ok=True)
            Path("lego", "transforms.json").write_text("{}")
        assert build(compose(words)).steps > 0
