"""Launchers: other processes run the same jobs, with their share of the processors."""
# ruff: noqa: F811 (the fixture `command` is imported)

import os
import signal
import stat
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.sweeps import column, read, sweep

from splatexp.run.checkpoint import list_checkpoints
from splatexp.sweep import launchers
from splatexp.sweep.driver import FaultTolerantLauncher
from splatexp.sweep.sweep_folder import Sweep
from splatexp.system.linux_memory import cpu_count

EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "ray": "ray"}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Words for a sweep in other processes; their working directory may be that of an earlier test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return lambda *words: sweep(*words, f"job_cache={tmp_path}/cache", folder=f"{tmp_path}/all")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [pytest.param("submitit_local", marks=pytest.mark.slow), "ray"])
def test_jobs_run_in_other_processes(command, elsewhere, name):
    spec = find_spec(EXTRAS[name])
    if spec is None or spec.origin is None:  # a bare folder of that name is no package
        pytest.skip(f"needs the extra {EXTRAS[name]}")
    words = ["+densify.extra={operate: prune, score: age, max_rows: 3}", "densify=adc", "seed=7"]
    assert command(*elsewhere(f"hydra/launcher={name}", *words)) == 0
    card, config = read("all", "0", "job.json"), read("all", "0", "run.json")["config"]
    assert card["status"] == "done" and card["pid"] != os.getpid()
    assert config["densify"]["extra"]["max_rows"] == 3 and config["seed"] == 7
    if name == "ray":
        import ray

        ray.shutdown()


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_jobs_side_by_side_share_the_processors_and_none_disturbs_another(
    command, elsewhere, tmp_path, capfd
):
    pytest.importorskip("joblib", reason="needs the extra joblib")
    (tmp_path / "all" / "1").mkdir(parents=True)
    (tmp_path / "all" / "1" / "metrics.json").write_text("{}")  # that of another run: this one fails
    assert command(*elsewhere("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")) == 1
    assert column("all", "status") == ["done", "failed"]
    cards = [read("all", job, "job.json") for job in "01"]
    assert os.getpid() not in {card["pid"] for card in cards}
    assert read("all", "0", "run.json")["config"]["threads"] == max(1, cpu_count() // 2)
    said = capfd.readouterr().err
    assert "job 0 is done: seed=0  psnr" in said and "job 1 failed: " in said


@pytest.mark.slow  # two processes that train until they are told not to
@pytest.mark.filterwarnings("default")
def test_a_signal_saves_the_jobs_of_other_processes(command, elsewhere, tmp_path, capfd):
    pytest.importorskip("joblib", reason="needs the extra joblib")
    jobs = [tmp_path / "all" / job for job in "01"]

    def stop():
        while not all(len(rows_of(job / "metrics.csv")) > 2 for job in jobs):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    def rows_of(path):
        return path.read_text().splitlines() if path.exists() else []

    threading.Thread(target=stop, daemon=True).start()
    words = ["steps=30_000", "log_every=5", "checkpoint.every=0", "seed=0,1,2"]
    assert command(*elsewhere("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *words)) == 143
    said = capfd.readouterr()
    assert "2 stopped, 1 not started" in said.out and said.err.splitlines()[-1] == "stopped by SIGTERM"
    assert [len(list_checkpoints(job / "checkpoints")) for job in jobs] == [1, 1]


@pytest.mark.parametrize(
    "kind, settings, at_once, threads",
    [
        ("joblib.JoblibLauncher", {"n_jobs": -1}, 8, 1),
        ("joblib.JoblibLauncher", {"n_jobs": -1}, 2, 4),
        ("joblib.JoblibLauncher", {"n_jobs": 4}, 100, 2),
        ("joblib.JoblibLauncher", {"n_jobs": -2}, 100, 1),
        ("joblib.JoblibLauncher", {"n_jobs": 100}, 100, 1),
        ("joblib.JoblibLauncher", {"n_jobs": None}, 100, 8),
        ("submitit.LocalLauncher", {"cpus_per_task": None}, 3, 2),
        ("submitit.LocalLauncher", {"cpus_per_task": 3}, 100, 3),
        ("submitit.SlurmLauncher", {"cpus_per_task": None}, 100, 5),
        ("submitit.SlurmLauncher", {"cpus_per_task": 6}, 100, 6),
        ("splatexp.sweep.launchers.RayLauncher", {"num_cpus": 0.5}, 100, 1),
        ("splatexp.sweep.launchers.RayLauncher", {"num_cpus": 4}, 100, 4),
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", {}, 100, 0),
    ],
)
def test_a_job_has_its_share_of_the_processors(monkeypatch, kind, settings, at_once, threads):
    monkeypatch.setattr(launchers, "cpu_count", lambda: 8)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    assert launchers.threads_per_job({"_target_": kind, **settings}, at_once) == threads


@pytest.mark.parametrize("word", launchers.REQUIREMENTS)
def test_what_is_not_installed_is_refused_with_what_installs_it(command, tmp_path, monkeypatch, capfd, word):
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    extra = launchers.REQUIREMENTS[word][0]
    assert command("-m", "seed=0,1", word) == 2
    assert capfd.readouterr().err == f"error: {word}: not installed; pip install 'splatexp[{extra}]'\n"
    assert not list(tmp_path.iterdir())


def test_what_slurm_is_asked_for(command, tmp_path, monkeypatch, capfd):
    pytest.importorskip("submitit", reason="needs the extra submitit")
    for name, text in {
        "srun": "",
        "sbatch": f"cp $1 {tmp_path}/script; echo no such queue >&2; exit 1",
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    words = [f"hydra.launcher.{word}" for word in ("partition=gpu", "cpus_per_task=8", "timeout_min=90")]
    assert command(*sweep("hydra/launcher=submitit_slurm", *words, "seed=0,1,2", folder="all")) == 2
    assert "error: no job could be started: " in capfd.readouterr().err.splitlines()[-1]
    asked = (tmp_path / "script").read_text().splitlines()
    for line in (
        "array=0-2%3",
        "cpus-per-task=8",
        "partition=gpu",
        "time=90",
        "signal=USR2@120",
        "open-mode=append",
    ):
        assert f"#SBATCH --{line}" in asked  # a job that is handed in again writes on, below the same files
    (run,) = (line for line in asked if line.startswith("srun"))
    assert f"{sys.executable} -u -m submitit.core._submit {tmp_path}/all/.submitit/%j" in run


class Losing:
    """A launcher whose jobs lose their processes: some at first, some always."""

    def __init__(self, plan, first, always):
        self.plan, self.first, self.always, self.ran = plan, first, always, []

    def launch(self, job_overrides, initial_job_idx):
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        for number in numbers:
            self.ran.append(number)
            folder = self.plan.folder / str(number)
            folder.mkdir(exist_ok=True)
            self.plan.update_job_record(folder, job=number, status="running", pid=1, host="h", overrides=[])
            if number in self.always or (number in self.first and len(numbers) > 1):
                raise RuntimeError("a process\nwas lost")
            self.plan.update_job_record(folder, status="done", objective={"psnr": number})
        return [SimpleNamespace(return_value=number) for number in numbers]


def test_a_process_that_is_lost_does_not_take_the_others_along(tmp_path, capfd):
    plan = Sweep(tmp_path, [], [])
    losing = Losing(plan, first={2}, always={3})
    jobs = FaultTolerantLauncher(losing, plan).launch([["a"]] * 6, 0)
    assert losing.ran == [0, 1, 2, 2, 3, 4, 5]  # what was done is not run again
    assert [job.return_value for job in jobs] == [0, 1, 2, None, 4, 5]
    assert [card["status"] for card in plan.job_records()] == ["done"] * 3 + ["failed"] + ["done"] * 2
    assert plan.job_records()[3]["error"] == "the process of the job was lost: a process was lost"
    assert (tmp_path / "3" / "error.txt").exists() and "one at a time" in capfd.readouterr().err
    assert Path(tmp_path, "3", "error.txt").read_text().startswith("the process of the job was lost")
