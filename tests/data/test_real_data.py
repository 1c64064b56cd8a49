"""The loaders on real photographs, where there are any: in the folder that SPLATEXP_DATA names."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from splatexp.data.colmap import Colmap
from splatexp.data.transforms import Transforms

DATA = Path(os.environ.get("SPLATEXP_DATA") or Path(__file__).parents[3] / "shared" / "data")


def folder(name: str) -> str:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set SPLATEXP_DATA")
    return str(DATA / name)


def observations(model: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per image: feature places [F,2] and the points [F,3] that they see, straight from the two files."""
    data, at, points = (model / "points3D.bin").read_bytes(), 8, {}
    while at < len(data):
        index, *xyz = struct.unpack_from("<Qddd", data, at)
        points[index] = xyz
        at += 51 + 8 * struct.unpack_from("<Q", data, at + 43)[0]
    data, at, seen = (model / "images.bin").read_bytes(), 8, {}
    while at < len(data):
        at += 64
        end = data.index(b"\0", at)
        (count,) = struct.unpack_from("<Q", data, end + 1)
        features = np.frombuffer(data, "<f8,<f8,<i8", count, end + 9)
        features = features[features["f2"] >= 0]
        pixels = np.stack([features["f0"], features["f1"]], axis=1)
        seen[data[at:end].decode()] = (pixels, np.array([points[i] for i in features["f2"]]))
        at = end + 9 + 24 * count
    return seen


@pytest.mark.parametrize(
    "name, train, test, points, error",
    [
        ("fox_colmap", 43, 7, 13996, 0.3),
        ("bonsai_colmap", 110, 16, 22082, 0.3),
        ("head_alexander", 46, 7, 11339, 0.4),
    ],
)
def test_points_fall_on_their_features(name, train, test, points, error):
    path = folder(name)
    scene = Colmap(path).load()
    assert (len(scene.train), len(scene.test), len(scene.points)) == (train, test, points)
    seen, misses = observations(Path(path) / "sparse" / "0"), []
    for view in scene.train + scene.test:
        pixels, world = seen[view.name]
        R, t = view.camera.viewmats[0, :3, :3].double(), view.camera.viewmats[0, :3, 3].double()
        place = torch.tensor(world) @ R.T + t
        drawn = place @ view.camera.Ks[0].double().T
        misses.append((drawn[:, :2] / drawn[:, 2:] - torch.tensor(pixels)).norm(dim=1))
    assert torch.cat(misses).mean() < error


@pytest.mark.parametrize("name", ["fox_colmap", "bonsai_colmap"])
def test_colmap_and_transforms_give_the_same_cameras(name):
    ours, theirs = Colmap(folder(name)).load(), Transforms(folder(name)).load()
    assert [view.name for view in ours.test] == [view.name for view in theirs.test]
    for one, other in zip(ours.train + ours.test, theirs.train + theirs.test, strict=True):
        assert one.name == other.name and one.sha256 == other.sha256
        assert torch.allclose(one.camera.viewmats, other.camera.viewmats, atol=1e-6)
        assert torch.allclose(one.camera.Ks, other.camera.Ks, atol=1e-4)
    assert ours.extent == pytest.approx(theirs.extent, rel=1e-5)


def test_lego_on_white_and_on_random_backgrounds():
    path = folder("lego_small")
    white, random = Transforms(path).load(), Transforms(path, background="random").load()
    assert (len(white.train), len(white.test)) == (88, 12) and white.points is None
    assert white.train[0].image[0, 0].tolist() == [255, 255, 255] and white.background == (1, 1, 1)
    assert random.random_background and random.test[0].sha256 == white.test[0].sha256
    green, _, _ = random.train[0].target(1, torch.tensor([0.0, 1.0, 0.0]))
    assert green[0, 0, 0].tolist() == [0, 1, 0]
    assert white.train[0].camera.Ks[0, 0, 0] == pytest.approx(200 / np.tan(0.6911112 / 2), rel=1e-6)


def test_heads_come_with_masks_and_their_own_split():
    scene = Transforms(folder("head")).load()
    assert (len(scene.train), len(scene.test)) == (8, 6)
    assert all(0.1 < view.mask.float().mean() < 0.9 for view in scene.train + scene.test)
    few = Transforms(
        folder("head_alexander"),
        train_file="transforms_sparse_train.json",
        test_file="transforms_sparse_test.json",
    ).load()
    assert (len(few.train), len(few.test)) == (8, 5) and few.train[0].mask is not None
    whole = {view.name: view for view in (Colmap(folder("head_alexander"), test_every=0)).load().train}
    for view in few.train + few.test:
        assert torch.equal(view.mask, whole[view.name].mask)
        assert torch.allclose(view.camera.viewmats, whole[view.name].camera.viewmats, atol=1e-5)
