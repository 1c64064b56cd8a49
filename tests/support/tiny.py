"""The smallest scene that can be trained: sixty Gaussians, drawn by the reference kernels at 20 x 16."""

import torch

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.data.scene import Scene, View
from splatexp.gaussians.splats import Splats
from splatexp.raster.backends import Reference
from splatexp.train.initialization import SceneModel

torch.set_num_threads(1)  # a second thread has nothing to do here but wait for the first


def points(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [P,3] in a cube of side 2 and colours [P,3] in [0,1]."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=random) * 2 - 1, torch.rand(count, 3, generator=random)


def cameras(count: int = 6, width: int = 20, height: int = 16) -> Camera:
    """Cameras on a circle of radius 4, the cube in view."""
    angles = torch.arange(count) * (2 * torch.pi / count)
    eyes = torch.stack([4 * angles.cos(), 4 * angles.sin(), torch.ones(count)], 1)
    viewmats = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    K = torch.tensor([[1.0 * width, 0, width / 2], [0, 1.0 * width, height / 2], [0, 0, 1]])
    return Camera(viewmats, K.repeat(count, 1, 1), width, height)


def splats(count: int = 60, seed: int = 0, **settings) -> Splats:
    """Coloured Gaussians at the points."""
    model = SceneModel(**{"sh_degree": 1, "init_opacity": 0.7, **settings})
    return model.from_points(*points(count, seed), extent=2.0)


def scene(**more) -> Scene:
    """Five training views and one held out; the points have their places but not their colours."""
    truth, views = splats(init_opacity=0.9), []
    for index in range(6):
        camera = cameras()[index]
        with torch.no_grad():
            render = Reference()(truth, camera, sh_degree=0, background=torch.zeros(1, 3))
        picture = (render.image[0].clamp(0, 1) * 255).round().to(torch.uint8)
        alpha = (
            (render.alpha[0, ..., 0] * 255).round().to(torch.uint8) if more.get("random_background") else None
        )
        views.append(View(f"{index}.png", camera, picture, alpha=alpha))
    where = points()[0]
    return Scene("tiny", views[:5], views[5:], where, torch.full(where.shape, 128, dtype=torch.uint8), **more)
