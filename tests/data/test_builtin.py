import dataclasses

import numpy as np
import pytest
import torch
from support.scenes import tiny_scene

from splatexp.data.builtin import still_life
from splatexp.data.builtin.dataset import Builtin

SMALL = Builtin(size=16, train_views=3, test_views=2, points=60, samples=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "splatexp"


def test_what_comes_of_the_defaults():
    settings = Builtin()
    assert settings.train_views >= 40 and settings.test_views >= 8 and settings.size == 256


def test_a_scene_is_made_and_kept(cache):
    scene = SMALL.load()
    assert [len(scene.train), len(scene.test), len(scene.points)] == [3, 2, 60]
    assert scene.name == "builtin" and scene.background == still_life.BACKDROP
    assert {view.name for view in scene.test} == {"test_000", "test_001"}
    (file,) = cache.iterdir()
    made = file.stat().st_mtime_ns
    assert SMALL.load().fingerprint == scene.fingerprint and file.stat().st_mtime_ns == made
    file.unlink()
    assert SMALL.load().fingerprint == scene.fingerprint  # made again, it is the same


def test_the_cache_can_be_left_out(cache):
    dataclasses.replace(SMALL, cache=False).load()
    assert not cache.exists()


def test_every_setting_of_the_making_has_its_own_file():
    changes = [
        {"size": 17},
        {"train_views": 4},
        {"test_views": 1},
        {"points": 61},
        {"noise": 0.5},
        {"samples": 2},
    ]
    files = {dataclasses.replace(SMALL, **change).cache_file() for change in changes} | {SMALL.cache_file()}
    assert len(files) == 7
    assert dataclasses.replace(SMALL, downscale=2).cache_file() == SMALL.cache_file()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "shape"])
def test_a_broken_cache_is_made_anew_with_a_warning(cache, damage):
    scene = SMALL.load()
    file = SMALL.cache_file()
    content = file.read_bytes()
    middle = len(content) // 3
    flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    if damage == "shape":
        np.savez(
            file, images=np.zeros(3, np.uint8), points=np.zeros(3, np.float32), colors=np.zeros(3, np.uint8)
        )
    elif damage == "other":
        np.savez(file, nothing=np.zeros(3))
    else:
        file.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="the cached scene is broken .* it is made again"):
        assert SMALL.load().fingerprint == scene.fingerprint
    assert SMALL.load().fingerprint == scene.fingerprint
    assert len(list(cache.iterdir())) == 1  # nothing half-written is left


def test_a_cache_that_cannot_be_written_is_only_a_warning(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match="could not be cached"):
        assert len(SMALL.load().train) == 3
    assert blocked.read_text() == "not a folder"


def test_a_full_disk_leaves_nothing_behind(cache, monkeypatch):
    def full(file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        SMALL.load()
    assert list(cache.iterdir()) == []


def test_initial_points_lie_on_what_the_cameras_see():
    scene = dataclasses.replace(SMALL, points=300, noise=0.0, size=32, samples=2).load()
    surfaces = []
    for primitive in still_life.PRIMITIVES:
        local = np.abs(primitive.local(scene.points.numpy().T))
        x, y, z = primitive.size
        if primitive.kind == "sphere":
            surfaces.append(np.abs(np.linalg.norm(local, axis=0) - x))
        elif primitive.kind == "box":
            surfaces.append(np.abs((local - np.array([[x], [y], [z]])).max(0)))
        else:
            surfaces.append(np.abs(np.maximum(np.hypot(local[0], local[1]) - x, local[2] - z)))
    assert np.min(surfaces, axis=0).max() < 1e-4
    assert scene.colors.float().std() > 20


def test_cameras_and_pictures_agree():
    scene = tiny_scene(size=64)
    errors = []
    for view in scene.train:
        place = view.camera.viewmats[0, :3, :3] @ scene.points.T + view.camera.viewmats[0, :3, 3:]
        pixel = (view.camera.Ks[0] @ place)[:2] / place[2]
        u, v = pixel.floor().long().clamp(0, 63)
        errors.append((view.image[v, u].float() - scene.colors).abs().mean(1))
    assert torch.stack(errors).median() < 25  # most points are seen from most places in their own colour


def test_held_out_views_lie_between_the_training_views():
    scene = tiny_scene(views=56, size=8, points=10, test_views=8)
    train, test = (torch.cat([v.camera.centers for v in views]) for views in (scene.train, scene.test))
    assert torch.cdist(test, train).min(1).values.max() < 1.6
    assert torch.cdist(test, train).min() > 0.05
    assert test[:, 2].min() > train[:, 2].min() and test[:, 2].max() < train[:, 2].max()


def test_downscale_is_the_mean():
    full = dataclasses.replace(SMALL, cache=False).load().train[0]
    small = dataclasses.replace(SMALL, cache=False, downscale=2).load().train[0]
    mean = full.image.float().reshape(8, 2, 8, 2, 3).mean((1, 3))
    assert (small.image - mean).abs().max() <= 0.5 and small.camera.width == 8
    assert torch.allclose(small.camera.Ks[0, :2], full.camera.Ks[0, :2] / 2)


def test_no_points_and_no_held_out_views():
    scene = dataclasses.replace(SMALL, points=0, test_views=0).load()
    assert scene.points is None and scene.colors is None and scene.test == []


@pytest.mark.parametrize(
    "name, value", [("size", 4), ("train_views", 0), ("samples", 0), ("noise", -1.0), ("downscale", 0)]
)
def test_senseless_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        dataclasses.replace(SMALL, **{name: value}).load()
