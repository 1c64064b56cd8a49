import dataclasses
import re
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import write_colmap

from splatexp.data import detect_loader
from splatexp.data.colmap import Colmap
from splatexp.data.colmap_model import read_model


def load(folder, **settings):
    return Colmap(str(folder), **settings).load()


def test_what_was_written_is_read(tmp_path):
    truth = write_colmap(tmp_path)
    scene = load(tmp_path)
    assert [view.name for view in scene.test] == ["train_000.png", "train_008.png"]
    assert len(scene.train) == 10 and scene.name == tmp_path.name and scene.background is None
    by_name = {view.stem: view for view in scene.train + scene.test}
    for view in truth.train:  # the file lists them in another order
        got = by_name[view.name]
        assert torch.equal(got.image, view.image) and got.mask is None and got.alpha is None
        assert torch.allclose(got.camera.viewmats, view.camera.viewmats, atol=1e-6)
        assert torch.allclose(got.camera.Ks, view.camera.Ks)
    assert torch.equal(scene.points, truth.points) and torch.equal(scene.colors, truth.colors)
    assert scene.points.dtype == torch.float32 and scene.colors.dtype == torch.uint8


def test_text_and_binary_say_the_same(tmp_path):
    write_colmap(tmp_path / "a" / "set", binary=True)
    write_colmap(tmp_path / "b" / "set", binary=False)
    assert load(tmp_path / "a" / "set").fingerprint == load(tmp_path / "b" / "set").fingerprint


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0", "."])
def test_the_usual_places_are_searched(tmp_path, place):
    write_colmap(tmp_path, views=3)
    for file in list((tmp_path / "sparse" / "0").iterdir()):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        shutil.move(file, tmp_path / place / file.name)
    assert len(load(tmp_path).train) == 2 and detect_loader(str(tmp_path)) == "colmap"


def test_a_lens_is_undistorted_and_its_border_masked(tmp_path):
    truth = write_colmap(tmp_path, views=3, model="OPENCV", distortion=(0.3, 0.0, 0.0, 0.0))
    views = load(tmp_path, test_every=0).train
    for view, straight in zip(views, truth.train, strict=True):
        assert not view.mask[0, 0] and view.mask[32, 32] and view.mask.float().mean() > 0.7
        error = (view.image.float() - straight.image.float())[view.mask] / 255
        assert error.square().mean() < 10**-2.8
        assert torch.allclose(view.camera.Ks, straight.camera.Ks)


def test_smaller_images_scale_the_intrinsics_per_axis(tmp_path):
    write_colmap(tmp_path, views=3, size=62)
    (tmp_path / "images_4").mkdir()
    for file in (tmp_path / "images").iterdir():
        Image.open(file).resize((16, 15)).save(tmp_path / "images_4" / file.name)
    camera, small = load(tmp_path).train[0].camera, load(tmp_path, images="images_4").train[0].camera
    assert (small.width, small.height) == (16, 15)
    assert torch.allclose(small.Ks[0], camera.Ks[0] * torch.tensor([[16 / 62], [15 / 62], [1.0]]))


@pytest.mark.parametrize("factor, size", [(2, 32), (3, 21), (5, 13)])
def test_downscaling_is_the_mean_over_areas(tmp_path, factor, size):
    write_colmap(tmp_path, views=2)
    full, small = (
        load(tmp_path, test_every=0).train[1],
        load(tmp_path, test_every=0, downscale=factor).train[1],
    )
    fine = (
        full.image.double().repeat_interleave(size, 0).repeat_interleave(size, 1)
    )  # every pixel in size parts
    mean = fine.reshape(size, 64, size, 64, 3).mean((1, 3))
    assert (small.image - mean).abs().max() <= 0.5 + 1e-4
    assert torch.allclose(small.camera.Ks[0, :2], full.camera.Ks[0, :2] * size / 64)


def test_cameras_may_differ_in_model_and_size(tmp_path):
    write_colmap(tmp_path, views=2, binary=False)
    sparse = tmp_path / "sparse" / "0"
    with (sparse / "cameras.txt").open("a") as file:
        file.write("7 SIMPLE_PINHOLE 32 24 40 16 12\n")
    lines = (sparse / "images.txt").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.endswith("train_001.png"))
    lines[place] = lines[place].replace(" 1 train_001", " 7 train_001")
    (sparse / "images.txt").write_text("\n".join(lines))
    Image.new("RGB", (32, 24)).save(tmp_path / "images" / "train_001.png")
    scene = load(tmp_path)
    assert scene.train[0].image.shape == (24, 32, 3) and scene.test[0].image.shape == (64, 64, 3)
    assert scene.train[0].camera.Ks[0].tolist() == [[40, 0, 16], [0, 40, 12], [0, 0, 1]]


def test_masks_are_used_when_they_exist(tmp_path):
    write_colmap(tmp_path, views=3, masks=True)
    mask = load(tmp_path).train[0].mask
    assert not mask[:, :16].any() and mask[:, 16:].all()
    assert load(tmp_path, masks=False).train[0].mask is None
    assert load(tmp_path, downscale=3).train[0].mask.shape == (21, 21)
    (tmp_path / "masks" / "train_001.png").unlink()
    with pytest.warns(
        UserWarning, match="1 of 3 images have no mask and are used whole; the first is train_001"
    ):
        assert load(tmp_path).train[0].mask is None
    Image.new("L", (64, 60)).save(tmp_path / "masks" / "train_001.png")
    with pytest.raises(
        ValueError, match="train_001.png: expected a mask of its image's aspect, 64 x 64, got 64 x 60"
    ):
        load(tmp_path)


@pytest.mark.parametrize("background, behind", [("black", 0), ("white", 255)])
def test_images_with_alpha_are_composed(tmp_path, background, behind):
    write_colmap(tmp_path, views=2)
    for file in (tmp_path / "images").iterdir():
        image = Image.open(file)
        image.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255]]), 32, axis=0).repeat(64, axis=1)))
        image.save(file)
    scene = load(tmp_path, background=background)
    assert scene.background == (behind / 255,) * 3 and (scene.train[0].image[:32] == behind).all()


def test_a_split_of_its_own_wins(tmp_path):
    write_colmap(tmp_path, views=6)
    (tmp_path / "test.txt").write_text("train_004.png\ntrain_002.png\n\n")
    scene = load(tmp_path)
    assert [view.stem for view in scene.test] == ["train_002", "train_004"] and len(scene.train) == 4
    (tmp_path / "train.txt").write_text("train_001.png\n")
    assert [view.stem for view in load(tmp_path).train] == ["train_001"]
    (tmp_path / "train.txt").write_text("train_001.png\ntrain_002.png\n")
    with pytest.raises(ValueError, match="held-out view train_002.png is also trained on"):
        load(tmp_path)
    (tmp_path / "test.txt").write_text("other.png\n")
    with pytest.raises(ValueError, match=r"test.txt: expected names of images of the model, got other.png"):
        load(tmp_path)


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_without_points_is_tolerated(tmp_path, binary):
    write_colmap(tmp_path, views=2, binary=binary, points=0)
    assert load(tmp_path).points is None
    next((tmp_path / "sparse" / "0").glob("points3D.*")).unlink()
    assert load(tmp_path).points is None and load(tmp_path).colors is None


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="data.path: expected the folder of a data set, got '.*nowhere'"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="data.path: .*, got ''"):
        Colmap("").load()
    with pytest.raises(FileNotFoundError, match="no COLMAP model"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="found none"):
        detect_loader(str(tmp_path))
    write_colmap(tmp_path, views=3)
    with pytest.raises(FileNotFoundError, match="images_8: no such folder of images"):
        load(tmp_path, images="images_8")
    (tmp_path / "images" / "train_001.png").unlink()
    (tmp_path / "images" / "train_002.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="2 of 3 images of the model are missing, the first is train_001.png"
    ):
        load(tmp_path)


def test_a_model_without_images_is_refused(tmp_path):
    write_colmap(tmp_path, views=1)
    (tmp_path / "sparse" / "0" / "images.bin").write_bytes(struct.pack("<Q", 0))
    with pytest.raises(ValueError, match="got 0 images"):
        load(tmp_path)


def test_nothing_left_to_train_on_is_refused(tmp_path):
    write_colmap(tmp_path, views=2)
    with pytest.raises(ValueError, match="expected at least one training image, got 0"):
        load(tmp_path, test_every=1)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_every_truncation_is_refused(tmp_path, name):
    write_colmap(tmp_path, views=2, points=3)
    file = tmp_path / "sparse" / "0" / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}: truncated: "):
            read_model(file.parent)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=rf"{name}: malformed: 1 bytes after the last record"):
        read_model(file.parent)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_a_garbage_count_costs_nothing(tmp_path, name):
    write_colmap(tmp_path, views=2, points=3)
    file = tmp_path / "sparse" / "0" / name
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    start = time.perf_counter()
    with pytest.raises(ValueError, match="truncated"):
        read_model(file.parent)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "number, name", [(7, "FOV"), (10, "THIN_PRISM_FISHEYE"), (40, "number 40"), (-1, "number -1")]
)
def test_an_unsupported_camera_is_named(tmp_path, number, name):
    write_colmap(tmp_path, views=2)
    file = tmp_path / "sparse" / "0" / "cameras.bin"
    content = bytearray(file.read_bytes())
    content[12:16] = struct.pack("<i", number)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cameras.bin: camera 1: camera model {name} is not supported"):
        load(tmp_path)


BROKEN_TEXT = [
    ("cameras", "PINHOLE", "FOV", "line 2: camera model FOV is not supported"),
    ("cameras", " 64 64 ", " 64 6a ", "line 2: invalid literal"),
    ("cameras", "1 PINHOLE", "2 PINHOLE", "images.txt: train_.*: camera 1 does not exist"),
    ("images", r"^(\d+) \S+", r"\1 nan", r"line 2: the pose of train_\d+.png is not finite"),
    ("images", r" \d+ train_.*", "", "images.txt, line 2: "),
    ("points3D", r"^2 \S+", "2 inf", r"points3D.txt: 1 of 3 points are not finite; the first is 2: \(inf"),
    ("points3D", r"^2 .*", "2 0 0 0", "line 3: not enough values"),
    ("points3D", r"\d+ 0.5", "256 0.5", "line 2: expected a colour of 0 to 255"),
]


@pytest.mark.parametrize("name, old, new, message", BROKEN_TEXT)
def test_broken_text_is_named(tmp_path, name, old, new, message):
    write_colmap(tmp_path, views=2, binary=False, points=3)
    file = tmp_path / "sparse" / "0" / f"{name}.txt"
    text = file.read_text()
    changed = re.sub(old, new, text, flags=re.MULTILINE)
    assert changed != text
    file.write_text(changed)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_nan_in_a_binary_pose_or_point_is_named(tmp_path):
    write_colmap(tmp_path, views=2, points=3)
    sparse = tmp_path / "sparse" / "0"
    images = (sparse / "images.bin").read_bytes()
    (sparse / "images.bin").write_bytes(images[:44] + struct.pack("<d", float("nan")) + images[52:])
    with pytest.raises(ValueError, match=r"images.bin: the pose of train_\d+.png is not finite"):
        load(tmp_path)
    (sparse / "images.bin").write_bytes(images[:12] + bytes(32) + images[44:])
    with pytest.raises(ValueError, match="or has a zero quaternion"):
        load(tmp_path)
    (sparse / "images.bin").write_bytes(images)
    points = (sparse / "points3D.bin").read_bytes()
    (sparse / "points3D.bin").write_bytes(points[:16] + struct.pack("<d", float("nan")) + points[24:])
    with pytest.raises(
        ValueError, match=r"points3D.bin: 1 of 3 points are not finite; the first is 1: \(nan"
    ):
        load(tmp_path)


def test_a_point_at_a_cameras_centre_is_refused(tmp_path):
    truth = write_colmap(tmp_path, views=2, points=3)
    file = tmp_path / "sparse" / "0" / "points3D.bin"
    points = file.read_bytes()
    center = truth.train[1].camera.centers[0].double().tolist()
    file.write_bytes(points[:16] + struct.pack("<3d", *center) + points[40:])
    with pytest.raises(ValueError, match="1 of 3 points lie at the centre of a camera; .* at train_001.png"):
        load(tmp_path)


def test_an_image_of_another_size_is_refused(tmp_path):
    write_colmap(tmp_path, views=3)
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "train_001.png")
    with pytest.raises(
        ValueError, match="train_001.png: expected an image of its camera's aspect, 64 x 64, got 64 x 48"
    ):
        load(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_broken_image_is_named(tmp_path, suffix, damage):
    write_colmap(tmp_path, views=3, suffix=suffix)
    file = tmp_path / "images" / f"train_001{suffix}"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "garbage": b"\x01" * 400, "empty": b""}[damage])
    with pytest.raises(ValueError, match=f"train_001{suffix}: cannot read the image: "):
        load(tmp_path)


def test_sixteen_bits_are_refused(tmp_path):
    write_colmap(tmp_path, views=2)
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "images" / "train_000.png")
    with pytest.raises(ValueError, match="train_000.png: .*expected 8 bits per channel, got mode I;16"):
        load(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"downscale": 0}, "downscale: expected"),
        ({"background": "red"}, "background: expected one of black, white"),
    ]
    + [({"test_every": -2}, "test_every: expected 0")],
)
def test_senseless_settings_are_refused(tmp_path, settings, message):
    write_colmap(tmp_path, views=2)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Colmap(str(tmp_path)), **settings).load()
