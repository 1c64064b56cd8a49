"""Runs of a picture, from the command line's words to the files; what does not apply is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from omegaconf import open_dict
from PIL import Image
from support import image_cases

from splatexp.commands import evaluate, render, view
from splatexp.commands.open_run import open_run
from splatexp.config.build import DEFAULT_OPTIONS, build, compose, load_run, save_config
from splatexp.config.schema import ConfigError
from splatexp.gaussians.splats2d import OPACITY, Splats2D
from splatexp.run.checkpoint import load_latest_checkpoint
from splatexp.run.state import TrainingState

GROWS = ["densify=image", "densify.every=4", "densify.max_gaussians=60", "model.count=20"]


@pytest.fixture
def run(tmp_path):
    """Words and what the picture is like -> the Run, its folder."""

    def made(*words, folder="run", **shape):
        path = tmp_path / f"disc{shape.get('channels', 3)}{shape.get('bits', 8)}.png"
        image_cases.save(path, **shape)
        bare = [
            "preset=image",
            f"data.path={path}",
            "model.count=40",
            "steps=40",
            "tracker=[csv]",
            "threads=1",
        ]
        cfg = compose([*bare, "log_every=20", *words])
        save_config(cfg, tmp_path / folder, words)  # as the command does
        return build(cfg), tmp_path / folder

    return made


def rows_of(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def state_of(folder):
    found = load_latest_checkpoint(folder / "checkpoints")
    assert found is not None
    return found[1]


def test_a_run_fits_the_picture_and_leaves_numbers_pictures_and_a_checkpoint(run, capsys):
    fit, folder = run("steps=150", "model.count=80")
    metrics = fit(folder)
    assert metrics["psnr"] > 33 and metrics["ssim"] > 0.8 and metrics["num_gaussians"] == 80
    assert metrics["per_view"][0]["view"] == "disc38.png" and metrics["scene"]["train_views"] == 1
    losses = [float(row["train/loss"]) for row in rows_of(folder)]
    assert losses[-1] < 0.5 * losses[0] and "opacity_mean" in rows_of(folder)[0]
    with Image.open(folder / "renders" / "plain" / "disc38.png") as picture:
        shown = np.asarray(picture).astype(np.float32) / 255
    assert np.abs(shown - image_cases.pixels()).mean() < 0.02
    assert not list(folder.glob("point_cloud.*")) and not (folder / "turntable.mp4").exists()
    again, scene, rows = open_run(folder)
    assert isinstance(rows, Splats2D) and len(rows) == 80 and again.is_image and scene.test_is_train


def test_a_finished_run_is_measured_and_drawn_again(run, capsys):
    fit, folder = run()
    before = fit(folder)
    after = evaluate.evaluate_run(str(folder), renders=False)
    assert after["psnr"] == before["psnr"] and after["num_gaussians"] == 40
    assert "1 held-out views" in render.render_run(str(folder))[0]
    with pytest.raises(ValueError, match="what: expected views with data=image, which has no turntable"):
        render.render_run(str(folder), "turntable")
    with pytest.raises(ValueError, match="turntable: expected false"):
        evaluate.evaluate_run(str(folder), turntable=True)
    with pytest.raises(ValueError, match="run: expected a run of a scene, got one of an image"):
        view.open_latest(folder)


def test_a_coded_run_is_measured_again_as_its_file_has_it(run):
    fit, folder = run(
        "preset=image_codec", "rate.bytes=600", "rate.layers=2", "model.count=10", "densify.every=2"
    )
    before = fit(folder)
    data = (folder / "image.gsi").read_bytes()
    after = evaluate.evaluate_run(str(folder), renders=False)
    same = ["psnr", "num_gaussians", "bits", "bpp", "psnr_layers_1", "psnr_layers"]
    assert [after[name] for name in same] == [before[name] for name in same]
    assert after["bits"] == 8 * len(data) and (folder / "image.gsi").read_bytes() == data
    raw = TrainingState.from_checkpoint(*load_latest_checkpoint(folder / "checkpoints")[1:]).splats
    assert len(raw) >= after["num_gaussians"] and raw.quantizer is None


def test_a_run_that_ends_early_leaves_a_checkpoint_and_nothing_to_go_on_with(run):
    words = [
        "optimizer.refine.patience=10",
        "optimizer.refine.check_every=5",
        "optimizer.refine.min_delta=50",
    ]
    words += ["optimizer.refine.lbfgs_steps=2", "steps=4000"]
    fit, folder = run(*words)
    before = fit(folder)
    saved = load_latest_checkpoint(folder / "checkpoints")
    assert saved is not None and 10 < saved[2]["step"] < 40
    again, _ = run(*words, "resume=auto")
    after = again(folder)
    assert after["psnr"] == before["psnr"] and after["run"]["resumed_at"] == [saved[2]["step"]]
    assert load_latest_checkpoint(folder / "checkpoints")[2]["step"] == saved[2]["step"]


@pytest.mark.parametrize(
    "shape", [{"channels": 1}, {"channels": 2}, {"channels": 4}, {"bits": 16}, {"channels": 4, "bits": 16}]
)
def test_any_kind_of_picture(run, shape):
    fit, folder = run("loss.ssim=0.1", *GROWS, **shape)
    metrics = fit(folder)
    assert metrics["psnr"] > 20 and metrics["num_gaussians"] > 20
    scene = fit.data.load()
    assert scene.train[0].float_image.shape == (32, 40, shape.get("channels", 3))
    assert len(scene.background) == shape.get("channels", 3)


def test_sixteen_bits_are_not_cut_to_eight(run):
    fit, _ = run(bits=16)
    values = fit.data.load().train[0].float_image
    assert len((values * 65535).round().unique()) > 256
    assert torch.equal((values * 65535).round() / 65535, values)


@pytest.mark.parametrize(
    "words", [GROWS, ["raster.mode=alpha"], ["raster.mode=normalized", "raster.top_k=8"]]
)
def test_broken_off_and_resumed_is_uninterrupted_to_the_bit(run, words):
    whole, folder = run(*words, "checkpoint.every=20")
    whole(folder)
    half, other = run(*words, "checkpoint.every=20", folder="other")

    class Broken(Exception):
        pass

    def stop(step, rows):
        if step == 30:
            raise Broken

    scene, state = half.prepare(other)
    half.evaluate.every = 31
    import splatexp.run.run as module

    periodic = module.PeriodicEvaluation
    try:
        module.PeriodicEvaluation = lambda *parts: stop
        with pytest.raises(Broken):
            half.fit(scene, state, other)
    finally:
        module.PeriodicEvaluation = periodic
    again, _ = run(*words, "checkpoint.every=20", "resume=auto", folder="other")
    result = again(other)
    assert result["run"]["resumed_at"] == [20]
    one, two = state_of(folder), state_of(other)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]) or not name.startswith("splats."), name


def test_a_checkpoint_of_other_rows_is_refused(run):
    first, folder = run("checkpoint.every=20")
    first(folder)
    for words, said in (
        (["model.covariance=direct"], "model.covariance: expected log_cholesky as in step_00000040"),
        (["steps=60", "raster.mode=alpha"], ""),
    ):
        other, place = run(*words, f"resume={folder}", folder=f"to{len(said)}")
        if said:
            with pytest.raises(ValueError, match=said):
                other.prepare(place)
            continue
        assert OPACITY in other.prepare(place)[1].splats.extra


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["camera=orbit"], "camera: expected fixed, since an image has none"),
        (["importance=mlp"], "importance: expected none with data=image"),
        (["dropout.p=0.1"], "dropout.p: expected 0 with data=image"),
        (["smoothing.variance=0.2"], "smoothing.variance: expected 0"),
        (["batch=2"], "batch: expected 1, since an image is one view"),
        (["viewer=true"], "viewer.enabled: expected false"),
        (["evaluate.turntable=true"], "evaluate.turntable: expected false"),
        (["checkpoint.truncate_sh=true"], "checkpoint.truncate_sh: expected false"),
        (
            ["regularizer=[opacity]"],
            "regularizer: expected one for images with data=image, got opacity",
        ),
        (
            ["densify=adc"],
            "densify.grow.operate: expected birth or prune with data=image, got clone_or_split",
        ),
        (["raster=cpu"], "raster: expected image with data=image"),
        (["optimizer=adam"], "optimizer: expected image with data=image"),
        (["schedule=full"], "schedule: expected image with data=image"),
        (["model.sh_degree=2"], "model.sh_degree: needs model=scene"),
        (["optimizer.shN_update_every=2"], "optimizer.shN_update_every: needs optimizer=adam"),
        (["model.init=sfm"], "model.init: expected one of"),
        (["model.count=0"], "model.count: expected at least 1, got 0"),
        (["model.covariance=round"], "model.covariance: expected one of"),
        ([*GROWS, "densify.exact=true"], "densify.exact: expected false with data=image"),
        (
            [*GROWS, "densify.opacity_reset.every=9"],
            "densify.opacity_reset.every: expected 0 with data=image",
        ),
        ([*GROWS, "densify.opacity_decay.kind=clip"], "densify.opacity_decay.kind: expected none"),
        ([*GROWS, "densify.births.score=opacity"], "densify.births.score: expected one of error, one"),
        ([*GROWS, "densify.births.gate=['age > 3']"], "gate: expected it unset with operate=birth"),
        (
            [*GROWS, "+densify.old.operate=prune", "+densify.old.score=size"],
            "expected scores that images have",
        ),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(run, words, said):
    with pytest.raises(ConfigError, match=said) as caught:
        run(*words)
    assert "\n" not in str(caught.value)


def test_a_picture_without_its_preset_is_told_of_it(tmp_path):
    image_cases.save(tmp_path / "disc.png")
    with pytest.raises(ConfigError, match=r"model: expected image with data=image.*preset=image sets all"):
        build(compose([f"data.path={tmp_path / 'disc.png'}"]))
    with pytest.raises(ConfigError, match="model: expected image with data=image, got SceneModel"):
        build(compose(["preset=image", f"data.path={tmp_path / 'disc.png'}", "model=scene"]))
    with pytest.raises(ValueError, match="data.path: expected an image file, got none"):
        build(compose(["preset=image"])).data.load()


def test_a_run_of_old_knows_its_model_and_optimizer(tmp_path, capsys):
    words = ["data.size=32", "data.train_views=2", "data.test_views=1", "data.points=50", "data.samples=1"]
    words += ["data.cache=false", "evaluate.turntable=false", "threads=1", "tracker=[]", "steps=2"]
    cfg = compose(words)
    with open_dict(cfg):
        for group in DEFAULT_OPTIONS:
            del cfg[group]
    save_config(cfg, tmp_path, words)
    run = load_run(tmp_path)
    assert not run.is_image
    assert [type(part).__name__ for part in (run.model, run.optimizer)] == ["SceneModel", "Adam"]


def test_sweeps_take_pictures(command, tmp_path, capsys):
    image_cases.save(tmp_path / "disc.png")
    words = ["preset=image", "data.path=disc.png", "model.count=30", "steps=10", "tracker=[]", "threads=1"]
    assert command("-m", *words, "model.covariance=log_cholesky,direct", "hydra.sweep.dir=out") == 0
    psnrs = [json.loads((tmp_path / "out" / n / "metrics.json").read_text())["psnr"] for n in ("0", "1")]
    assert psnrs[0] != psnrs[1] and min(psnrs) > 15
