"""`python kernels/bench gpu` works as far as that can be tried without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
SIMULATED = HERE.parent / "support" / "simulated_gpu.py"
BENCH = HERE.parents[1] / "kernels" / "bench"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
interpreted = pytest.mark.slow  # the interpreter takes a second for a step of 12 Gaussians, and here are 60


def called(script: Path, *words) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """What the script says of a GPU that is made up, with all parts, and its files."""
    folder = tmp_path_factory.mktemp("simulated")
    for name in ("fox", "bonsai_colmap"):
        (folder / "data" / name).mkdir(parents=True)
    done = called(SIMULATED, "--out", folder / "out", "--data", folder / "data")
    assert done.returncode == 1 and not done.stderr, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "out" / "gpu.json").read_text()), folder / "out"


@interpreted
@without_gpu
def test_checks_hold(simulated):
    _, found, _ = simulated
    assert {row["op"] for row in found["check"]} >= {"project", "sh", "tiles", "blend", "attribute", "ssim"}
    assert len(found["check"]) >= 15
    for row in found["check"]:
        assert row["worst"] <= 1 and not row["error"], row


@interpreted
@without_gpu
def test_times_are_told(simulated):
    text, found, folder = simulated
    assert {row["op"] for row in found["ops"]} >= {"project", "sh", "tiles", "blend", "ssim", "adam", "noise"}
    assert all(row["median"] > 0 and row["limit"] > 0 for row in found["ops"])
    assert [row["by"] for row in found["step"]] == ["gsplat", "triton", "reference", "triton"]
    ours = found["step"][1]
    assert ours["gsplat"]["step"] == found["step"][0]["step"] / ours["step"]
    assert ours["memory"] == 2**30 and ours["waits"] == 0
    assert found["machine"]["bandwidth"] > 0 and "Simulated" in found["machine"]["card"]
    written = (folder / "gpu.md").read_text()
    assert written.strip() == text.strip() and "| triton " in written


@interpreted
@without_gpu
def test_what_fails_is_told_and_the_rest_goes_on(simulated):
    text, found, _ = simulated
    assert found["failed"] == ["ops", "step", "train"]
    assert text.count("ValueError: width: expected at least 1, got 0") >= 2  # a scene that cannot be made
    assert "gsplat on bonsai: simulated" in text and "FAILED: ops, step, train" in text
    rows = {(row["raster"], row["scene"]): row for row in found["train"]}
    assert len(rows) == 9 and rows["gsplat", "bonsai"]["error"] == "simulated"
    assert "cannot run here" in rows["cpu", "bonsai"]["left_out"]
    assert "no folder lego*" in rows["cpu", "lego"]["left_out"]
    assert rows["triton", "fox"]["psnr"] == 30 and found["waits"]["waits_per_step"] == 1


@without_gpu
def test_without_a_gpu_it_says_why_and_what_can_be_tried():
    done = called(BENCH, "gpu")
    assert done.returncode == 1 and done.stderr.startswith("gpu: PyTorch ") and done.stderr.count("\n") == 1
    done = called(BENCH, "gpu", "--interpret", "--only", "train")
    assert done.returncode == 0, done.stderr
    assert (
        "left out: --data was not given" in done.stdout and "all that ran is as it should be" in done.stdout
    )


@pytest.mark.slow  # two processes that import all and train
def test_a_training_is_run_and_its_waits_are_counted(monkeypatch):
    """As on a GPU, but for the switch that makes PyTorch tell of waits, which a CPU lacks."""
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_train

    switch = "import torch, warnings\ntorch.cuda.set_sync_debug_mode = lambda mode: None\n"
    told = gpu_train.COUNTING.replace("try:", "warnings.warn('synchronizes')\ntry:")
    overrides = ["raster=cpu", "steps=2", "data.size=32", "data.train_views=4", "data.test_views=1"]
    row = gpu_train.once([*overrides, *gpu_train.PLAIN], ("-c", switch + told))
    assert row.get("waits") == 1 and row["psnr"] > 5 and row["train_seconds"] > 0, row
    row = gpu_train.once(["raster=nothing"])
    assert list(row) == ["error"] and "nothing" in row["error"]
    assert not gpu_train.lacking()
