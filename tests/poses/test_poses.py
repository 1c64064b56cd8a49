"""Cameras that learn: motions, gauges, what training and resuming do with them."""

import copy
import json
import math

import pytest
import torch
from support import tiny
from train import test_loop

from splatexp.cameras.pinhole import Camera, route_intrinsics_gradient
from splatexp.cameras.rigid import cross_matrices, dolly, exp_map, rotations_from_6d
from splatexp.cameras.similarity import fit_similarity, focal_ratio, pose_errors, rotation_degrees, umeyama
from splatexp.data.perturb import Perturb
from splatexp.poses import FOCAL, POSE, SE3, Fixed, Orbit, Rot6d
from splatexp.poses.files import load_cameras, save_cameras
from splatexp.raster.backends import CPU
from splatexp.schedules.curve import Curve

KINDS = (Orbit, Rot6d, SE3)
fit = test_loop.fit


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def doubled(rig):
    """The rig's constants in float64, so that finite differences are exact enough."""
    return {name: tensor.double() for name, tensor in rig.base.items()}


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 0.011, 2.0])
def test_exponential_map_is_that_of_the_matrix(scale):
    twists = random(5, 6, scale=scale)
    rotations, shifts = exp_map(twists)
    matrix = torch.zeros(5, 4, 4, dtype=torch.float64)
    matrix[:, :3, :3], matrix[:, :3, 3] = cross_matrices(twists[:, :3]), twists[:, 3:]
    exact = torch.matrix_exp(matrix)
    assert torch.allclose(rotations, exact[:, :3, :3], atol=1e-13)
    assert torch.allclose(shifts, exact[:, :3, 3], atol=1e-13)
    assert torch.autograd.gradcheck(exp_map, twists.requires_grad_(), atol=1e-7)


def test_six_numbers_are_a_rotation():
    rotations = rotations_from_6d(random(7, 6))
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3, dtype=torch.float64).expand(7, 3, 3))
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_is_learned(kind):
    scene = tiny.scene()
    settings = kind()
    base = doubled(settings.rig(scene, tiny.splats(), scene.train))
    points, K = random(9, 3), scene.train[0].camera.Ks.double()

    def seen(pose, focal):
        viewmats = dolly(settings.viewmats(base, pose), focal.exp(), base["center"])
        factor = torch.stack([focal.exp(), focal.exp(), torch.ones_like(focal)], 1)
        through = route_intrinsics_gradient(viewmats, (K * factor[..., None]).expand(5, 3, 3))
        local = points @ through[:, :3, :3].mT + through[:, None, :3, 3]
        pixels = local @ K.mT  # K stands still here: its gradient comes through the view matrices
        return pixels[..., :2] / pixels[..., 2:]

    pose = random(5, kind.params_per_view, scale=0.1).requires_grad_()
    focal = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda pose: seen(pose, focal), pose)
    # the value does not move with K's, so the derivative is held against that of the plain projection
    (ours,) = torch.autograd.grad(seen(pose, focal).square().sum(), focal)
    step = 1e-6

    def plain(focal):
        factor = torch.tensor([math.exp(focal), math.exp(focal), 1.0], dtype=torch.float64)
        viewmats = dolly(settings.viewmats(base, pose.detach()), factor[:1], base["center"])
        local = points @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]
        pixels = local @ (K[0] * factor[:, None]).T
        return float((pixels[..., :2] / pixels[..., 2:]).square().sum())

    assert float(ours) == pytest.approx((plain(step) - plain(-step)) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_learned_yet_is_the_given_camera(kind):
    scene = tiny.scene()
    rig = kind(start=3).rig(scene, tiny.splats(), scene.train)
    for index, (now, view) in enumerate(zip(rig.cameras(), scene.train, strict=True)):
        assert torch.allclose(now.viewmats, view.camera.viewmats, atol=1e-6)
        assert torch.equal(now.Ks, view.camera.Ks)
        assert rig.camera(index, view.camera, 2) is view.camera, "before it starts"


def test_an_orbit_keeps_aim_distance_and_level():
    scene = tiny.scene()
    splats = tiny.splats()
    settings = Orbit(dolly=False)
    rig = settings.rig(scene, splats, scene.train)
    splats.shared[POSE].data = random(5, 2, scale=0.2).float()
    splats.shared[FOCAL].data.fill_(math.log(1.2))
    for now, view in zip(rig.cameras(), scene.train, strict=True):
        ahead = now.viewmats[0, :3, :3] @ rig.base["center"] + now.viewmats[0, :3, 3]
        assert torch.allclose(ahead[:2], torch.zeros(2), atol=1e-5), "aims at the same point"
        center = rig.base["center"]
        assert torch.allclose((now.centers - center).norm(), (view.camera.centers - center).norm(), atol=1e-4)
        assert abs(float(now.viewmats[0, 0, 2])) < 1e-3, "the x axis stays level"
        assert float(now.Ks[0, 0, 0] / view.camera.Ks[0, 0, 0]) == pytest.approx(1.2)
        assert torch.equal(now.Ks[0, :2, 2], view.camera.Ks[0, :2, 2])


def test_the_distance_follows_the_focal_length():
    scene, splats = tiny.scene(), tiny.splats()
    rig = Orbit().rig(scene, splats, scene.train)
    splats.shared[FOCAL].data.fill_(math.log(1.5))
    now, given = rig.cameras()[0], scene.train[0].camera
    center = rig.base["center"]
    assert torch.allclose(now.centers - center, 1.5 * (given.centers - center), atol=1e-5)
    beside = center + 0.01 * given.viewmats[0, 0, :3]  # what is at the centre keeps its size

    def across(camera):
        local = camera.viewmats[0, :3, :3] @ beside + camera.viewmats[0, :3, 3]
        return float(camera.Ks[0, 0, 0] * local[0] / local[2])

    assert across(now) == pytest.approx(across(given), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "gauge"), [(Orbit, "mean"), (Orbit, "first"), (SE3, "mean"), (SE3, "first")]
)
def test_the_gauge_holds(kind, gauge):
    scene, splats = tiny.scene(), tiny.splats()
    settings = kind(gauge=gauge, start=0, lr=0.01)
    fit(splats, scene, 8, camera=settings, raster=CPU(), batch=2)
    pose = splats.shared[POSE].detach()[:, settings.gauge_columns]
    held = pose[0] if gauge == "first" else pose.mean(0)
    assert held.abs().max() < 1e-8 and pose.abs().max() > 1e-3
    if kind is Orbit:
        assert splats.shared[POSE][0, 1] != 0, "a pitch is seen, so no gauge holds it"


def test_a_prior_pulls_back():
    scene, weak, strong = tiny.scene(), tiny.splats(), tiny.splats()
    for splats, weight in ((weak, 0.0), (strong, 100.0)):
        fit(splats, scene, 10, camera=Rot6d(gauge="prior", prior=weight, start=0, lr=0.01), raster=CPU())
    assert strong.shared[POSE].abs().mean() < 0.5 * weak.shared[POSE].abs().mean()
    with pytest.raises(ValueError, match=r"camera\.gauge: expected one of first, prior, got 'mean'"):
        Rot6d(gauge="mean")


def test_ranges_and_windows_hold():
    scene, splats = tiny.scene(), tiny.splats()
    settings = Orbit(
        start=3, stop=6, lr=1.0, focal_lr=1.0, max_angle=2.0, max_focal_factor=1.1, gauge="first"
    )
    seen = []
    fit(
        splats, scene, 9, camera=settings, raster=CPU(),
        on_step=lambda _, s: seen.append(torch.cat([s.shared[POSE].flatten(), s.shared[FOCAL]]).detach()),
    )  # fmt: skip
    assert not seen[2].any() and seen[3].any() and torch.equal(seen[5], seen[8])
    assert seen[5][:-1].abs().max() == pytest.approx(math.radians(2)) and seen[5][-1].abs() <= math.log(
        1.1001
    )


def test_fixed_cameras_change_no_bit():
    scene, one, other = tiny.scene(), tiny.splats(), tiny.splats()
    fit(one, scene, 6, raster=CPU())
    fit(other, scene, 6, raster=CPU(), camera=Fixed())
    assert not other.shared
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_uninterrupted(kind):
    scene = tiny.scene(random_background=True)
    whole, half, rest = (tiny.splats() for _ in range(3))
    more = {
        "densify": test_loop.BUSY,
        "seed": 4,
        "camera": kind(start=5, lr=0.01),
        "raster": CPU(),
        "batch": 2,
    }
    fit(whole, scene, 24, **more)
    kept = {}

    def save(step, splats):
        if step == 13:
            kept.update({name: tensor.clone() for name, tensor in splats.state_dict().items()})

    fit(half, scene, 24, on_step=save, **more)
    rest.load_state_dict(kept)
    fit(rest, scene, 24, start=14, **more)
    assert whole.shared[POSE].any() and f"exp_avg.{POSE}" in kept
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, rest.state_dict()[name]), name


def test_other_views_are_refused():
    scene, splats = tiny.scene(), tiny.splats()
    Orbit().rig(scene, splats, scene.train)
    fewer = copy.copy(scene)
    fewer.train = scene.train[:3]
    with pytest.raises(ValueError, match=r"camera\.pose: expected \(3, 2\) for 3 views, got \(5, 2\)"):
        Orbit().rig(fewer, splats, fewer.train)


def test_a_perturbed_orbit_is_found_again():
    scene = Perturb(orbit=4.0, seed=1)(tiny.scene())
    splats = tiny.splats(init_opacity=0.9)  # the true Gaussians
    start = [
        row["rotation_deg"] for row in pose_errors([view.camera for view in scene.train], scene.true_cameras)
    ]
    from splatexp.train.optimizer import Adam

    still = Adam(means=0, quats=0, log_scales=0, opacity_logits=0, sh0=0, shN=0)
    settings = Orbit(start=0, lr=5e-3, focal_lr=0, anneal=Curve("cosine", end=0.02), gauge="prior", prior=0)
    fit(splats, scene, 150, camera=settings, optimizer=still, raster=CPU())
    learned = [view.camera for view in settings.with_learned_cameras(scene, splats).train]
    found = pose_errors(learned, scene.true_cameras)
    after = [row["rotation_deg"] for row in found]
    assert max(start) > 2 and max(after) < 0.3, (start, after)


def test_the_record_tells_where_the_cameras_are():
    rows = []

    class Numbers:
        def log(self, step, scalars):
            rows.append(scalars)

    scene = Perturb(orbit=3.0, focal=10.0)(tiny.scene())
    fit(tiny.splats(), scene, 4, camera=Orbit(start=2), raster=CPU(), tracker=Numbers(), log_every=2)
    first, last = rows
    assert (
        first["camera_rotation_mean_deg"] < 0.01
        and first["camera_focal_factor"] == 1
        and first["lr_camera"] == 0
    )
    assert (
        last["camera_rotation_max_deg"] > 0.03
        and last["camera_focal_factor"] != 1
        and last["lr_camera_focal"] > 0
    )
    assert first["pose_focal_percent"] == pytest.approx(10, abs=0.01) and first["pose_rotation_deg"] > 0.5


def test_learned_cameras_come_back_from_their_file(tmp_path):
    scene, splats = tiny.scene(), tiny.splats()
    settings = SE3(start=0, focal_lr=0.01, lr=0.01)
    fit(splats, scene, 5, camera=settings, raster=CPU())
    placed = settings.with_learned_cameras(scene, splats)
    save_cameras(tmp_path, placed)
    for ours, theirs in zip(load_cameras(tmp_path, scene), placed.train, strict=True):
        assert torch.allclose(ours.viewmats, theirs.camera.viewmats, atol=1e-6)
        assert torch.equal(ours.Ks, theirs.camera.Ks)
    frame = json.loads((tmp_path / "cameras.json").read_text())["frames"][0]
    assert frame["file_path"] == "0.png" and len(frame["transform_matrix"]) == 4
    assert placed.given_cameras == scene.initial_cameras and placed.fingerprint == scene.fingerprint
    with pytest.raises(ValueError, match=r"cameras\.json: expected the training cameras of other"):
        load_cameras(
            tmp_path, copy.replace(scene, name="other") if hasattr(copy, "replace") else renamed(scene)
        )


def renamed(scene):
    other = copy.copy(scene)
    other.name, other.train = "other", [copy.copy(view) for view in scene.train]
    other.train[0].name = "unknown.png"
    return other


def test_a_similarity_is_found_and_undone():
    cameras = [tiny.cameras()[index] for index in range(6)]
    turn = exp_map(random(1, 6))[0][0]
    moved = [similarity_of(camera, 1.7, turn, torch.tensor([3.0, -1.0, 2.0])) for camera in cameras]
    found = fit_similarity(cameras, moved)
    assert found.scale == pytest.approx(1.7, rel=1e-5) and torch.allclose(found.rotation, turn, atol=1e-6)
    assert max(max(row.values()) for row in pose_errors(moved, cameras)) < 1e-3
    carried = found.camera(cameras[2], zoom=1.1)
    assert torch.allclose(carried.viewmats[0, :3, 3], moved[2].viewmats[0, :3, 3], atol=1e-4)
    assert float(carried.Ks[0, 0, 0] / cameras[2].Ks[0, 0, 0]) == pytest.approx(1.1)
    assert focal_ratio(cameras, moved) == pytest.approx(1)
    assert umeyama(torch.arange(4.0)[:, None].expand(4, 3), torch.rand(4, 3)) is None, "a line"
    assert fit_similarity(cameras[:1], moved[:1]).scale == 1


def similarity_of(camera, scale, rotation, shift):
    """The camera in a world that was turned, scaled and shifted."""
    center = scale * rotation @ camera.centers[0].double() + shift
    viewmats = torch.eye(4, dtype=torch.float64)[None]
    viewmats[0, :3, :3] = camera.viewmats[0, :3, :3].double() @ rotation.T
    viewmats[0, :3, 3] = -viewmats[0, :3, :3] @ center
    return Camera(viewmats.float(), camera.Ks, camera.width, camera.height)


def test_pose_errors_are_what_was_done_to_the_cameras():
    truth = [tiny.cameras()[index] for index in range(6)]
    worse = list(truth)
    turned = exp_map(torch.tensor([[0, 0, math.radians(6.0), 0, 0, 0]]))[0]
    viewmats = truth[0].viewmats.clone()
    viewmats[:, :3] = turned @ viewmats[:, :3]  # about its own centre
    K = truth[0].Ks * torch.tensor([1.2, 1.2, 1.0])[:, None]
    worse[0] = Camera(viewmats, K, truth[0].width, truth[0].height)
    rows = pose_errors(worse, truth)
    assert rows[0]["rotation_deg"] == pytest.approx(5, abs=0.1)  # one of six: the mean takes its sixth
    assert all(row["rotation_deg"] == pytest.approx(1, abs=0.1) for row in rows[1:])
    assert rows[0]["translation"] < 1e-3 and rows[0]["focal_percent"] == pytest.approx(20)
    assert float(
        rotation_degrees(exp_map(torch.tensor([[1e-5, 0, 0, 0, 0, 0]]).double())[0])
    ) == pytest.approx(math.degrees(1e-5), rel=1e-6)
