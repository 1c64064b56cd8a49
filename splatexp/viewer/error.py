"""A picture against the photograph that was taken nearest to it, pixel by pixel.

A pixel is taken to its place in the world by its depth, and from there into the photograph. Where the camera
stands where the photograph was taken, the depth has no say and the comparison is exact.
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

BEHIND = 0.05  # by so much of its depth a point must lie behind another to be hidden by it
NEAR = 1e-3  # of the distance `far`: closer to the photograph's place, all that is seen is seen from there
PHOTO = 256  # px, the longer side of the depth map that tells what a photograph sees


def compared(
    render: Render, camera: Camera, view: View, depth_of: Callable[[Camera], Render], far: float
) -> tuple[Tensor, Tensor]:
    """How far a render is from a photograph.

    Args:
        render: of `camera` (C = 1), with depth.
        depth_of: draws what another camera sees, with depth: what the photograph cannot have seen is told so.
        far: world units; where nothing is drawn the background is at least so far away.

    Returns: mean absolute difference of the channels [H,W]; whether the photograph shows that place, [H,W].
    """
    image, device = render.image[0].clamp(0, 1), render.image.device
    taken = view.camera.to(device)
    opaque = render.alpha[0, ..., 0] > 0.5
    depth = _depth(render)
    depth = torch.where(opaque, depth, depth.amax().clamp_min(far))
    inverse = torch.linalg.inv(camera.viewmats[0])
    points = (_rays(camera) * depth[..., None]) @ inverse[:3, :3].T + inverse[:3, 3]
    local = points @ taken.viewmats[0, :3, :3].T + taken.viewmats[0, :3, 3]
    z = local[..., 2]
    pixels = (local / z.clamp_min(1e-9)[..., None]) @ taken.Ks[0].T
    place = 2 * pixels[..., :2] / pixels.new_tensor([taken.width, taken.height]) - 1  # as grid_sample has it
    known = (z > 0) & (place.abs() <= 1).all(-1)
    if view.mask is not None:
        known &= _sampled(view.mask.to(device)[None].float(), place)[..., 0] > 0.5
    if float((camera.centers - taken.centers).norm()) > NEAR * far:
        known &= z <= (1 + BEHIND) * _front(taken, place, depth_of)
    photo = _sampled(view.image.to(device).permute(2, 0, 1) / 255, place)
    return (image - photo).abs().mean(-1), known


def _front(taken: Camera, place: Tensor, depth_of: Callable[[Camera], Render]) -> Tensor:
    """Depth [H,W] of what a photograph shows at places [H,W,2]; infinite where it shows nothing."""
    scale = min(1.0, PHOTO / max(taken.width, taken.height))
    small = taken.resized(max(1, round(taken.width * scale)), max(1, round(taken.height * scale)))
    render = depth_of(small)
    front = torch.where(render.alpha[0, ..., 0] > 0.5, _depth(render), torch.inf)
    return _sampled(front[None], place, "nearest")[..., 0]  # a mean over an edge is no depth of anything


def _depth(render: Render) -> Tensor:
    assert render.depth is not None
    return render.depth[0, ..., 0]


def _rays(camera: Camera) -> Tensor:
    """[H,W,3] in the camera, z = 1, through the centres of the pixels."""
    K = camera.Ks[0]
    x = (torch.arange(camera.width, device=K.device) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(camera.height, device=K.device) + 0.5 - K[1, 2]) / K[1, 1]
    v, u = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1)


def _sampled(planes: Tensor, place: Tensor, mode: str = "bilinear") -> Tensor:
    """Planes [D,h,w] at places [H,W,2] in [-1,1]: [H,W,D]."""
    taken = torch.nn.functional.grid_sample(
        planes[None], place[None], mode=mode, padding_mode="border", align_corners=False
    )
    return taken[0].permute(1, 2, 0)
