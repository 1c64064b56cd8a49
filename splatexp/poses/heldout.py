"""Held-out views of a scene with learned cameras: their cameras, and the errors of the learned ones.

A scene with learned cameras may have been rotated, translated and scaled as a whole. So a held-out camera is
first moved by the similarity between the training cameras of the data (the true ones where they are known)
and the learned ones. Then its pose can be optimized on the held-out image, with the Gaussians fixed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from splatexp.cameras.pinhole import Camera, focus_point
from splatexp.cameras.rigid import exp_map, move_world
from splatexp.cameras.similarity import fit_similarity, focal_ratio, pose_errors
from splatexp.losses.photometric import Loss
from splatexp.poses.learned import mean_errors

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import SceneRasterizer

LEARNING_RATE = 2e-3  # at the start, in radians and fractions of the distance to the focus point
DOWNSCALE = (4, 2, 1)  # factors of the image, for a third of the steps each
MIN_SIDE = 64  # px, shortest side of a downscaled image
DEFINITIONS = {
    "sim3": "the held-out camera moved by the Sim(3) alignment of the training cameras: from the true ones, "
    "or those of the data where they are unknown, to the learned ones",
    "pose_opt": "its pose then optimized on the held-out image, with the Gaussians fixed",
}


def sim3_aligned_cameras(scene: Scene) -> list[Camera]:
    """Return the cameras of the held-out views in the world of the learned cameras."""
    now = [view.camera for view in scene.train]
    before = scene.true_cameras or scene.initial_cameras
    cameras = [view.camera for view in scene.test]
    pairs = zip(before, now, strict=True)
    if all(torch.equal(a.viewmats, b.viewmats) and torch.equal(a.Ks, b.Ks) for a, b in pairs):
        return cameras
    similarity = fit_similarity(before, now)
    zoom = focal_ratio(before, now)
    return [similarity.camera(camera, zoom) for camera in cameras]


def optimize_pose(
    splats: Splats, raster: SceneRasterizer, scene: Scene, view: View, start: Camera, steps: int
) -> Camera:
    """Return the camera of a held-out view with its pose optimized on its image, the Gaussians being fixed.

    The focal length stays. Pixels outside a mask do not count.

    Args:
        start: the camera to start from, which is returned where no lower loss is found.
        steps: number of optimization steps.
    """
    device, loss = raster.device, Loss()
    frozen = splats.baked()
    for leaf in frozen.leaves().values():
        leaf.requires_grad_(False)
    background = torch.tensor(scene.background or (0.0, 0.0, 0.0)).to(device)[None]
    view, start = view.to(device), start.to(device)
    center = focus_point([each.camera for each in scene.train]).to(device)
    distance = (start.centers[0] - center).norm()
    scale = torch.cat([torch.ones(3, device=device), distance.expand(3)])
    twist = torch.zeros(1, 6, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([twist], lr=LEARNING_RATE)

    def evaluate(factor: int) -> tuple[torch.Tensor, Camera]:
        target, mask, _ = view.target(factor)
        viewmats = move_world(start.viewmats, *exp_map(twist * scale), center)
        camera = Camera(viewmats, start.Ks, start.width, start.height)
        rendered = camera.downscaled(factor) if factor > 1 else camera
        image = raster(frozen, rendered, sh_degree=frozen.sh_degree, background=background).image
        return torch.stack(list(loss(image, target, mask, backend=raster.backend).values())).sum(), camera

    with torch.no_grad():
        before = float(evaluate(1)[0])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        factor = min(
            DOWNSCALE[step * len(DOWNSCALE) // steps], max(1, min(start.width, start.height) // MIN_SIDE)
        )
        optimizer.zero_grad()
        evaluate(factor)[0].backward()
        optimizer.step()
    with torch.no_grad():
        after, camera = evaluate(1)
    return camera if float(after) < before else start


def pose_report(scene: Scene) -> dict[str, Any]:
    """Return the errors of the training cameras, as means and per view; {} where the true ones are unknown.

    `pose_initial` has the same means of the cameras as the data gave them.
    """
    if scene.true_cameras is None:
        return {}
    now = [view.camera for view in scene.train]
    rows = zip(scene.train, pose_errors(now, scene.true_cameras), strict=True)
    given = mean_errors(scene.initial_cameras, scene.true_cameras)
    return {
        **mean_errors(now, scene.true_cameras),
        "pose_initial": {name.removeprefix("pose_"): value for name, value in given.items()},
        "pose_per_view": [{"view": view.name, **row} for view, row in rows],
    }
