import math

import pytest
import torch

from splatexp.cameras.pinhole import Camera, focus_point, look_at, route_intrinsics_gradient
from splatexp_kernels.project import project

UP = torch.tensor([0.0, 0.0, 1.0])


def ring(angles, radius=4.0, height=1.0, target=(0.5, -0.2, 0.3)) -> list[Camera]:
    angles, target = torch.as_tensor(angles), torch.tensor(target)
    eyes = target + torch.stack(
        [radius * angles.cos(), radius * angles.sin(), torch.full_like(angles, height)], 1
    )
    K = torch.tensor([[100.0, 0, 40], [0, 110.0, 30], [0, 0, 1]])
    return [Camera(viewmat[None], K[None], 80, 60) for viewmat in look_at(eyes, target, UP)]


def test_look_at_puts_the_target_on_the_axis_and_up_upwards():
    camera = ring([0.3])[0]
    target = camera.viewmats[0] @ torch.tensor([0.5, -0.2, 0.3, 1.0])
    assert torch.allclose(target[:3], torch.tensor([0.0, 0.0, math.hypot(4, 1)]), atol=1e-6)
    assert (camera.viewmats[0, :3, :3] @ UP)[1] < 0  # up is against +y
    assert torch.linalg.det(camera.viewmats[0, :3, :3]) == pytest.approx(1)
    assert torch.allclose(
        camera.centers[0], torch.tensor([0.5 + 4 * math.cos(0.3), -0.2 + 4 * math.sin(0.3), 1.3])
    )


def test_resized_scales_each_axis_by_its_own_ratio():
    camera = ring([0.0])[0].resized(27, 45)
    assert (camera.width, camera.height) == (27, 45)
    assert torch.allclose(camera.Ks[0], torch.tensor([[33.75, 0, 13.5], [0, 82.5, 22.5], [0, 0, 1]]))


def test_reduced_scales_by_the_factor_and_cuts_off_the_rest():
    camera = ring([0.0])[0].downscaled(7)
    assert (camera.width, camera.height) == (11, 8)
    assert torch.allclose(camera.Ks[0, :2, 2], torch.tensor([40 / 7, 30 / 7]))


def test_a_batch_is_indexed_and_sliced():
    cameras = ring(torch.linspace(0, 1, 5))
    batch = Camera(torch.cat([c.viewmats for c in cameras]), torch.cat([c.Ks for c in cameras]), 80, 60)
    assert len(batch) == 5 and len(batch[1:3]) == 2
    assert torch.equal(batch[-1].viewmats, cameras[-1].viewmats)
    assert batch.to("cpu").centers.shape == (5, 3)


@pytest.mark.parametrize(
    "viewmats, Ks, size, message",
    [
        (torch.eye(4), torch.eye(3)[None], 8, "viewmats: expected"),
        (torch.eye(4)[None], torch.eye(4)[None], 8, "Ks: expected"),
        (torch.eye(4)[None], torch.eye(3).repeat(2, 1, 1), 8, "Ks: expected 1 matrices"),
        (torch.eye(4)[None], torch.eye(3)[None], 0, "at least 1 pixel"),
    ],
)
def test_wrong_shapes_are_named(viewmats, Ks, size, message):
    with pytest.raises(ValueError, match=message):
        Camera(viewmats, Ks, size, size)


def test_focus_is_where_the_axes_meet():
    assert torch.allclose(focus_point(ring([0.0, 1.0, 2.5])), torch.tensor([0.5, -0.2, 0.3]), atol=1e-5)


def test_focus_of_parallel_axes_lies_ahead():
    cameras = ring([0.0]) * 3
    ahead = focus_point(cameras) - cameras[0].centers[0]
    assert torch.allclose(ahead, cameras[0].forwards[0], atol=1e-5)


def test_focus_of_cameras_that_look_outwards_lies_ahead_of_their_mean():
    outward = [
        Camera(c.viewmats * torch.tensor([[-1.0], [1], [-1], [1]]), c.Ks, 80, 60)
        for c in ring([0.0, 0.4, 0.8])
    ]
    middle = torch.cat([camera.centers for camera in outward]).mean(0)
    forward = torch.cat([camera.forwards for camera in outward]).mean(0)
    assert (focus_point(outward) - middle) @ forward > 0


def test_projection_is_differentiable_by_intrinsics():
    """Against finite differences in float64; one Gaussian lies beyond the Jacobian's clamp."""
    d, free = torch.float64, torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    means = torch.tensor([[0.1, 0.2, 0], [-0.8, 0.3, 1], [0.7, -0.5, -1], [3.6, 0.2, 0.3]], dtype=d)
    scales = torch.tensor([[0.3, 0.2, 0.4], [0.5, 0.1, 0.2], [0.2, 0.3, 0.1], [0.9, 0.7, 0.8]], dtype=d)
    quats = torch.linspace(-1, 1, 16, dtype=d).reshape(4, 4).cos()
    viewmats = torch.eye(4, dtype=d).repeat(2, 1, 1)
    viewmats[:, :3, 3] = torch.tensor([[0.1, -0.1, 4.0], [-0.2, 0.1, 4.5]])
    fixed = torch.tensor([[[36.0, 0, 20.3], [0, 39.6, 14.8], [0, 0, 1]]], dtype=d).repeat(2, 1, 1)

    def projected(values, viewmats):
        Ks = fixed.clone()
        Ks[:, free] = values
        through = route_intrinsics_gradient(viewmats, Ks)
        assert not values.requires_grad or (torch.equal(through, viewmats) and through.requires_grad)
        found = project(
            means, quats, scales, torch.full((4,), 0.9, dtype=d), through, Ks, 40, 30, prefilter=True,
            backend="reference",
        )  # fmt: skip
        assert (found.radii > 0).all()
        return found.means2d, found.conics, found.depths, found.compensations

    values = fixed[:, free].clone().requires_grad_()
    assert torch.autograd.gradcheck(projected, [values, viewmats.requires_grad_()])
    assert route_intrinsics_gradient(viewmats, fixed) is viewmats
