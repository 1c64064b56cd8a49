import math

import pytest
import torch
from support import tiny

import splatexp.train.smoothing
from splatexp.cameras.pinhole import Camera
from splatexp.data.scene import View
from splatexp.train.smoothing import Smoothing


def view(name="a", fx=10.0, fy=10.0, width=20, height=16, back=0.0):
    """A camera at (0, 0, -back) that looks along +z."""
    viewmat = torch.eye(4)
    viewmat[2, 3] = back
    K = torch.tensor([[fx, 0, width / 2], [0, fy, height / 2], [0, 0, 1.0]])
    camera = Camera(viewmat[None], K[None], width, height)
    return View(name, camera, torch.zeros(height, width, 3, dtype=torch.uint8))


def test_width_is_that_of_a_pixel_of_the_sharpest_view():
    means = torch.tensor([[0.0, 0, 4], [0.0, 0, 0.1], [100.0, 0, 4]])
    near, far = view(fx=10, fy=20), view("b", fx=50, fy=40, back=12.0)
    pixels = Smoothing(variance=0.2).pixel_sizes(means, [near, far])
    assert pixels[0].item() == pytest.approx(min(4 / 20, 16 / 50))
    assert pixels[1].item() == pytest.approx(12.1 / 50), "too near for the first view"
    assert pixels[2] == pixels[:2].max(), "seen by none: the largest of the others"
    assert Smoothing().pixel_sizes(means[2:], [near]).item() == 0
    assert Smoothing().pixel_sizes(means[:0], [near]).shape == (0,)
    assert Smoothing(near=0.05).pixel_sizes(means, [near, far])[1].item() == pytest.approx(0.1 / 20)


def test_margin_is_a_share_of_the_picture():
    x = torch.tensor([-0.16, -0.14, 1.14, 1.16]) * 20  # of 20 px
    means = torch.stack([(x - 10) / 10 * 4, torch.zeros(4), torch.full((4,), 4.0)], 1)
    sights = torch.cat([means, means[:, [1, 0, 2]] * torch.tensor([1, 16 / 20, 1])])
    sharp, wide = view(), view("b", fx=1, fy=1)
    seen = Smoothing().pixel_sizes(sights, [sharp, wide]) == 0.4
    assert seen.tolist() == [False, True, True, False] * 2
    assert Smoothing(margin=0.2).pixel_sizes(sights, [sharp]).eq(0.4).all()


def test_chunks_change_nothing(monkeypatch):
    scene, splats = tiny.scene(), tiny.splats()
    whole = Smoothing().pixel_sizes(splats.means, scene.train)
    monkeypatch.setattr(splatexp.train.smoothing, "CHUNK_PAIRS", 35)  # seven rows at a time
    assert torch.equal(whole, Smoothing().pixel_sizes(splats.means, scene.train))
    camera = scene.train[0].camera
    by_hand = torch.full((60,), math.inf)
    for one in scene.train:
        points = splats.means.detach() @ one.camera.viewmats[0, :3, :3].T + one.camera.viewmats[0, :3, 3]
        by_hand = torch.minimum(by_hand, points[:, 2] / camera.Ks[0, 0, 0])
    assert torch.allclose(whole, by_hand, rtol=1e-5), "all see all"


def test_update_writes_in_place_when_it_is_due():
    scene, splats = tiny.scene(), tiny.splats()
    place = splats.smoothing
    smoothing = Smoothing(variance=0.2, every=10, start=3, stop=45)
    assert [step for step in range(100) if smoothing.due(step, 100)] == [3, 9, 19, 29, 39]
    assert [step for step in range(30) if Smoothing(variance=0.2, every=10).due(step, 30)] == [0, 9, 19]
    assert Smoothing(variance=0.2).due(0, 5) and not Smoothing().due(0, 5)
    smoothing.update(splats, scene.train, 2, 100)
    assert not splats.smoothing.any()
    smoothing.update(splats, scene.train, 3, 100)
    wanted = math.sqrt(0.2) * smoothing.pixel_sizes(splats.means, scene.train)
    assert splats.smoothing is place and torch.equal(place, wanted) and not place.requires_grad


@pytest.mark.parametrize(
    ("settings", "line"), [({"variance": -1}, "smoothing.variance"), ({"every": 0}, "smoothing.every")]
)
def test_smoothing_refuses(settings, line):
    with pytest.raises(ValueError, match=line):
        Smoothing(**settings)
