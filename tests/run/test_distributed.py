"""One scene over several processes, as far as that goes without GPUs: two, gloo, the reference kernels."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from support import tiny
from support.distributed_case import CAP, EVERY, PARTS, STEPS
from support.distributed_case import rows as begun
from support.training import fit

from splatexp.config.build import build, compose, make_loader
from splatexp.config.schema import ConfigError
from splatexp.densify import NoDensification
from splatexp.raster.backends import Reference
from splatexp.raster.gsplat import Gsplat
from splatexp.run import distributed
from splatexp.system import process_group

composer = cache(make_loader)
CASE = Path(__file__).parents[1] / "support" / "distributed_case.py"


def both(folder, case):
    """What two processes said, and the leader's rows at the end."""
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(CASE), str(rank), str(folder), case],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()
    said = [json.loads((folder / f"said{rank}.json").read_text()) for rank in range(2)]
    return said, torch.load(folder / "end.pt")


def test_two_processes_train_as_one_with_two_views(tmp_path):
    (lead, other), rows = both(tmp_path, "plain")
    one = begun()
    fit(one, tiny.scene(), raster=Reference(), densify=NoDensification(), batch=2, steps=STEPS, **PARTS)
    order = rows["uid"].argsort()
    assert torch.equal(rows["uid"][order], one.uid) and torch.equal(
        rows["means"], torch.load(tmp_path / "5.pt")["means"]
    )
    for name, leaf in one.params.items():
        torch.testing.assert_close(rows[name][order], leaf.detach(), atol=2e-4, rtol=1e-3)
        assert not torch.equal(leaf, getattr(begun(), name))
    assert rows["next_uid"] >= 60 and rows["initial"] == 60
    assert lead["called"] == [[EVERY - 1, 60], [STEPS - 1, 60]] and lead["logged"] == [[2, 60], [5, 60]]
    assert other["called"] == other["logged"] == [] and lead["end"] == other["end"] == "done"


@pytest.mark.slow
def test_density_control_keeps_the_cap_and_names_apart(tmp_path):
    (lead, _), rows = both(tmp_path, "grow")
    assert 60 < len(rows["uid"]) <= CAP and lead["rows"] == len(rows["uid"]) == lead["logged"][-1][1]
    assert len(rows["uid"].unique()) == len(rows["uid"]) and rows["next_uid"] > rows["uid"].max()
    assert all(len(rows[name]) == len(rows["uid"]) for name in ("means", "exp_avg.means", "shN", "born"))
    assert rows["generation"].max() > 0


@pytest.mark.slow
def test_a_signal_to_one_stops_both_with_whole_rows(tmp_path):
    (lead, other), rows = both(tmp_path, "stop")
    assert "SIGTERM" in lead["end"] and "SIGTERM" in other["end"] and "after step 1" in other["end"]
    assert (
        lead["called"] == [[0, 60]]
        and len(torch.load(tmp_path / "0.pt")["means"]) == len(rows["means"]) == 60
    )


@pytest.mark.slow  # two processes that import all, and train; those above train without a config
def test_a_whole_run_leaves_one_folder(tmp_path):
    lead, other = both(tmp_path, "run")[0]
    result = json.loads((tmp_path / "run0" / "metrics.json").read_text())
    assert lead["psnr"] == result["psnr"] and result["raster"] == "gsplat" and other["psnr"] is None
    assert result["num_gaussians"] == 40 == lead["rows"] and (tmp_path / "run0" / "point_cloud.ply").is_file()
    table = (tmp_path / "run0" / "metrics.csv").read_text().splitlines()
    assert table[1].split(",")[table[0].split(",").index("num_gaussians")] == "40"
    assert [path.name for path in (tmp_path / "run0" / "checkpoints").glob("*.safetensors")]
    left = {path.name for path in (tmp_path / "run1").iterdir()}
    assert not left & {"metrics.json", "metrics.csv", "point_cloud.ply", "checkpoints", "renders"}
    assert lead["messages"] and not other["messages"]


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "to be started by torchrun: torchrun --nproc_per_node="),
        (
            {"WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            "at least 2 processes, each with a GPU, got 1; raster.distr",
        ),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "99"}, "NCCL|a GPU for each process"),
    ],
)
def test_without_torchrun_or_gpus_it_is_refused(environment, line):
    with pytest.raises(ValueError, match=f"raster.distributed: expected .*({line})") as caught:
        process_group.init_process_group(environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "importance=logit",
        "camera=se3",
        "densify.grow.score=absgrad",
        "batch=2",
        "oom=shrink",
        "viewer.enabled=true",
    ]
    + ["evaluate.every=5", "evaluate.train_images_every=5", "densify=error_tag", "raster.per_tile_max=3"],
)
def test_what_is_not_shared_is_refused(words):
    run = ["raster=gsplat", "raster.distributed=true", "densify=adc"]
    if words.startswith("densify="):
        run.pop()
    with pytest.raises(ConfigError, match=r"distributed=true|raster=gsplat") as caught:
        build(composer().compose_job("config", [*run, words]))
    assert "\n" not in str(caught.value)


def test_alone_it_is_an_ordinary_rasterizer():
    assert (
        Gsplat(distributed=True, near=0.3).single_process() == Gsplat(near=0.3)
        and process_group.is_main_process()
    )
    assert Reference().single_process() == Reference() and not Reference().distributed
    assert not Gsplat(distributed=True).attribution_fields and Gsplat().attribution_fields


def test_a_process_that_does_not_lead_has_a_folder_for_a_while(monkeypatch):
    run = build(compose(["raster=gsplat", "raster.distributed=true", "densify=adc"]))
    with distributed.worker_folder(run.raster) as words:
        assert words == []
    monkeypatch.setenv("RANK", "1")
    with distributed.worker_folder(run.raster) as (word,):
        folder = Path(word.partition("=")[2].strip("'"))
        assert word.startswith("hydra.run.dir=") and folder.is_dir()
    assert not folder.exists()
    with distributed.worker_folder(build(compose(["raster=cpu"])).raster) as words:
        assert words == []
