"""The error of a rendered image against the nearest photograph, pixel by pixel.

Each pixel is projected into the world by its depth, and from there into the photograph. Where the camera is
where the photograph was taken, the depth has no influence and the comparison is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.data.scene import View
    from splatexp.raster.rasterizer import Render

OCCLUSION_MARGIN = 0.05  # a point is hidden if it lies this fraction of the depth behind another
SAME_PLACE = 1e-3  # of the distance `far`: a camera nearer to the photograph's has no occlusions against it
DEPTH_MAP_SIZE = 256  # px, longer side of the depth map that tells which points a photograph shows


def photo_error(
    render: Render, camera: Camera, view: View, depth_of: Callable[[Camera], Render], far: float
) -> tuple[Tensor, Tensor]:
    """Return the difference between a render and a photograph.

    Args:
        render: an image of `camera` (C = 1), with depth.
        depth_of: renders with depth what another camera sees, to find points that the photograph cannot show.
        far: least distance of the background, where nothing is rendered, in world units.

    Returns: the mean absolute difference of the channels [H,W], and whether the photograph shows that point,
    [H,W] bool.
    """
    image = render.image[0].clamp(0, 1)
    device = render.image.device
    photo_camera = view.camera.to(device)
    opaque = render.alpha[0, ..., 0] > 0.5
    depth = _depth(render)
    depth = torch.where(opaque, depth, depth.amax().clamp_min(far))
    inverse = torch.linalg.inv(camera.viewmats[0])
    points = (_rays(camera) * depth[..., None]) @ inverse[:3, :3].T + inverse[:3, 3]
    local = points @ photo_camera.viewmats[0, :3, :3].T + photo_camera.viewmats[0, :3, 3]
    z = local[..., 2]
    pixels = (local / z.clamp_min(1e-9)[..., None]) @ photo_camera.Ks[0].T
    # coordinates in [-1,1], as grid_sample expects them
    grid = 2 * pixels[..., :2] / pixels.new_tensor([photo_camera.width, photo_camera.height]) - 1
    known = (z > 0) & (grid.abs() <= 1).all(-1)
    if view.mask is not None:
        known &= _sampled(view.mask.to(device)[None].float(), grid)[..., 0] > 0.5
    if float((camera.centers - photo_camera.centers).norm()) > SAME_PLACE * far:
        known &= z <= (1 + OCCLUSION_MARGIN) * _front_depth(photo_camera, grid, depth_of)
    photo = _sampled(view.image.to(device).permute(2, 0, 1) / 255, grid)
    return (image - photo).abs().mean(-1), known


def _front_depth(photo_camera: Camera, grid: Tensor, depth_of: Callable[[Camera], Render]) -> Tensor:
    """Return the depth [H,W] of what a photograph shows at `grid` [H,W,2]; infinite where that is nothing."""
    scale = min(1.0, DEPTH_MAP_SIZE / max(photo_camera.width, photo_camera.height))
    width, height = (max(1, round(scale * side)) for side in (photo_camera.width, photo_camera.height))
    render = depth_of(photo_camera.resized(width, height))
    front = torch.where(render.alpha[0, ..., 0] > 0.5, _depth(render), torch.inf)
    return _sampled(front[None], grid, "nearest")[..., 0]  # depths on both sides of an edge have no mean


def _depth(render: Render) -> Tensor:
    assert render.depth is not None
    return render.depth[0, ..., 0]


def _rays(camera: Camera) -> Tensor:
    """Return the rays [H,W,3] through the centres of the pixels in camera coordinates, with z = 1."""
    K = camera.Ks[0]
    x = (torch.arange(camera.width, device=K.device) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(camera.height, device=K.device) + 0.5 - K[1, 2]) / K[1, 1]
    v, u = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1)


def _sampled(channels: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample `channels` [D,h,w] at `grid` [H,W,2] in [-1,1]: [H,W,D]."""
    sampled = torch.nn.functional.grid_sample(
        channels[None], grid[None], mode=mode, padding_mode="border", align_corners=False
    )
    return sampled[0].permute(1, 2, 0)
