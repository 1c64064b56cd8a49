import json

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData, PlyElement
from support.scenes import write_colmap, write_transforms

from splatexp.data import detect_loader
from splatexp.data.colmap import Colmap
from splatexp.data.transforms import Transforms


def load(folder, **settings):
    return Transforms(str(folder), **settings).load()


def edit(folder, change, name="transforms.json"):
    """Applies `change` to the JSON and writes it back."""
    meta = json.loads((folder / name).read_text())
    change(meta)
    (folder / name).write_text(json.dumps(meta))


def test_nerfstudio_is_read(tmp_path):
    truth = write_transforms(tmp_path)
    scene = load(tmp_path)
    assert detect_loader(str(tmp_path)) == "transforms" and scene.points is None
    assert [view.name for view in scene.test] == ["train_000.png", "train_008.png"]
    by_name = {view.stem: view for view in scene.train + scene.test}
    for view in truth.train:
        got = by_name[view.name]
        assert torch.equal(got.image, view.image)
        assert torch.allclose(got.camera.viewmats, view.camera.viewmats, atol=1e-6)
        assert torch.allclose(got.camera.Ks, view.camera.Ks)


def test_both_loaders_agree(tmp_path):
    write_colmap(tmp_path / "a", size=48)
    write_transforms(tmp_path / "b")
    a, b = Colmap(str(tmp_path / "a")).load(), load(tmp_path / "b")
    for ours, theirs in zip(a.train + a.test, b.train + b.test, strict=True):
        assert ours.name == theirs.name and ours.sha256 == theirs.sha256
        assert torch.allclose(ours.camera.viewmats, theirs.camera.viewmats, atol=1e-6)
    assert a.extent == pytest.approx(b.extent, rel=1e-5)


def test_nerf_synthetic_is_read(tmp_path):
    truth = write_transforms(tmp_path, synthetic=True)
    scene = load(tmp_path)
    assert [view.name for view in scene.test] == ["test/train_000", "test/train_005", "test/train_010"]
    assert len(scene.train) == 9 and scene.background == (1, 1, 1) and not scene.random_background
    view, whole = scene.train[0], truth.train[1]
    assert torch.allclose(view.camera.Ks, whole.camera.Ks, rtol=1e-5)
    hidden = (view.image == 255).all(2)
    assert 0.2 < hidden.float().mean() < 0.9 and torch.equal(view.image[~hidden], whole.image[~hidden])


def test_backgrounds(tmp_path):
    write_transforms(tmp_path, synthetic=True)
    white, black, random = (load(tmp_path, background=name) for name in ("white", "black", "random"))
    assert black.background == (0, 0, 0) and random.background == (1, 1, 1) and random.random_background
    view = random.train[0]
    assert torch.equal(view.image, white.train[0].image) and torch.equal(view.alpha, white.train[0].alpha)
    composed, _, _ = view.target(1, torch.zeros(3))
    assert torch.allclose(composed[0], black.train[0].image / 255, atol=1e-6)
    assert load(tmp_path, background="random", downscale=3).train[0].alpha.shape == (16, 16)


def test_half_transparent_pixels_are_composed_before_they_are_averaged(tmp_path):
    write_transforms(tmp_path, synthetic=True)
    pixels = np.zeros((48, 48, 4), np.uint8)
    pixels[::2, :, 0], pixels[::2, :, 3] = 200, 102  # every other row red at 0.4
    Image.fromarray(pixels).save(tmp_path / "train" / "train_001.png")
    view = load(tmp_path, downscale=2).train[0]
    row = np.array([200 * 0.4 + 255 * 0.6, 255 * 0.6, 255 * 0.6])
    assert view.image[0, 0].tolist() == np.floor((row + 255) / 2 + 0.5).tolist()


def test_a_frames_own_intrinsics_win(tmp_path):
    write_transforms(tmp_path, views=3)

    def change(meta):
        meta["frames"][1] |= {"fl_x": 50.0, "fl_y": 60.0, "cx": 20.0, "cy": 22.0}
        meta["frames"][2] |= {"w": 96, "h": 96}  # the picture is at half of it

    edit(tmp_path, change)
    views = load(tmp_path, test_every=0).train
    assert views[1].camera.Ks[0].tolist() == [[50, 0, 20], [0, 60, 22], [0, 0, 1]]
    assert torch.allclose(views[2].camera.Ks[0, :2], views[0].camera.Ks[0, :2] / 2)


def test_angles_stand_in_for_focal_lengths(tmp_path):
    write_transforms(tmp_path, views=2)

    def change(meta):
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
            del meta[key]
        meta |= {"camera_angle_x": 0.8, "camera_angle_y": 1.0}

    edit(tmp_path, change)
    K = load(tmp_path).train[0].camera.Ks[0]
    assert K[0, 0] == pytest.approx(24 / np.tan(0.4)) and K[1, 1] == pytest.approx(24 / np.tan(0.5))
    assert K[:2, 2].tolist() == [24, 24]


def test_distortion_is_undone(tmp_path):
    write_transforms(tmp_path / "a", views=2, k1=0.3, p1=0.01)
    write_colmap(tmp_path / "b", views=2, size=48, model="OPENCV", distortion=(0.3, 0.0, 0.01, 0.0))
    for file in (tmp_path / "b" / "images").iterdir():
        (tmp_path / "a" / "images" / file.name).write_bytes(file.read_bytes())
    ours, theirs = load(tmp_path / "a").train[0], Colmap(str(tmp_path / "b")).load().train[0]
    assert torch.equal(ours.image, theirs.image) and torch.equal(ours.mask, theirs.mask)
    write_transforms(tmp_path / "c", views=2, k1=0.1, camera_model="OPENCV_FISHEYE")
    assert load(tmp_path / "c").train[0].camera.width == 48


def test_missing_images_are_skipped_with_one_warning(tmp_path):
    write_transforms(tmp_path)
    for name in ("train_003", "train_007"):
        (tmp_path / "images" / f"{name}.png").unlink()
    with pytest.warns(UserWarning, match="2 of 12 frames are skipped") as caught:
        scene = load(tmp_path)
    assert len(caught) == 1 and len(scene.train) + len(scene.test) == 10
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="transforms.json: 0 images: none of the 12 frames"):
        load(tmp_path)


def test_masks_come_from_the_frames_or_from_the_folder(tmp_path):
    write_transforms(tmp_path, views=3)
    half = np.zeros((48, 48), np.uint8)
    half[:24] = 255
    for folder in ("masks", "other"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        Image.fromarray(half).save(tmp_path / "masks" / f"train_00{index}.png")
    Image.fromarray(half.T.copy()).save(tmp_path / "other" / "m.png")
    views = load(tmp_path, test_every=0).train
    assert all(view.mask[:24].all() and not view.mask[24:].any() for view in views)
    assert load(tmp_path, masks=False).train[0].mask is None
    edit(tmp_path, lambda meta: meta["frames"][1].update(mask_path="other/m.png"))
    views = load(tmp_path, test_every=0).train
    assert views[1].mask[:, :24].all() and not views[1].mask[:, 24:].any() and views[0].mask is None
    edit(tmp_path, lambda meta: meta["frames"][1].update(mask_path="other/none.png"))
    with pytest.raises(FileNotFoundError, match="none.png: no such image"):
        load(tmp_path)


@pytest.mark.parametrize("coloured", [True, False])
def test_a_point_cloud_is_read(tmp_path, coloured):
    write_transforms(tmp_path, views=2, ply_file_path="cloud.ply")
    with pytest.raises(FileNotFoundError, match="cloud.ply: no such file"):
        load(tmp_path)
    fields = [(axis, "f4") for axis in "xyz"]
    fields += [(name, "u1") for name in ("red", "green", "blue")] if coloured else []
    rows = np.zeros(5, fields)
    rows["y"] = np.arange(5)
    if coloured:
        rows["green"] = 9
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "cloud.ply"))
    scene = load(tmp_path)
    assert scene.points[:, 1].tolist() == [0, 1, 2, 3, 4]
    assert scene.colors[0].tolist() == ([0, 9, 0] if coloured else [128, 128, 128])
    content = (tmp_path / "cloud.ply").read_bytes()
    for broken in (content[:-20], b"no ply"):
        (tmp_path / "cloud.ply").write_bytes(broken)
        with pytest.raises(ValueError, match="cloud.ply: cannot read the point cloud"):
            load(tmp_path)


def test_lists_of_file_names_split(tmp_path):
    held = ["images/train_002.png"]
    write_transforms(tmp_path, views=4, test_filenames=held)
    assert [view.stem for view in load(tmp_path).test] == ["train_002"]
    edit(tmp_path, lambda meta: meta.update(train_filenames=["./images/train_001.png"]))
    assert [view.stem for view in load(tmp_path).train] == ["train_001"]
    edit(tmp_path, lambda meta: meta.update(train_filenames=["images/train_001.png", *held]))
    with pytest.raises(ValueError, match="held-out view train_002.png is also trained on"):
        load(tmp_path)


def test_other_names_of_the_two_files(tmp_path):
    write_transforms(tmp_path, synthetic=True)
    (tmp_path / "transforms_train.json").rename(tmp_path / "few.json")
    scene = load(tmp_path, train_file="few.json")
    assert len(scene.train) == 9 and len(scene.test) == 3
    with pytest.raises(FileNotFoundError, match="more.json: no such file"):
        load(tmp_path, train_file="more.json")
    with pytest.raises(FileNotFoundError, match="expected transforms.json, or transforms_train.json and"):
        load(tmp_path)


def test_an_overlap_is_refused(tmp_path):
    write_transforms(tmp_path, synthetic=True)
    train = json.loads((tmp_path / "transforms_train.json").read_text())
    edit(tmp_path, lambda meta: meta["frames"].append(train["frames"][0]), "transforms_test.json")
    with pytest.raises(ValueError, match="held-out view train_001.png is also trained on"):
        load(tmp_path)


def test_the_same_picture_under_two_names_is_an_overlap(tmp_path):
    write_transforms(tmp_path, synthetic=True)
    picture = (tmp_path / "train" / "train_001.png").read_bytes()
    (tmp_path / "test" / "train_000.png").write_bytes(picture)
    with pytest.raises(ValueError, match=r"test/train_000 is also trained on \(as train/train_001\)"):
        load(tmp_path)


def pose(value):
    return lambda meta: meta["frames"][1].update(transform_matrix=value)


BROKEN = {
    "nan": (
        pose([[float("nan")] * 4] * 4),
        "frame images/train_001.png: transform_matrix: the pose is not finite",
    ),
    "shape": (pose([[1, 0], [0, 1]]), r"transform_matrix: expected \[4, 4\], got \(2, 2\)"),
    "ragged": (pose([[1, 0], [0]]), "frame images/train_001.png: "),
    "no pose": (pose(None), "frame images/train_001.png: transform_matrix: "),
    "scale": (pose((2 * np.eye(4)).tolist()), "expected a rotation and a translation, got scale"),
    "mirror": (pose(np.diag([1.0, 1, -1, 1]).tolist()), "or a reflection"),
    "focal": (lambda meta: meta.update(fl_x="wide"), "frame images/train_000.png: could not convert string"),
    "no focal": (lambda meta: (meta.pop("fl_x"), meta.pop("fl_y")), "expected fl_x or camera_angle_x"),
    "zero focal": (lambda meta: meta.update(fl_x=-3), "positive size and focal length"),
    "model": (
        lambda meta: meta.update(camera_model="EQUIRECTANGULAR"),
        "camera model EQUIRECTANGULAR is not",
    ),
    "size": (
        lambda meta: meta.update(w=48, h=40),
        "expected an image of its camera's aspect, 48 x 40, got 48 x 48",
    ),
    "no frames": (lambda meta: meta.pop("frames"), "expected an object with a list of frames"),
    "empty": (lambda meta: meta.update(frames=[]), "got 0 images"),
    "no path": (
        lambda meta: meta["frames"][0].pop("file_path"),
        "expected a file_path in every frame, got None",
    ),
    "twice": (
        lambda meta: meta["frames"].append(meta["frames"][0]),
        "two frames have the image images/train_000.png",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    change, message = BROKEN[name]
    write_transforms(tmp_path, views=3)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_json_is_named(tmp_path):
    write_transforms(tmp_path, views=2)
    for content in (b'{"frames": [', b"\xff\xfe\x00", b""):
        (tmp_path / "transforms.json").write_bytes(content)
        with pytest.raises(ValueError, match="transforms.json: cannot be read as JSON"):
            load(tmp_path)
