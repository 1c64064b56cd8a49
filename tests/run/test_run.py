"""Whole runs, as small as they can be, and the command line around them."""

import csv
import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from support import image_cases
from support.command import python

from splatexp import __main__
from splatexp.config.build import build, compose, conf_dir, load_run

PRESETS = sorted(path.stem for path in (conf_dir() / "preset").glob("*.yaml"))
TINY = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
TINY += ["data.cache=false", "evaluate.turntable=false", "threads=1", "tracker=[csv]"]
BARE = [*TINY, "evaluate.renders=false"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_for_twenty_steps(preset, tmp_path, capsys):
    size = "data.size=96" if preset == "memory_low" else "data.size=48"  # SSIM wants 11 pixels
    words = [f"preset={preset}", *BARE, size, "steps=20", "log_every=5"]
    words += [] if preset in ("head_basic", "image") else ["densify.every=4"]  # nothing is born there
    words += ["densify.max_gaussians=3000"] if preset in ("taming", "improved") else []  # else a million
    if preset.startswith("image"):
        image_cases.save(tmp_path / "disc.png", width=48, height=48)
        words = [word for word in words if not word.startswith("data.")]
        words += [f"data.path={tmp_path / 'disc.png'}", *(["rate.bpp=4"] if preset == "image_codec" else [])]
    metrics = build(compose(words))(tmp_path)
    assert metrics["psnr"] > 5 and metrics["ssim"] > 0 and metrics["num_gaussians"] > 0
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == ["4", "9", "14", "19"]
    assert float(rows[-1]["eval/psnr"]) == pytest.approx(metrics["psnr"])
    assert all(torch.tensor(float(row["train/loss"])).isfinite() for row in rows)


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
    rows = {row["step"]: row for row in rows_of(tmp_path)}
    assert set(rows) == {"1", "3", "5"} and float(rows["1"]["eval/psnr"]) > 0
    assert float(rows["5"]["train/loss_opacity"]) > 0 and float(rows["5"]["train/loss_scale"]) > 0


def test_runs_in_one_process_do_not_know_of_each_other(tmp_path, capsys):
    words = [*BARE, "steps=4"]
    first = build(compose(words))(tmp_path / "first")
    build(compose([*words, "seed=7", "model.sh_degree=1", "threads=2"]))(tmp_path / "other")
    again = build(compose(words))(tmp_path / "again")
    assert first["per_view"] == again["per_view"]
    clouds = [(tmp_path / name / "point_cloud.ply").read_bytes() for name in ("first", "other", "again")]
    assert clouds[0] == clouds[2] != clouds[1]


def test_the_command_trains_into_a_folder_of_its_own(tmp_path):
    words = [word for word in BARE if "tracker" not in word] + ["steps=3"]
    done = python("-m", "splatexp", *words, cwd=tmp_path)
    chosen, folder, *_ = done.stderr.splitlines()
    assert "psnr" in done.stdout and chosen.startswith("raster=auto: ") and "multirun" in folder
    (folder,) = (tmp_path / "multirun").glob("*/*")
    names = {path.name for path in folder.iterdir()}
    assert names >= {".hydra", "metrics.json", "metrics.csv", "point_cloud.ply", "tensorboard", "wandb"}
    assert load_run(folder).steps == 3
    assert json.loads((folder / "metrics.json").read_text())["overrides"] == words
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]


def test_a_sweep_trains_each_job_afresh(command, tmp_path):
    assert command("-m", *BARE, "steps=3", "hydra.sweep.dir=sweep", "seed=0,1") == 0
    jobs = [load_run(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert [job.seed for job in jobs] == [0, 1]
    clouds = [(tmp_path / "sweep" / job / "point_cloud.ply").read_bytes() for job in ("0", "1")]
    assert clouds[0] != clouds[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stpes=5"], "error: stpes: no such key; did you mean steps?"),
        (["-m", "preset=quick,qiuck", "seed=0,1"], "error: preset=qiuck: preset has no such option; did you"),
        (["data.path=nowhere"], "error: data.path: expected the folder of a data set, got 'nowhere'"),
        (["data.path=broken"], "cameras.bin"),
        (["-m", "data.path=broken", "seed=0,1"], "cameras.bin"),
        (["model.init=ply", "model.init_path=no.ply", *TINY], "no.ply"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, words, said):
    broken = tmp_path / "broken"
    (broken / "sparse" / "0").mkdir(parents=True)
    (broken / "images").mkdir()
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (broken / "sparse" / "0" / name).write_bytes(b"\x02")
    assert command(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and lines[-1].startswith("error: ")
    assert len(lines) == 1 or words[0] == "-m"  # a sweep also says which of its jobs it was
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_full_disk_is_one_line_and_leaves_no_result(command, tmp_path, monkeypatch, capsys):
    def full(path, splats):
        raise OSError(errno.ENOSPC, f"could not write {path}: No space left on device")

    monkeypatch.setattr("splatexp.run.run.save_ply", full)
    assert command(*BARE, "steps=2", "hydra.run.dir=out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: could not write")
    assert (tmp_path / "out" / "metrics.csv").is_file() and not (tmp_path / "out" / "metrics.json").exists()


def test_no_place_for_the_folder_is_one_line(command, tmp_path, capsys):
    (tmp_path / "multirun").write_text("a file")
    assert command(*BARE, "steps=2") == 2
    assert command(*BARE, "steps=2", "hydra.run.dir=multirun/x") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: cannot write the run's folder") for line in lines)


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr("splatexp.run.run.train", broken)
    with pytest.raises(ValueError, match="a bug"):
        command(*BARE, "steps=2")


def test_help_is_quick_and_lists_every_choice(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = python("-m", "splatexp", "--help", cwd=tmp_path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5  # seconds of processor
    for path in conf_dir().glob("*/*.yaml"):
        assert path.stem in text and path.parent.name in text
    assert "python -m splatexp.evaluate run=" in text and not list(tmp_path.iterdir())


def test_cfg_and_info_show_what_would_run(command, tmp_path, capsys):
    assert command("--cfg", "job", "preset=inria", "steps=300") == 0
    shown = capsys.readouterr().out
    assert "steps: 300\n" in shown and "  stop: 150\n" in shown
    assert command("--info", "defaults") == 0
    assert "preset/quick" in capsys.readouterr().out
    assert command("--cfg", "all", "--resolve") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--cgf", "job"], ["--info", "all of it"], ["--config-path", "x"]])
def test_flags_that_do_not_exist_are_refused_in_one_line(command, capsys, words):
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words[0] in line


def test_examples_of_the_help_compose(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lego").mkdir()
    (tmp_path / "lego" / "transforms.json").write_text("{}")
    for example in __main__.EXAMPLES.values():
        assert build(compose(example.split())).steps > 0
