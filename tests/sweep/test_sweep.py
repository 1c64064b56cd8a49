"""Sweeps: jobs as if each were alone, failures that stay their own, nothing run twice."""
# ruff: noqa: F811 (the fixture `command` is imported)

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.logs import told
from support.sweeps import TINY, column, read, rows, sweep

from splatexp.config.build import build, compose
from splatexp.losses.photometric import Loss
from splatexp.run.checkpoint import list_checkpoints
from splatexp.sweep.job import exit_if_orphaned
from splatexp.sweep.sweep_folder import Sweep


def test_a_job_has_the_bits_of_a_run_of_its_own(command, tmp_path, capfd):
    assert command(*sweep("densify=adc,mcmc", "seed=3", "threads=1", folder="all")) == 0
    said = capfd.readouterr()
    assert column("all", "status") == ["done"] * 2 and column("all", "densify") == ["adc", "mcmc"]
    build(compose([*TINY, "densify=mcmc", "seed=3", "threads=1"]))(tmp_path / "alone")
    one, other = ((tmp_path / name / "point_cloud.ply").read_bytes() for name in ("all/1", "alone"))
    assert one == other
    result = read("all", "1", "metrics.json")
    assert float(rows("all")[1]["psnr"]) == result["psnr"]
    assert "densify=mcmc" in result["overrides"] and "seed=3" in result["overrides"]
    assert "job 1 is done: densify=mcmc  psnr" in said.err
    assert said.out.splitlines()[-2] == "2 done" and "job  densify  psnr" in said.out
    assert "psnr" in (tmp_path / "all" / "1" / "output.txt").read_text()


@pytest.mark.filterwarnings("default")
def test_jobs_are_one_group_in_wandb_with_their_overrides(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["tracker=[wandb]", "loss.ssim=0.2,0.3", "seed=1"]
    assert command(*sweep(*words, folder="multirun/mine/first")) == 0
    runs = [next(iter(told(tmp_path / "multirun" / "mine" / "first" / job)))[0] for job in "01"]
    assert {run.run_group for run in runs} == {"mine/first"} and len({run.run_id for run in runs}) == 2
    assert (
        [run.job_type for run in runs]
        == [run.display_name for run in runs]
        == ["loss.ssim=0.2", "loss.ssim=0.3"]
    )
    config = {item.key: json.loads(item.value_json) for item in runs[1].config.update}
    assert "seed=1" in config["provenance"]["overrides"] and config["loss"]["ssim"] == 0.3


def test_a_job_that_fails_is_noted_and_the_others_go_on(command, tmp_path, monkeypatch, capfd):
    def broken(splats, scene, recipe, **settings):
        if recipe.seed == 1:
            raise ZeroDivisionError("a bug")
        return train(splats, scene, recipe, **settings)

    from splatexp.train.loop import train

    monkeypatch.setattr("splatexp.run.run.train", broken)
    assert command(*sweep("seed=1,2", folder="all")) == 1
    said = capfd.readouterr()
    assert column("all", "status") == ["failed", "done"]
    assert column("all", "error") == ["a bug", ""] and rows("all")[0]["psnr"] == ""
    assert f"job 0 failed: a bug ({tmp_path / 'all' / '0' / 'error.txt'})" in said.err.splitlines()
    text = (tmp_path / "all" / "0" / "error.txt").read_text()
    assert text.startswith("a bug\n") and "in broken" in text and "1 failed, 1 done" in said.out
    monkeypatch.setattr("splatexp.run.run.train", train)
    assert command(*sweep("seed=1,2", folder="all")) == 0
    assert column("all", "status") == ["done", "cached"] and column("all", "error") == ["", ""]
    assert not (tmp_path / "all" / "0" / "error.txt").exists()


def test_what_is_finished_is_not_run_again(command, tmp_path, capfd):
    result = tmp_path / "first" / "0" / "metrics.json"
    assert command(*sweep("seed=1", folder="first")) == 0
    before = result.stat().st_mtime_ns
    assert command(*sweep("seed=1,2", "objective=[psnr,num_gaussians]", folder="second")) == 0
    assert column("second", "status") == ["cached", "done"]  # a shared baseline
    assert column("second", "folder") == [str(tmp_path / "first" / "0"), str(tmp_path / "second" / "1")]
    assert read("second", "0", "job.json")["folder"] == str(tmp_path / "first" / "0")
    assert rows("second")[0]["psnr"] == rows("first")[0]["psnr"] and rows("second")[0]["num_gaussians"]
    assert not (tmp_path / "second" / "0" / "metrics.json").exists()
    assert "job 0 is cached: seed=1  psnr" in capfd.readouterr().err and result.stat().st_mtime_ns == before
    assert command(*sweep("seed=1", "force=true", folder="first")) == 0  # the same folder again
    assert column("first", "status") == ["done"] and result.stat().st_mtime_ns > before
    assert command(*sweep("seed=1", "job_cache=", folder="third")) == 0
    assert column("third", "status") == ["done"]


def interrupted(monkeypatch, calls, error):
    """Let the loss fail at a call."""
    seen, before = [], Loss.__call__

    def stop(self, *values, **more):
        seen.append(1)
        if len(seen) == calls:
            raise error
        return before(self, *values, **more)

    monkeypatch.setattr(Loss, "__call__", stop)
    return before


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(command, tmp_path, monkeypatch, capfd):
    words = ["seed=0,1,2", "threads=1", "checkpoint.every=2"]
    before = interrupted(monkeypatch, 6 + 5, KeyboardInterrupt("stopped by hand"))
    assert command(*sweep(*words, folder="first")) == 130
    said = capfd.readouterr()
    assert said.err.splitlines()[-1] == "stopped by hand" and "1 done, 1 stopped, 1 not started" in said.out
    assert column("first", "status") == ["done", "stopped"]
    assert [step for step, _ in list_checkpoints(tmp_path / "first" / "1" / "checkpoints")] == [4, 2]
    monkeypatch.setattr(Loss, "__call__", before)
    assert command(*sweep(*words, folder="second")) == 0
    assert column("second", "status") == ["cached", "done", "done"]
    places = [Path(folder) for folder in column("second", "folder")]
    assert places == [tmp_path / "first" / "0", tmp_path / "first" / "1", tmp_path / "second" / "2"]
    assert read(places[1], "metrics.json")["run"]["resumed_at"] == [4]
    build(compose([*TINY, "threads=1", "seed=1"]))(tmp_path / "whole")
    one, other = ((place / "point_cloud.ply").read_bytes() for place in (places[1], tmp_path / "whole"))
    assert one == other


def test_a_sweep_that_varies_what_changes_no_bit_still_runs_it(command, tmp_path):
    assert command(*sweep("threads=1,2", folder="all")) == 0
    assert column("all", "status") == ["done", "done"]
    assert [read("all", str(job), "run.json")["config"]["threads"] for job in (0, 1)] == [1, 2]


@pytest.mark.slow
def test_a_folder_holds_one_sweep(command, tmp_path, capfd):
    assert command(*sweep("seed=0", folder="all")) == 0
    assert command(*sweep("seed=1", folder="all")) == 2
    assert "which holds a sweep with other overrides" in capfd.readouterr().err
    plan = read("all", "sweep.json") | {"finished": False, "pid": os.getppid()}
    (tmp_path / "all" / "sweep.json").write_text(json.dumps(plan))
    assert command(*sweep("seed=0", folder="all")) == 2
    assert f"process {os.getppid()} is running this sweep" in capfd.readouterr().err
    (tmp_path / "taken" / "0").mkdir(parents=True)
    (tmp_path / "taken" / "0" / "metrics.json").write_text("{}")
    (tmp_path / "taken" / "1").mkdir()
    (tmp_path / "taken" / "1" / "metrics.json").write_text("[]")
    assert command(*sweep("seed=7,8", folder="taken")) == 1
    assert column("taken", "status") == ["failed"] * 2
    assert f"{tmp_path / 'taken' / '0'} holds another run" in column("taken", "error")[0]
    assert (tmp_path / "taken" / "0" / "metrics.json").read_text() == "{}"


def test_what_cannot_be_begun_leaves_nothing(command, tmp_path, capfd):
    cases = {
        "optimizer.means=interval(1e-4,1e-3)": "optimizer.means: an interval needs hydra/sweeper=optuna",
        "seed=0,1 model.init=ply model.init_path=no.ply": "no.ply",
        "hydra/launcher=nowhere": "hydra/launcher=nowhere: hydra/launcher has no such option",
        "hydra.launcher.n_jobs=2": "hydra.launcher.n_jobs: no such key",
    }
    for words, line in cases.items():
        assert command("-m", *TINY, *words.split()) == 2
        assert line in capfd.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_a_sweep_is_called_by_its_folder(tmp_path):
    names = {"multirun/2026-01-31/12-00-00": "2026-01-31/12-00-00", "mine": "mine", "multirun": "multirun"}
    for folder, name in names.items():
        assert Sweep(tmp_path / folder, [], []).name == name
    plan, words = Sweep(tmp_path, [], ["seed", "+c.d"]), ["a=1", "seed=2", "+c.d=x=y"]
    assert plan.describe(words) == "seed=2 +c.d=x=y" and plan.describe(words, exclude=("seed",)) == "+c.d=x=y"


def test_the_signal_by_which_slurm_says_that_time_is_up_saves_first(command, tmp_path, monkeypatch, capfd):
    """As in a process that submitit runs: its handler, which hands the job in again, is called at the end."""
    handed_in = []
    monkeypatch.setattr(Sweep, "is_driver", property(lambda self: False))
    before = signal.signal(
        signal.SIGUSR2, lambda *_: handed_in.append(read("all", "0", "job.json")["status"])
    )
    plain = Loss.__call__

    def late(self, *values, **more):
        if not list_checkpoints(tmp_path / "all" / "0" / "checkpoints"):
            os.kill(os.getpid(), signal.SIGUSR2)
        return plain(self, *values, **more)

    monkeypatch.setattr(Loss, "__call__", late)
    try:
        assert command(*sweep("seed=0", "checkpoint.every=0", folder="all")) == 1
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handed_in == ["stopped"] and len(list_checkpoints(tmp_path / "all" / "0" / "checkpoints")) == 1
    assert "saved" in column("all", "error")[0]
    monkeypatch.setattr(Loss, "__call__", plain)
    assert command(*sweep("seed=0", "checkpoint.every=0", folder="all")) == 0
    assert read("all", "0", "metrics.json")["run"]["resumed_at"] == [1]


ENDS_ITS_CARD = """
import os, signal, sys, time
from pathlib import Path
from splatexp.sweep.sweep_folder import Sweep
plan, folder = Sweep.read(Path(sys.argv[1])), Path(sys.argv[1], "0")
signal.signal(signal.SIGTERM, lambda *_: (plan.update_job_record(folder, status="stopped"), os._exit(7)))
plan.update_job_record(folder, job=0, status="running", pid=os.getpid(), host=plan.host)
time.sleep(60)
"""


def test_stopping_asks_the_processes_of_jobs_and_waits_for_them(tmp_path):
    plan = Sweep(tmp_path, [], [])
    plan.write()
    (tmp_path / "0").mkdir()
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", ENDS_ITS_CARD, str(tmp_path)], env=settings)
    while not plan.job_records():
        time.sleep(0.02)
    plan.stop()
    assert plan.job_records()[0]["status"] == "stopped" and Sweep.read(tmp_path).stopped
    assert process.wait() == 7


def test_a_process_that_runs_jobs_for_one_that_is_no_more_ends(tmp_path, monkeypatch):
    left, gone = [], subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr("splatexp.sweep.job.os._exit", left.append)
    exit_if_orphaned(Sweep(tmp_path, [], []))
    exit_if_orphaned(Sweep(tmp_path, [], [], pid=gone.pid, host="another"))
    assert not left
    exit_if_orphaned(Sweep(tmp_path, [], [], pid=gone.pid))
    assert left == [1]


def test_cards_of_another_sweep_are_not_taken_for_its_own(tmp_path):
    plan, other = Sweep(tmp_path, [], []), Sweep(tmp_path, [], [])
    for job, each in enumerate((plan, other, plan)):
        (tmp_path / "deep" / str(job)).mkdir(parents=True)
        each.update_job_record(tmp_path / "deep" / str(job), job=job, status="done", id="a")
    assert [card["job"] for card in plan.job_records()] == [0, 2]
    plan.update_job_record(tmp_path / "deep" / "1", job=1)  # what the folder holds is still what it was
    assert [card.get("id") for card in plan.job_records()] == [
        "a"
    ] * 3 and "status" not in plan.job_records()[1]
