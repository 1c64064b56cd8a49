"""Interrupted runs: killed and taken up again they give the same bits; changed settings are told."""

import atexit
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from splatexp.config.build import build, compose
from splatexp.losses.photometric import Loss
from splatexp.run import checkpoint
from splatexp.run.checkpoint import list_checkpoints, load_checkpoint

SMALL = ["data.size=96", "data.train_views=7", "data.test_views=2", "data.points=400", "data.samples=1"]
SMALL += ["data.cache=false", "evaluate.turntable=false", "evaluate.renders=false", "tracker=[csv]"]
TIMES = {"seconds", "seconds_densify", "seconds_log", "steps_per_second"}
TIMES |= {"memory_bytes", "memory_available_bytes"}


def start(folder, *words) -> subprocess.Popen:
    """A run in a process of its own."""
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "splatexp", *SMALL, *words, f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def finish(process) -> str:
    """Wait for a run that goes well; what it said."""
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    return said


def wait_for(process, folder, step) -> None:
    """Until the checkpoint of a step is there."""
    path = Path(folder, "checkpoints", f"step_{step:08d}.safetensors")
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def rows_of(folder):
    with open(Path(folder, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


def same(one, other) -> None:
    """Two finished runs agree in every bit but for times."""
    (tensors, notes), (tensors2, notes2) = (
        load_checkpoint(list_checkpoints(Path(f, "checkpoints"))[0][1]) for f in (one, other)
    )
    assert set(tensors) == set(tensors2) and len(tensors) > 25
    for name, tensor in tensors.items():
        assert torch.equal(tensor, tensors2[name]), name
    assert notes["next_view"] == notes2["next_view"] and notes["step"] == notes2["step"]
    assert notes["id"] == notes2["id"]
    for row, row2 in zip(rows_of(one), rows_of(other), strict=True):
        assert set(row) == set(row2)
        assert {name for name in row if row[name] != row2[name]} <= TIMES
    result, result2 = (json.loads(Path(folder, "metrics.json").read_text()) for folder in (one, other))
    assert result["per_view"] == result2["per_view"]
    assert Path(one, "point_cloud.ply").read_bytes() == Path(other, "point_cloud.ply").read_bytes()


STRATEGIES = {
    "adc": ["densify=adc", "densify.max_gaussians=3000"],
    "mcmc": ["preset=[quick,mcmc]"],
    "error_tag": ["preset=[quick,error_tag]"],
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A function that gives the words of a strategy's run and its folder, run once and in one go."""

    @cache
    def run(name):
        words = [*STRATEGIES[name], "steps=400", "checkpoint.every=200", "log_every=50", "densify.every=20"]
        folder = tmp_path_factory.mktemp(name)
        build(compose([*SMALL, *words, "threads=1"]))(folder)
        return words, folder

    return run


def killed(folder, *words):
    """A run in a process that is killed after its step 200, of 400."""
    process = start(folder, *words)
    wait_for(process, folder, 200)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    if (folder / "checkpoints" / "step_00000400.safetensors").exists():
        pytest.fail("it was killed too late")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", STRATEGIES)
def test_killed_and_resumed_is_uninterrupted_with_any_number_of_threads(
    name, threads, uninterrupted, tmp_path, capsys
):
    words, whole = uninterrupted(name)
    killed(tmp_path / "run", *words, f"threads={threads}")
    said = finish(start(tmp_path / "run", *words, f"threads={threads}", "resume=auto"))
    assert "resumed at step 200 of 400" in said
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["resumed_at"] == [200]
    same(whole, tmp_path / "run")


def test_killed_and_resumed_in_another_process_is_uninterrupted(uninterrupted, tmp_path, capsys):
    words, whole = uninterrupted("adc")
    killed(tmp_path / "run", *words, "threads=2")
    build(compose([*SMALL, *words, "threads=2", "resume=auto"]))(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["run"]["resumed_at"] == [200]
    changes = json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][1]["messages"]
    assert any("resumed at step 200 of 400" in line for line in changes)
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_so(number, tmp_path):
    words = ["steps=5000", "checkpoint.every=100", "threads=1", "log_every=100"]
    process = start(tmp_path / "run", *words)
    wait_for(process, tmp_path / "run", 100)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    step = list_checkpoints(tmp_path / "run" / "checkpoints")[0][0]
    assert f"stopped by {number.name} after step {step}" in said and "resume=auto" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sessions"][0]["exit_code"] == 128 + number
    assert not (tmp_path / "run" / "metrics.json").exists()


# ---- in this process


@cache
def config(*words):
    return compose([*SMALL, "data.size=48", "data.points=150", "threads=1", "raster=cpu", *words])


def made(*words):
    return build(config(*words))


def half(folder, *words):
    """A run of 12 steps that was stopped after 6."""
    shutil.copytree(stopped(words), folder, dirs_exist_ok=True)


@cache
def stopped(words):
    """The folder of such a run, made once: what a test does to it, it does to a copy."""

    class Enough(Exception):
        pass

    def stop(self, image, *rest, **more):
        if len(seen) == 6:
            raise Enough
        seen.append(1)
        return before(self, image, *rest, **more)

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    before, seen = Loss.__call__, []
    Loss.__call__ = stop
    try:
        made("steps=12", "checkpoint.every=3", *words)(folder)
    except Enough:
        pass
    finally:
        Loss.__call__ = before
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [6, 3]
    return folder


def test_without_resume_a_run_that_was_begun_is_not_overwritten(tmp_path, capsys):
    half(tmp_path)
    with pytest.raises(
        ValueError, match=r"there are checkpoints of a run, up to step 6; resume=auto continues"
    ):
        made("steps=12").prepare(tmp_path)


def test_resume_says_what_it_did(tmp_path, capsys):
    half(tmp_path)
    state = made("steps=12", "resume=auto").prepare(tmp_path)[1]
    assert (
        state.step == 6 and len(state.messages) == 1 and "resumed at step 6 of 12 from" in state.messages[0]
    )
    assert made("steps=12", "resume=auto").prepare(tmp_path / "new")[1].messages == [
        f"no checkpoint in {tmp_path / 'new'}: starting anew"
    ]
    torn = list_checkpoints(tmp_path / "checkpoints")[0][1]
    torn.write_bytes(torn.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step_00000006.* skipped"):
        state = made("steps=12", "resume=auto").prepare(tmp_path)[1]
    assert state.step == 3


def test_changed_settings_are_told_one_by_one(tmp_path, capsys):
    half(tmp_path)
    changes = [
        "schedule.sh_degree_interval=5",
        "optimizer.means=0.001",
        "regularizer=[]",
        "log_every=3",
        "seed=5",
    ]
    state = made("steps=14", "resume=auto", *changes).prepare(tmp_path)[1]
    told = {line.partition(":")[0]: line.partition(": ")[2] for line in state.messages[1:]}
    assert told["optimizer.means"] == "0.00064 -> 0.001" and told["seed"] == "0 -> 5"
    assert told["regularizer.opacity"] == "Opacity -> none" and told["steps"] == "12 -> 14"
    assert told["schedule.sh_degree_interval"].endswith("-> 5")
    assert not any(name.startswith(("log_every", "resume", "checkpoint")) for name in told)


def test_another_folder_begins_a_branch(tmp_path, capsys):
    half(tmp_path / "a")
    result = made("steps=12", f"resume={tmp_path / 'a'}", "optimizer.means=0.001")(tmp_path / "b")
    assert result["run"]["resumed_at"] == [6] and (tmp_path / "b" / "metrics.csv").exists()
    one = list_checkpoints(tmp_path / "a" / "checkpoints")[1][1]
    assert made("steps=12", f"resume={one}").prepare(tmp_path / "c")[1].step == 3
    with pytest.raises(ValueError, match="has its own checkpoints up to step 6"):
        made("steps=12", f"resume={one}").prepare(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="expected auto, the folder of a run or a checkpoint"):
        made("steps=12", "resume=nowhere").prepare(tmp_path / "c")


def test_more_bands_begin_at_zero_and_fewer_must_be_asked_for(tmp_path, capsys):
    half(tmp_path, "model.sh_degree=2", "schedule.sh_degree_interval=1")
    state = made("steps=12", "resume=auto", "model.sh_degree=3").prepare(tmp_path)[1]
    assert (
        state.splats.shN.shape[1] == 15
        and not state.splats.shN[:, 8:].any()
        and state.splats.shN[:, :8].any()
    )
    assert state.splats.exp_avg_sq["shN"].shape[1] == 15 and not state.splats.exp_avg_sq["shN"][:, 8:].any()
    assert "SH degree 2 -> 3: the new bands start at 0" in state.messages
    with pytest.raises(ValueError, match="model.sh_degree: expected at least 2.*checkpoint.truncate_sh=true"):
        made("steps=12", "resume=auto", "model.sh_degree=1").prepare(tmp_path)
    run = made("steps=12", "resume=auto", "model.sh_degree=1", "checkpoint.truncate_sh=true")
    scene, state = run.prepare(tmp_path)
    assert (
        state.splats.shN.shape[1] == 3 and "SH degree 2 -> 1: the bands above are dropped" in state.messages
    )
    assert run.fit(scene, state, tmp_path)["num_gaussians"] > 0


@pytest.mark.parametrize(
    "words, text",
    [
        (["steps=5"], "steps: expected at least 6"),
        (
            ["importance=logit"],
            "importance: expected NoImportance as in step_00000006.safetensors, got Logit",
        ),
        (["model.isotropic=true"], "model.isotropic: expected False"),
    ],
)
def test_what_does_not_fit_is_refused(words, text, tmp_path, capsys):
    half(tmp_path)
    with pytest.raises(ValueError, match=text):
        made("steps=12", "resume=auto", *words).prepare(tmp_path)


def test_other_data_are_told(tmp_path, capsys):
    half(tmp_path)
    state = made("steps=12", "resume=auto", "data.noise=0.02").prepare(tmp_path)[1]
    assert "the data differ from those of the training so far" in state.messages


def tampered(path, change) -> None:
    """Write a checkpoint anew, its contents changed and its digest right."""
    tensors, notes = load_checkpoint(path)
    tensors, notes = {name: tensor.clone() for name, tensor in tensors.items()}, dict(notes)
    change(tensors, notes)
    text = json.dumps(notes)
    digest = checkpoint._digest(tensors, text)
    save_file(tensors, path, {"format": checkpoint.FORMAT, "notes": text, "sha256": digest})


CHANGES = {
    "a row less": lambda t, n: t.update({"splats.means": t["splats.means"][1:].clone()}),
    "another shape": lambda t, n: t.update({"splats.quats": t["splats.quats"][:, :3].clone()}),
    "another type": lambda t, n: t.update({"splats.uid": t["splats.uid"].float()}),
    "whole numbers": lambda t, n: t.update({"splats.sh0": t["splats.sh0"].int()}),
    "moments of other rows": lambda t, n: t.update(
        {"splats.exp_avg.sh0": t["splats.exp_avg.sh0"][1:].clone()}
    ),
    "a name missing": lambda t, n: t.pop("splats.exp_avg.means"),
    "a parameter missing": lambda t, n: t.pop("splats.sh0"),
    "a name too many": lambda t, n: t.update({"splats.colour": torch.zeros(3)}),
    "a group too many": lambda t, n: t.update({"colour": torch.zeros(3)}),
    "a flat shN": lambda t, n: t.update({"splats.shN": torch.zeros(3)}),
    "no extent": lambda t, n: t.update({"splats.extent": torch.zeros(2, dtype=torch.float64)}),
    "no generator": lambda t, n: t.pop("random.torch"),
    "half a generator": lambda t, n: t.update({"random.torch": t["random.torch"][:99].clone()}),
    "no config": lambda t, n: n.pop("config"),
    "a config of texts": lambda t, n: n.update(config={"a": {"_target_": 3}}),
    "no record": lambda t, n: n.pop("step_log"),
    "a record of texts": lambda t, n: n["step_log"].update(seconds="many"),
    "no lists": lambda t, n: n.update(oom_reductions=3),
    "lists of texts": lambda t, n: n.update(oom_reductions=["a"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_contents_that_do_not_fit_are_refused_in_a_line(change, tmp_path, capsys):
    half(tmp_path)
    tampered(list_checkpoints(tmp_path / "checkpoints")[0][1], CHANGES[change])
    with pytest.raises(ValueError) as error:
        made("steps=12", "resume=auto").prepare(tmp_path)
    assert "\n" not in str(error.value) and "step_00000006" in str(error.value)


def test_global_generators_go_on_where_they_stood(tmp_path, capsys, monkeypatch):
    """Ours draw from (seed, step); a plug-in may draw from those of torch, NumPy and Python."""
    import random

    before = Loss.__call__

    def noisy(self, *values, **more):
        terms = before(self, *values, **more)
        terms["noise"] = torch.rand(()) * 1e-3 + np.random.normal() * 1e-3 + random.gauss(0, 1e-3)
        return terms

    monkeypatch.setattr(Loss, "__call__", noisy)
    made("steps=12", "checkpoint.every=3", "log_every=1")(tmp_path / "whole")
    half(tmp_path / "half", "log_every=1")
    made("steps=12", "resume=auto", "log_every=1")(tmp_path / "half")
    losses = [[row["train/loss"] for row in rows_of(tmp_path / name)] for name in ("whole", "half")]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_a_finished_run_can_be_made_longer(tmp_path, capsys):
    made("steps=6", "checkpoint.every=4")(tmp_path)
    assert list_checkpoints(tmp_path / "checkpoints")[0][0] == 6
    result = made("steps=9", "resume=auto")(tmp_path)
    assert result["run"]["resumed_at"] == [6] and [row["step"] for row in rows_of(tmp_path)] == ["5", "8"]
    parts = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert [part["start_step"] for part in parts] == [0, 6] and parts[1]["exit_code"] == 0
    again = made("steps=9", "resume=auto")(tmp_path)  # nothing left to train: it is measured again
    assert again["per_view"] == result["per_view"]


def test_the_command_goes_on_with_the_settings_of_the_run(tmp_path, capsys, monkeypatch):
    from splatexp.commands.resume import main

    folder = tmp_path / "run"
    whole = tmp_path / "whole"
    for place in (folder, whole):
        (place / ".hydra").mkdir(parents=True)
        words = [*SMALL, "data.size=48", "data.points=150", "threads=1", "steps=12", "checkpoint.every=3"]
        from omegaconf import OmegaConf

        OmegaConf.save(compose(words), place / ".hydra" / "config.yaml")
    made("steps=12", "checkpoint.every=3")(whole)
    half(folder)
    monkeypatch.setattr("sys.argv", ["resume", f"run={folder}"])
    main()
    same(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "folder of a run with checkpoints" in capsys.readouterr().err
