"""Random points in the frusta of the cameras, to start from where a scene has no points."""

from collections.abc import Sequence

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus_point
from splatexp.data.scene import Colour, Scene, View

MAX_ROUNDS = 40  # of drawing candidates; fewer points are returned afterwards
MAX_BACKGROUND_FRACTION = 0.05  # of the views that see a point, how many may show background there


def random_points_in_view(scene: Scene, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return at most `count` random points [P,3] that many training views see, and colours [P,3] in [0,1].

    Candidates are drawn uniformly in the cube that fills the frames at the cameras' focus point. In a scene
    without a known background, half of them are drawn along the cameras' rays instead, up to ten times as
    far. A candidate is kept if at least half as many views see it as see the focus point, and if at most one
    view in twenty shows background there: the points fill a visual hull. Their colour is the mean of the
    pixels that show them.

    Raises: ValueError where no view sees any candidate.
    Differs: 3DGS draws in a cube of fixed size, and its colours are grey.
    """
    views = scene.train
    cameras = [view.camera for view in views]
    middle = focus_point(cameras)
    depths = torch.stack([((middle - camera.centers) * camera.forwards).sum() for camera in cameras])
    reach = depths.median().clamp_min(1e-3)
    half = torch.stack([_half_angle(camera) for camera in cameras]).median() * reach
    solid = [_solid(view, scene.background) for view in views]
    open_scene = scene.background is None and all(view.alpha is None for view in views)
    needed = sum(len(_pixels(camera, middle[None])[0]) for camera in cameras) / 2
    kept: list[Tensor] = []
    colors: list[Tensor] = []
    for _ in range(MAX_ROUNDS):
        inside = middle + (2 * torch.rand(count, 3, generator=generator) - 1) * half
        if open_scene:
            inside = torch.cat([inside[: count // 2], _along_rays(cameras, count // 2, reach, generator)])
            inside = inside[torch.randperm(len(inside), generator=generator)]
        inside, seen, shown = _carve(views, solid, inside)
        good = seen >= max(1.0, min(needed, float(seen.max()) / 2 if len(seen) else 1.0))
        kept.append(inside[good])
        colors.append(shown[good])
        if sum(map(len, kept)) >= count:
            break
    points = torch.cat(kept)[:count]
    if not len(points):
        raise ValueError(
            f"model.init: expected cameras of {scene.name} that see the same object, got ones that see "
            "no point or only background; check the poses"
        )
    return points, torch.cat(colors)[:count]


def _half_angle(camera: Camera) -> Tensor:
    """Return the tangent of half the narrower field of view."""
    return 0.5 * torch.minimum(camera.width / camera.Ks[0, 0, 0], camera.height / camera.Ks[0, 1, 1])


def _along_rays(cameras: Sequence[Camera], count: int, reach: Tensor, generator: torch.Generator) -> Tensor:
    """Return points [count,3] on rays of random pixels, uniform in log depth from 0.5 to 10 times `reach`."""
    which = torch.randint(len(cameras), (count,), generator=generator)
    uniform = torch.rand(count, 3, generator=generator)
    K = torch.cat([camera.Ks for camera in cameras])[which]
    size = torch.tensor([[camera.width, camera.height] for camera in cameras])[which]
    pixels = uniform[:, :2] * size
    rays = torch.stack(
        [(pixels[:, 0] - K[:, 0, 2]) / K[:, 0, 0], (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]], 1
    )
    depth = reach * 0.5 * 20.0 ** uniform[:, 2:]
    local = torch.cat([rays, torch.ones_like(depth)], 1) * depth
    viewmats = torch.cat([camera.viewmats for camera in cameras])[which]
    return torch.einsum("nji,nj->ni", viewmats[:, :3, :3], local - viewmats[:, :3, 3])


def _solid(view: View, background: Colour | None) -> Tensor:
    """Return 1 for the pixels [H,W] that show more than a known background, else 0, as floats."""
    if view.alpha is not None:
        return (view.alpha > 127).float()
    if background is None:
        return torch.ones(view.image.shape[:2])
    color = (torch.tensor(background) * 255).round()
    return ((view.image - color).abs().amax(-1) > 2).float()


def _carve(views: Sequence[View], solid: Sequence[Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drop the points [P,3] that views show as background.

    Returns: the points that are kept, how many views see each [P], and their mean colours [P,3].
    """
    seen, missed, color = torch.zeros(len(points)), torch.zeros(len(points)), torch.zeros(len(points), 3)
    for index, (view, mask) in enumerate(zip(views, solid, strict=True)):
        rows, at = _pixels(view.camera, points)
        seen[rows] += 1
        missed[rows] += 1 - mask.reshape(-1)[at]
        color[rows] += view.image.reshape(-1, 3)[at] / 255
        if index % 8 == 7:  # the views that follow could not save these
            keep = missed <= MAX_BACKGROUND_FRACTION * len(views)
            points, seen, missed, color = points[keep], seen[keep], missed[keep], color[keep]
    keep = missed <= MAX_BACKGROUND_FRACTION * seen
    return points[keep], seen[keep], color[keep] / seen[keep].clamp_min(1)[:, None]


def _pixels(camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the points [P,3] that a camera sees, and of their pixels, counted row by row."""
    local = points @ camera.viewmats[0, :3, :3].T + camera.viewmats[0, :3, 3]
    x, y = ((local @ camera.Ks[0].T)[:, :2] / local[:, 2:].clamp_min(1e-9)).floor().unbind(1)
    inside = (local[:, 2] > 1e-3) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    rows = inside.nonzero().squeeze(1)
    return rows, y[rows].long() * camera.width + x[rows].long()
