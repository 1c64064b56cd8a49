"""Photographs alone: their order, their cameras, what is refused in one line."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from splatexp.cameras.similarity import pose_errors
from splatexp.config.build import build, compose
from splatexp.config.schema import ConfigError
from splatexp.data import detect_loader
from splatexp.data.photos import Photos, orbit, photographs


def write(folder, names, size=(40, 30), **more):
    """Photographs of noise, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, **more)
    return folder


def test_they_come_in_the_order_of_their_numbers(tmp_path):
    write(tmp_path, ["10.jpg", "2.jpg", "1.jpg", "3.JPEG", "head 2.png"])
    (tmp_path / "notes.txt").write_text("no photograph")
    assert [path.name for path in photographs(tmp_path)] == [
        "1.jpg",
        "2.jpg",
        "3.JPEG",
        "10.jpg",
        "head 2.png",
    ]
    scene = Photos(str(tmp_path), yaw_range=80, test_names=["3.JPEG"]).load()
    assert [view.name for view in scene.train] == ["1.jpg", "2.jpg", "10.jpg", "head 2.png"]
    assert [view.name for view in scene.test] == ["3.JPEG"]
    yaw = [np.degrees(np.arctan2(*view.camera.centers[0, [0, 2]].tolist())) for view in scene.train]
    assert np.allclose(np.abs(np.diff(np.unwrap(np.radians(yaw)))), np.radians([20, 40, 20]), atol=1e-4)
    folder = write(tmp_path / "images", ["7.png", "8.png"])
    assert [path.name for path in photographs(tmp_path)] == ["7.png", "8.png"] and folder.is_dir()


def test_a_camera_on_the_orbit():
    for yaw, pitch, place in (
        (0, 0, (0, 0, -5)),
        (90, 0, (5, 0, 0)),
        (0, 90, (0, -5, 0)),
        (-90, 0, (-5, 0, 0)),
    ):
        viewmat = orbit(yaw, pitch, 5.0)
        assert np.allclose(-viewmat[:3, :3].T @ viewmat[:3, 3], place, atol=1e-9), (yaw, pitch)
        assert np.allclose(viewmat[:3, 3], [0, 0, 5]) and np.linalg.det(viewmat) == pytest.approx(1)


def test_angles_and_lens_of_the_config(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    scene = Photos(str(tmp_path), yaw=[-10, 30], pitch=[5, 0], focal=2.0, distance=8.0).load()
    for view, (yaw, pitch) in zip(scene.train, ((-10, 5), (30, 0)), strict=True):
        assert np.allclose(view.camera.viewmats[0].numpy(), orbit(yaw, pitch, 8.0), atol=1e-6)
        assert view.camera.Ks[0, 0, 0] == view.camera.Ks[0, 1, 1] == 80 and view.camera.Ks[0, 1, 2] == 15
    assert scene.background == (1.0, 1.0, 1.0)
    assert Photos(str(tmp_path), background="none").load().background is None
    round_ = Photos(str(tmp_path), yaw_range=360).load()
    assert torch.allclose(round_.train[0].camera.centers, -round_.train[1].camera.centers, atol=1e-5)


def test_exif_turns_the_picture_and_tells_the_lens(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # it was held upright: to be turned by 90 degrees
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 52
    write(tmp_path, ["1.jpg", "2.jpg"], exif=exif, quality=95)
    view = Photos(str(tmp_path)).load().train[0]
    assert (view.camera.width, view.camera.height) == (30, 40)
    stored = np.array(Image.open(tmp_path / "1.jpg"))
    assert np.array_equal(view.image.numpy(), np.rot90(stored, -1))
    assert float(view.camera.Ks[0, 0, 0]) == pytest.approx(52 / np.hypot(36, 24) * 50, rel=1e-5)


def test_sizes_may_differ_and_large_ones_are_reduced(tmp_path):
    write(tmp_path, ["1.png"], (40, 30))
    write(tmp_path, ["2.png"], (30, 60))
    with pytest.warns(
        UserWarning, match=r"photographs of 2 sizes \(30 x 60, 40 x 30\); each is used as it is"
    ):
        views = Photos(str(tmp_path), focal=1.5, max_side=40).load().train
    assert [(v.camera.width, v.camera.height) for v in views] == [(40, 30), (20, 40)]
    assert [float(v.camera.Ks[0, 0, 0]) for v in views] == [60, 60]
    run = [
        "camera=orbit",
        "preset=[]",
        "steps=2",
        "batch=2",
        "model.init_points=40",
        "evaluate.turntable=false",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        told = build(compose([f"data.path={tmp_path}", *run, "tracker=[]", "densify=none"]))(tmp_path / "run")
    assert told["scene"]["train_views"] == 2


def test_masks_cut_out(tmp_path):
    write(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "masks").mkdir()
    mask = np.zeros((30, 40), np.uint8)
    mask[:, 20:] = 255
    for name in ("1", "2", "3"):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    scene = Photos(str(tmp_path), test_names=["3.png"]).load()
    assert scene.train[0].mask is None and (scene.train[0].image[:, :20] == 255).all()
    assert torch.equal(scene.test[0].mask, torch.from_numpy(mask > 0))
    kept = Photos(str(tmp_path), masks_as_alpha=False).load().train[0]
    assert kept.alpha is None and torch.equal(kept.mask, torch.from_numpy(mask > 0))
    assert Photos(str(tmp_path), masks=False).load().train[0].alpha is None


def test_a_truth_is_brought_into_the_guessed_world(tmp_path):
    write(tmp_path, [f"{index}.png" for index in range(1, 6)])
    frames = []
    for index, (yaw, pitch) in enumerate(((-44, 2), (-20, -3), (3, 0), (24, 4), (41, 0)), 1):
        pose = np.linalg.inv(orbit(yaw, pitch, 17.0)) @ np.diag([1.0, -1, -1, 1])
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": pose.tolist()})
    meta = {"w": 80, "h": 60, "fl_x": 120.0, "frames": frames}
    (tmp_path / "truth.json").write_text(json.dumps(meta))
    scene = Photos(
        str(tmp_path), true_cameras=str(tmp_path / "truth.json"), focal=1.8, test_names=["3.png"]
    ).load()
    rows = pose_errors([view.camera for view in scene.train], scene.true_cameras)
    assert all(row["focal_percent"] == pytest.approx(20) and row["rotation_deg"] < 8 for row in rows)
    assert scene.true_cameras[0].centers.norm() == pytest.approx(5, rel=0.1), (
        "as far away as the guessed ones"
    )
    assert scene.test[0].camera.Ks[0, 0, 0] == 60, "held-out views get their true cameras"
    meta["frames"].pop()
    (tmp_path / "truth.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"expected a frame for every photograph, got none for 5\.png"):
        Photos(str(tmp_path), true_cameras=str(tmp_path / "truth.json")).load()


def test_what_cannot_be_used_is_one_line(tmp_path):
    empty, one, text = tmp_path / "empty", tmp_path / "one", tmp_path / "text"
    empty.mkdir()
    write(one, ["1.jpg"])
    write(text, ["1.jpg", "2.jpg"])
    (text / "3.jpg").write_text("no picture")
    for folder, said in (
        (empty, r"data\.path: expected two photographs or more \(\.jpg, .*\), got 0 in .*empty"),
        (one, r"data\.path: expected two photographs or more .*, got 1 \(1\.jpg\), which shows no depth"),
        (text, r"3\.jpg: cannot read the image: cannot identify image file"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            Photos(str(folder)).load()
        assert "\n" not in str(caught.value)
    (text / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"data\.yaw: expected 2 angles, of 1\.jpg to 2\.jpg, got 1"):
        Photos(str(text), yaw=[3]).load()
    with pytest.raises(
        ValueError, match=r"data\.test_names: expected names of photographs such as 1\.jpg, got 9\.jpg"
    ):
        Photos(str(text), test_names=["9.jpg"]).load()
    with pytest.raises(FileNotFoundError, match="expected the folder of a data set"):
        Photos(str(tmp_path / "nowhere")).load()


def test_a_folder_of_photographs_is_known_as_one(tmp_path):
    write(tmp_path, ["1.jpg", "2.jpg"])
    assert detect_loader(str(tmp_path)) == "photos"
    run = build(compose(["preset=head", f"data.path={tmp_path}"]))
    assert (
        type(run.data).__name__ == "Photos" and run.camera.is_learned and run.densify.max_gaussians == 10_000
    )
    with pytest.raises(ConfigError, match=r"camera: expected .* with data=photos"):
        build(compose([f"data.path={tmp_path}"]))
