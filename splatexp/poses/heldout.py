"""Learned cameras and views that no camera was learned of: where they stand, and how well the rest came out.

A scene with learned cameras may have turned, shifted and grown as a whole, so a held-out camera is carried
over first: by the similarity between the training cameras as the data has them (the true ones where it knows
them) and as they were learned. What that leaves is fitted to the held-out picture, the Gaussians resting.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from splatexp.cameras.pinhole import Camera, focus
from splatexp.cameras.rigid import exp_map, moved
from splatexp.cameras.similarity import pose_errors, similarity, zoom
from splatexp.losses.photometric import Loss
from splatexp.poses.learned import mean_errors

if TYPE_CHECKING:
    from splatexp.data.scene import Scene, View
    from splatexp.gaussians.splats import Splats
    from splatexp.raster.rasterizer import Rasterizer

RATE = 2e-3  # Adam's at the start: radians, and shares of the distance to what is looked at
FACTORS = (4, 2, 1)  # a third of the steps each: pictures are reduced by these
LEAST = 64  # px of the shorter side that a reduction leaves
ALIGNED = {
    "carried": "the held-out camera moved as the training cameras were: by the similarity from the true "
    "ones, or those given where they are unknown, to those learned",
    "aligned": "then its pose fitted to the held-out picture, the Gaussians resting",
}


def carried(scene: Scene) -> list[Camera]:
    """The cameras of the held-out views in the world that was trained."""
    now = [view.camera for view in scene.train]
    before = scene.truth or scene.first_cameras
    cameras, pairs = [view.camera for view in scene.test], zip(before, now, strict=True)
    if all(torch.equal(a.viewmats, b.viewmats) and torch.equal(a.Ks, b.Ks) for a, b in pairs):
        return cameras
    across, longer = similarity(before, now), zoom(before, now)
    return [across.camera(camera, longer) for camera in cameras]


def aligned(
    splats: Splats, raster: Rasterizer, scene: Scene, view: View, start: Camera, steps: int
) -> Camera:
    """The camera of a held-out view whose pose was fitted to its picture in so many steps, from `start`.

    Returns `start` where that did not lower the loss. Masks count; the focal length stays.
    """
    device, loss = raster.device, Loss()
    frozen = splats.baked()
    for leaf in frozen.leaves().values():
        leaf.requires_grad_(False)
    background = torch.tensor(scene.background or (0.0, 0.0, 0.0)).to(device)[None]
    view, start = view.to(device), start.to(device)
    center = focus([each.camera for each in scene.train]).to(device)
    distance = (start.centers[0] - center).norm()
    scale = torch.cat([torch.ones(3, device=device), distance.expand(3)])
    twist = torch.zeros(1, 6, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([twist], lr=RATE)

    def lost(factor: int) -> tuple[torch.Tensor, Camera]:
        target, mask, _ = view.target(factor)
        viewmats = moved(start.viewmats, *exp_map(twist * scale), center)
        camera = Camera(viewmats, start.Ks, start.width, start.height)
        shown = camera.reduced(factor) if factor > 1 else camera
        image = raster(frozen, shown, sh_degree=frozen.sh_degree, background=background).image
        return torch.stack(list(loss(image, target, mask, backend=raster.backend).values())).sum(), camera

    with torch.no_grad():
        before = float(lost(1)[0])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        factor = min(FACTORS[step * len(FACTORS) // steps], max(1, min(start.width, start.height) // LEAST))
        optimizer.zero_grad()
        lost(factor)[0].backward()
        optimizer.step()
    with torch.no_grad():
        after, camera = lost(1)
    return camera if float(after) < before else start


def pose_report(scene: Scene) -> dict[str, Any]:
    """How far the training cameras are from the true ones, means and per view; {} where those are unknown.

    `pose_given` has the same means of the cameras as the data gave them.
    """
    if scene.truth is None:
        return {}
    now = [view.camera for view in scene.train]
    rows = zip(scene.train, pose_errors(now, scene.truth), strict=True)
    given = mean_errors(scene.first_cameras, scene.truth)
    return {
        **mean_errors(now, scene.truth),
        "pose_given": {name.removeprefix("pose_"): value for name, value in given.items()},
        "pose_per_view": [{"view": view.name, **row} for view, row in rows],
    }
