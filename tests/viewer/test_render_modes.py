"""What a client is shown: the modes, the crop, the Gaussians that a browser draws, and where one stands."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import tiny

from splatexp.raster.additive import Additive
from splatexp.raster.backends import CPU, Reference
from splatexp.viewer.browser import gaussian_arrays, thumbnail
from splatexp.viewer.pose import Pose, camera_pose, interpolate_poses, nearest_camera
from splatexp.viewer.render_modes import MODES, ViewRenderer, available_modes, contribution_counts


def renderer(**settings):
    splats = tiny.splats(init_opacity=0.9)
    splats.born[:30] = 7
    return ViewRenderer(splats, Reference(), tiny.scene(), 9, **settings)


def everything(splats):
    return {name: tensor.clone() for name, tensor in splats.state_dict().items()}


def test_every_mode_draws_and_changes_nothing():
    made = renderer()
    before, random = everything(made.splats), torch.get_rng_state()
    pictures = {}
    for mode in MODES:
        picture = made.render_mode(tiny.cameras()[0], mode)
        assert picture.image.shape == (16, 20, 3) and picture.image.dtype == np.uint8 and picture.legend
        assert picture.image.std() > 0, mode
        pictures[mode] = picture.image.tobytes()
    assert len(set(pictures.values())) == len(MODES)
    after = everything(made.splats)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(random, torch.get_rng_state())
    with pytest.raises(ValueError, match="mode: expected one of colour, .*, got 'hue'"):
        made.render_mode(tiny.cameras()[0], "hue")
    assert available_modes(Reference(), True) == list(MODES) and "age" not in available_modes(CPU(), False)
    assert {"importance", "contributions"}.isdisjoint(available_modes(Additive(), True))
    with pytest.raises(ValueError, match="age: expected Gaussians of a checkpoint"):
        renderer(ages=False).render_mode(tiny.cameras()[0], "age")


def test_the_error_is_that_against_the_nearest_photograph():
    made, view = renderer(), tiny.scene().train[2]
    made.splats = tiny.splats(init_opacity=0.9)
    good = made.render_mode(view.camera, "error")
    assert "error against 2.png" in good.legend and "mean 0.00" in good.legend
    wide = camera_pose(view.camera).camera(40, 16)  # what the photograph does not show is grey
    picture = made.render_mode(wide, "error").image
    assert (picture[:, 2, 0] == picture[:, 2, 1]).all() and not (picture[:, 20, 0] == picture[:, 20, 1]).all()
    made.splats = tiny.splats(init_opacity=0.2)
    assert made.render_mode(view.camera, "error").image.mean() > 2 * good.image.mean()
    centers = [each.camera for each in made.scene.train]
    assert [nearest_camera(camera, centers, 1.0) for camera in centers] == [0, 1, 2, 3, 4]


def test_contributions_are_counted():
    made, camera = renderer(), tiny.cameras()[0]
    with torch.no_grad():
        counts, more = contribution_counts(made, camera)
        shares = made.raster.attribute(made.rasterize(camera), torch.zeros(1, 16, 20, 0))
    total = int(shares.pixels.sum())
    assert not more and counts.max() > 4
    assert total <= int(counts.sum()) <= 1.5 * total  # counts are rounded up to the next of a few
    first = tiny.splats(init_opacity=0.9)
    first.opacity_logits.data[3:] = -30.0  # three Gaussians: nothing to round
    made = replace(made, splats=first)
    with torch.no_grad():
        counts, _ = contribution_counts(made, camera)
        shares = made.raster.attribute(made.rasterize(camera), torch.zeros(1, 16, 20, 0))
    assert set(counts.unique().tolist()) <= {0, 1, 2, 3} and int(counts.sum()) == int(shares.pixels.sum()) > 0


def test_a_crop_leaves_out_what_is_outside():
    made, camera = renderer(), tiny.cameras()[0]
    low, high = np.array([-2.0, -2, -2]), np.array([0.0, 2, 2])
    none = made.render_mode(camera, "alpha", (high, high)).image
    some, whole = (made.render_mode(camera, "alpha", box).image for box in ((low, high), None))
    assert none.max() == 0 < some.mean() < whole.mean()
    kept = gaussian_arrays(made.splats, (low, high))
    assert {name: part.shape[1:] for name, part in kept.items()} == {
        "centers": (3,), "covariances": (3, 3), "rgbs": (3,), "opacities": (1,)
    }  # fmt: skip
    assert len(kept["centers"]) == int((made.splats.means[:, 0] <= 0).sum()) < len(made.splats)
    view = made.scene.train[0]
    assert thumbnail(view, 10).shape == (8, 10, 3) and thumbnail(view, 99).shape == (16, 20, 3)


def test_a_pose_is_a_camera_and_a_flight_ends_there():
    camera = tiny.cameras()[3]
    pose = camera_pose(camera)
    assert torch.allclose(pose.camera(20, 16).viewmats, camera.viewmats, atol=1e-6)
    assert torch.allclose(pose.camera(20, 16).Ks, camera.Ks, atol=1e-4)
    narrow = camera_pose(camera, aspect=0.5).camera(50, 100)  # as wide a view on a narrow canvas
    assert 50 / float(narrow.Ks[0, 0, 0]) == pytest.approx(20 / 20.0)
    start = Pose(-camera_pose(tiny.cameras()[0]).wxyz, np.zeros(3), 0.5)
    path = list(interpolate_poses(start, pose))
    assert path[-1] is pose and all(abs(np.linalg.norm(each.wxyz) - 1) < 1e-9 for each in path)
    turns = [abs(float(one.wxyz @ other.wxyz)) for one, other in zip(path, path[1:], strict=False)]
    assert min(turns) > 0.9  # no jump, whatever the signs of the quaternions
