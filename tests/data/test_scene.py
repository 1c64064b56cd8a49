import dataclasses
import hashlib
from collections import Counter

import pytest
import torch
from support.scenes import tiny_scene

from splatexp.cameras.pinhole import Camera
from splatexp.data.scene import Scene, View, hold_out


def view(height=7, width=9, name="a.png", **parts) -> View:
    camera = Camera(
        torch.eye(4)[None], torch.tensor([[[8.0, 0, 4.5], [0, 8.0, 3.5], [0, 0, 1]]]), width, height
    )
    random = torch.Generator().manual_seed(hash(name) % 1000 if "seed" not in parts else parts.pop("seed"))
    image = torch.randint(0, 256, (height, width, 3), generator=random, dtype=torch.uint8)
    return View(name, camera, image, **parts)


def moved(scene: Scene, **changes) -> Scene:
    return dataclasses.replace(scene, **{"extent": 0.0, "fingerprint": "", **changes})


def test_target_is_the_image_in_unit_range():
    one = view()
    image, mask, camera = one.target()
    assert image.shape == (1, 7, 9, 3) and image.dtype == torch.float32
    assert torch.equal((image[0] * 255).round().byte(), one.image) and mask is None and camera is one.camera


def test_target_reduces_by_block_means():
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[0, 0] = False
    one = view(mask=mask)
    for _ in range(2):  # the second answer comes from what was kept
        image, reduced, camera = one.target(2)
        assert image.shape == (1, 3, 4, 3) and (camera.width, camera.height) == (4, 3)
        assert torch.allclose(image[0, 1, 2], one.image[2:4, 4:6].float().mean((0, 1)) / 255)
        assert torch.allclose(camera.Ks[0], torch.tensor([[4.0, 0, 2.25], [0, 4.0, 1.75], [0, 0, 1]]))
        assert reduced.dtype == torch.float32 and reduced.shape == (1, 3, 4, 1)
        assert reduced[0, 0, 0, 0] == 0 and reduced.sum() == 11
    assert one.target(3)[0].shape == (1, 2, 3, 3)
    for factor in (0, 8):
        with pytest.raises(ValueError, match="factor: expected 1 to"):
            one.target(factor)


@pytest.mark.parametrize("factor", [1, 2])
def test_target_composes_on_another_background(factor):
    alpha = (
        torch.tensor([[0, 51], [255, 102]], dtype=torch.uint8).repeat_interleave(2, 0).repeat_interleave(2, 1)
    )
    straight, white, blue = torch.tensor([0.2, 0.4, 0.6]), torch.ones(3), torch.tensor([0.1, 0.0, 1.0])
    cover = alpha[..., None].float() / 255
    image = ((straight * cover + white * (1 - cover)) * 255).round().byte()
    camera = Camera(torch.eye(4)[None], torch.eye(3)[None], 4, 4)
    one = View("a", camera, image, alpha=alpha, background=(1.0, 1.0, 1.0))
    kept, _, _ = one.target(factor)
    changed, _, _ = one.target(factor, blue)
    cover = cover[::factor, ::factor]
    assert torch.allclose(kept[0], straight * cover + (1 - cover), atol=2e-3)
    assert torch.allclose(changed[0], straight * cover + blue * (1 - cover), atol=3e-3)


def test_a_background_does_nothing_to_an_opaque_image():
    one = view()
    assert torch.equal(one.target(1, torch.ones(3))[0], one.target()[0])


def test_stem_is_fit_for_a_file():
    names = {"test/r_7": "test_r_7", "0001.jpg": "0001", "a/b.c/d.png": "a_b.c_d", ".png": ".png"}
    assert {name: view(name=name).stem for name in names} == names


def test_sha256_is_of_the_pixels():
    one = view()
    assert one.sha256 == hashlib.sha256(bytes(one.image.flatten().tolist())).hexdigest()


def test_views_that_do_not_fit_their_camera_are_refused():
    one = view()
    with pytest.raises(ValueError, match=r"a.png: image: expected uint8 \(7, 9, 3\)"):
        dataclasses.replace(one, image=one.image.float())
    with pytest.raises(ValueError, match="image: expected"):
        dataclasses.replace(one, image=one.image[1:])
    with pytest.raises(ValueError, match="a.png: mask: expected"):
        dataclasses.replace(one, mask=torch.ones(9, 7, dtype=torch.bool))


def test_hold_out_takes_every_nth_in_the_order_of_names():
    names = ["c", "a", "d", "b", "e"]
    assert hold_out(names, 2) == [True, True, False, False, True]
    assert hold_out(names, 0) == [False] * 5
    assert hold_out(names, 8) == [False, True, False, False, False]
    with pytest.raises(ValueError, match="test_every"):
        hold_out(names, -1)


def test_sampling_visits_every_view_once_an_epoch_and_depends_on_seed_and_step_only():
    scene = tiny_scene()
    count = len(scene.train)
    drawn = [scene.sample(step, 3) for step in range(4 * count)]
    for epoch in range(4):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert [scene.sample(step, 3) for step in reversed(range(4 * count))] == drawn[::-1]
    assert drawn != [scene.sample(step, 4) for step in range(4 * count)]
    assert len(Counter(tuple(drawn[e * count : (e + 1) * count]) for e in range(4))) > 1


def test_extent_is_of_the_training_cameras():
    scene = tiny_scene()
    centers = torch.cat([one.camera.centers for one in scene.train])
    assert scene.extent == pytest.approx(1.1 * float((centers - centers.mean(0)).norm(dim=1).max()))
    alone = moved(scene, train=scene.train[:1])
    distance = (scene.points - alone.train[0].camera.centers).norm(dim=1)
    assert alone.extent == pytest.approx(float(distance.median()))
    assert moved(alone, points=None, colors=None).extent == 1.0


def test_the_fingerprint_follows_the_contents():
    scene = tiny_scene()
    assert moved(scene).fingerprint == scene.fingerprint
    other = dataclasses.replace(scene.train[0], image=scene.train[0].image + 1)
    masked = dataclasses.replace(scene.train[0], mask=torch.zeros(48, 48, dtype=torch.bool))
    changes = [
        {"points": scene.points + 1e-3},
        {"train": [other, *scene.train[1:]]},
        {"train": [masked, *scene.train[1:]]},
        {"train": scene.train[1:]},
        {"test": scene.test[:1]},
    ]
    prints = {moved(scene, **change).fingerprint for change in changes} | {scene.fingerprint}
    assert len(prints) == 6


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="tiny: expected at least one training image, got 0"):
        Scene("tiny", [], [])


def test_an_overlap_is_refused():
    scene = tiny_scene()
    with pytest.raises(ValueError, match="held-out view train_003 is also trained on"):
        moved(scene, test=[scene.train[3]])
    renamed = dataclasses.replace(scene.train[3], name="x")
    with pytest.raises(ValueError, match=r"held-out view x is also trained on \(as train_003\)"):
        moved(scene, test=[renamed])
    with pytest.raises(ValueError, match="expected a different name for every view, got .* twice"):
        moved(scene, train=scene.train + scene.train[:1])


def test_two_blank_images_are_no_overlap():
    blank = [
        dataclasses.replace(view(name=name), image=torch.zeros(7, 9, 3, dtype=torch.uint8)) for name in "ab"
    ]
    assert Scene("blank", blank[:1], blank[1:]).test[0].name == "b"


def test_a_pose_or_point_that_is_not_finite_is_named():
    scene = tiny_scene()
    broken = dataclasses.replace(scene.train[2], camera=scene.train[2].camera.resized(48, 48))
    broken.camera.viewmats = broken.camera.viewmats * float("nan")
    with pytest.raises(ValueError, match="the pose of train_002 is not finite"):
        moved(scene, train=[scene.train[0], broken])
    points = scene.points.clone()
    points[5, 1] = float("inf")
    with pytest.raises(ValueError, match="1 of 400 points are not finite; the first is number 5"):
        moved(scene, points=points)


def test_a_point_at_a_cameras_centre_is_refused():
    scene = tiny_scene()
    points = scene.points.clone()
    points[7] = scene.train[4].camera.centers[0]
    with pytest.raises(
        ValueError, match="1 of 400 points lie at the centre of a camera; .* number 7, at train_004"
    ):
        moved(scene, points=points)
    points[7, 0] += 1e-3
    assert len(moved(scene, points=points).points) == 400


def test_points_need_colours_of_their_shape():
    scene = tiny_scene()
    with pytest.raises(ValueError, match="points, colors: expected"):
        moved(scene, colors=None)
    with pytest.raises(ValueError, match="points, colors: expected"):
        moved(scene, colors=scene.colors[1:])
