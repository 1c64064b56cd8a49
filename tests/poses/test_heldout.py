"""Whole runs with learned cameras: what they leave, and how held-out views are scored."""

import json

import pytest
import torch
from support import tiny
from support.scenes import write_colmap

from splatexp.cameras.rigid import exp_map, move_camera
from splatexp.cameras.similarity import pose_errors
from splatexp.commands.evaluate import evaluate_run
from splatexp.commands.render import render_run
from splatexp.config.build import build, compose
from splatexp.data.perturb import Perturb
from splatexp.evaluation.evaluate import EvaluationSettings, compute_result, measure_views
from splatexp.evaluation.metrics import psnr
from splatexp.poses.heldout import optimize_pose, sim3_aligned_cameras
from splatexp.raster.backends import CPU
from splatexp.run.run import OBJECTIVES
from splatexp.sweep.pareto import HIGHER_IS_BETTER

TURN = torch.tensor([[0.02, -0.03, 0.01, 0, 0, 0]])


def test_a_held_out_pose_is_fitted():
    scene, splats = tiny.scene(), tiny.splats(init_opacity=0.9)
    view, start = scene.test[0], scene.test[0].camera
    off = type(start)(move_camera(*exp_map(TURN), start.viewmats), start.Ks, start.width, start.height)
    before = {name: leaf.detach().clone() for name, leaf in splats.leaves().items()}
    found = optimize_pose(splats, CPU(), scene, view, off, 60)
    errors = [pose_errors([*[v.camera for v in scene.train], c], [v.camera for v in [*scene.train, view]])[-1]
              for c in (off, found)]  # fmt: skip
    assert errors[1]["rotation_deg"] < 0.25 * errors[0]["rotation_deg"]
    for name, leaf in splats.leaves().items():
        assert torch.equal(leaf, before[name]) and leaf.grad is None, name
    assert optimize_pose(splats, CPU(), scene, view, start, 1).viewmats.shape == (1, 4, 4)


def test_a_scene_that_turned_as_a_whole_is_scored_where_it_is():
    scene, splats = tiny.scene(), tiny.splats(init_opacity=0.9)
    turn = exp_map(torch.tensor([[0, 0, 0.3, 0, 0, 0]]))[0]
    cameras = [
        type(v.camera)(v.camera.viewmats @ turned(turn[0].T), v.camera.Ks, v.camera.width, v.camera.height)
        for v in scene.train
    ]
    with torch.no_grad():
        splats.means.copy_(splats.means @ turn[0].T)
    (row,) = measure_views(splats, CPU(), scene.with_cameras(cameras), {"psnr": psnr}, pose_steps=3)
    assert row["psnr"] < 25 < 30 < row["psnr_sim3"] <= row["psnr_pose_opt"] + 1e-9
    assert torch.equal(sim3_aligned_cameras(scene)[0].viewmats, scene.test[0].camera.viewmats), (
        "nothing has moved"
    )


def turned(rotation):
    """[1,4,4] of a rotation."""
    matrix = torch.eye(4)[None].clone()
    matrix[0, :3, :3] = rotation
    return matrix


def test_what_is_measured_is_named(tmp_path):
    scene, splats = tiny.scene(), tiny.splats()
    bare = EvaluationSettings(renders=False, turntable=False, pose_steps=2)
    plain = compute_result(splats, CPU(), scene, tmp_path, bare)
    assert "psnr_pose_opt" not in plain and "pose_rotation_deg" not in plain
    bare.optimize_poses = True
    told = compute_result(splats, CPU(), scene, tmp_path, bare)
    assert told["psnr_sim3"] == told["psnr"] <= told["psnr_pose_opt"]
    assert told["protocol"] == plain["protocol"] and "pose_opt" in told["definitions"]
    worse = Perturb(rotation=2.0, focal=-5.0)(tiny.scene())
    told = compute_result(splats, CPU(), worse, tmp_path, bare)
    assert told["pose_focal_percent"] == pytest.approx(5) and 0.5 < told["pose_rotation_deg"] < 3
    assert [row["view"] for row in told["pose_per_view"]] == [view.name for view in worse.train]
    assert all(row["focal_percent"] == pytest.approx(-5) for row in told["pose_per_view"])


def test_perturbing_keeps_the_truth_and_the_rest():
    scene = tiny.scene()
    worse = Perturb(orbit=5.0, rotation=1.0, translation=0.02, focal=10.0, seed=3)(scene)
    assert [camera for camera in worse.true_cameras] == [view.camera for view in scene.train]
    assert worse.test[0].camera is scene.test[0].camera and worse.fingerprint != scene.fingerprint
    rows = pose_errors([view.camera for view in worse.train], worse.true_cameras)
    assert 0.5 < max(row["rotation_deg"] for row in rows) < 8 and rows[0]["focal_percent"] == pytest.approx(
        10
    )
    again = Perturb(orbit=5.0, rotation=1.0, translation=0.02, focal=10.0, seed=3)(scene)
    other = Perturb(orbit=5.0, rotation=1.0, translation=0.02, focal=10.0, seed=4)(scene)
    assert again.fingerprint == worse.fingerprint != other.fingerprint
    shifted = Perturb(translation=0.02)(scene)
    for camera, view in zip(shifted.true_cameras, shifted.train, strict=True):
        away = (camera.centers - view.camera.centers).norm()
        assert float(away) == pytest.approx(0.02 * scene.extent, rel=1e-3)
    assert Perturb()(scene) is scene
    with pytest.raises(ValueError, match=r"data\.perturb\.orbit: expected at least 0, got -1"):
        Perturb(orbit=-1)


def test_masks_cut_out_or_count_for_nothing(tmp_path):
    write_colmap(tmp_path, views=10, size=32, masks=True)
    words = [f"data.path={tmp_path}", "preset=[]"]
    plain = build(compose(words)).data.load()
    cut = build(compose([*words, "data.masks_as_alpha=true", "data.background=white"])).data.load()
    view, held = cut.train[0], cut.test[0]
    assert plain.train[0].mask is not None and view.mask is None and view.alpha is not None
    assert (view.image[:, :8] == 255).all() and torch.equal(view.image[:, 8:], plain.train[0].image[:, 8:])
    assert torch.equal(held.mask, plain.test[0].mask), "held-out views are measured inside their masks"
    assert cut.background == (1.0, 1.0, 1.0)


def test_a_run_leaves_its_cameras_and_is_measured_again(tmp_path, capsys):
    write_colmap(tmp_path / "data", views=8, size=32, points=150)
    words = [
        f"data.path={tmp_path / 'data'}",
        "preset=[]",
        "camera=se3",
        "camera.start=1",
        "steps=6",
        "threads=1",
    ]
    words += [
        "data.perturb.rotation=1",
        "evaluate.turntable=false",
        "evaluate.pose_steps=3",
        "tracker=[csv]",
    ]
    words += [
        "evaluate.every=3",
        "evaluate.train_images_every=3",
        "model.sh_degree=0",
        "checkpoint.every=4",
        "densify=none",
    ]
    folder = tmp_path / "run"
    cfg = compose(words)
    run = build(cfg)
    from splatexp.config.build import save_config

    save_config(cfg, folder, words)
    told = run(folder, words)
    assert told["pose_rotation_deg"] > 0 and told["psnr_pose_opt"] >= told["psnr_sim3"] - 1e-6
    assert json.loads((folder / "metrics.json").read_text())["pose_initial"]["rotation_deg"] > 0
    assert (folder / "cameras.json").is_file() and (folder / "train_images" / "step_00000003.png").is_file()
    rerun = evaluate_run(folder, renders=False)
    assert rerun["pose_rotation_deg"] == pytest.approx(told["pose_rotation_deg"], abs=1e-4)
    assert rerun["psnr_pose_opt"] == pytest.approx(told["psnr_pose_opt"], abs=0.02)
    assert "held-out views" in render_run(str(folder))[0] and "initially" in capsys.readouterr().out
    words = [word for word in words if word.partition("=")[0] not in ("camera", "camera.start", "steps")]
    run = build(compose([*words, "steps=8", "resume=auto", "camera=fixed"]))
    with pytest.raises(ValueError, match=r"camera: expected SE3 as in step_00000006\.safetensors, got Fixed"):
        run.prepare(folder)


def test_searches_know_which_way_is_better():
    assert {name for name in OBJECTIVES if name.startswith(("psnr", "ssim"))} == HIGHER_IS_BETTER
