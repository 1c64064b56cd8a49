"""Small things that the tests of the results share: Gaussians, a scene, a rasterizer without kernels."""

import math
from types import SimpleNamespace

import torch

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.data.scene import Scene, View
from splatexp.gaussians.splats import Splats

BANDS = {0: 0, 1: 3, 2: 8, 3: 15, 4: 24}


def splats(count: int = 7, degree: int = 2, isotropic: bool = False, seed: int = 0) -> Splats:
    """Random Gaussians in the unit ball around the origin."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "means": (3,), "quats": (4,), "log_scales": (1 if isotropic else 3,), "opacity_logits": (),
        "sh0": (1, 3), "shN": (BANDS[degree], 3),
    }  # fmt: skip
    params = {name: torch.randn(count, *shape, generator=g) for name, shape in shapes.items()}
    params["means"] = params["means"] * 0.5
    params["log_scales"] = params["log_scales"] * 0.1 - 2
    return Splats(params)


def scene(test: int = 2, width: int = 33, height: int = 24, masked: bool = False) -> Scene:
    """Six training views in a ring around the origin, random pictures."""
    g = torch.Generator().manual_seed(1)
    angles = torch.arange(6 + test) * (2 * math.pi / 6)
    eyes = torch.stack([4 * angles.cos(), 4 * angles.sin(), 1 + 0.1 * angles], 1)
    viewmats = look_at(eyes, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    K = torch.tensor([[[30.0, 0, width / 2], [0, 30, height / 2], [0, 0, 1]]])
    views = []
    for i in range(6 + test):
        image = torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)
        mask = torch.zeros(height, width, dtype=torch.bool) if masked else None
        if mask is not None:
            mask[6:18, 8:25] = True
        views.append(View(f"side/{i:02d}.png", Camera(viewmats[i : i + 1], K, width, height), image, mask))
    return Scene("ring", views[:6], views[6:])


class Flat:
    """A rasterizer that paints everything in one colour."""

    device = torch.device("cpu")

    def __init__(self, value: float = 0.5):
        self.value = value

    def __call__(self, splats, camera, *, sh_degree, background):
        assert background.shape == (len(camera), 3) and sh_degree == splats.sh_degree
        return SimpleNamespace(image=torch.full((len(camera), camera.height, camera.width, 3), self.value))
