"""The workload of the bench: N Gaussians, one camera, and what a training step does with them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from splatexp_kernels.adam import adam
from splatexp_kernels.blend import blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import Tiles, tiles

GROUPS = ("means", "quats", "scales", "opacities", "sh0", "shN")
DEGREE = 3


@dataclass
class Workload:
    """Activated parameters, each [N,...], in front of one camera of width x height pixels."""

    name: str
    params: dict[str, Tensor]
    viewmats: Tensor  # [1,4,4]
    Ks: Tensor  # [1,3,3]
    width: int
    height: int
    backend: str = "cpu"  # of every kernel

    def __post_init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        for tensor in self.params.values():
            tensor.requires_grad_()
        self.moments = {name: tensor.new_zeros(2, *tensor.shape) for name, tensor in self.params.items()}
        self.centers = -(self.viewmats[:, :3, :3].mT @ self.viewmats[:, :3, 3:])[:, :, 0]
        self.target = torch.rand(1, self.height, self.width, 3, generator=g).to(self.device)
        self.background = torch.zeros(1, 3, device=self.device)
        self.steps = 0

    def __len__(self) -> int:
        return len(self.params["means"])

    @property
    def device(self) -> torch.device:
        """Return the device of all tensors."""
        return self.viewmats.device

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def forward(self) -> tuple[Tensor, Tensor, Tiles, Tensor]:
        """Return image, alpha, tile lists and radii."""
        x, by = self.params, {"backend": self.backend}
        flat = x["means"], x["quats"], x["scales"], x["opacities"]
        p = project(*flat, self.viewmats, self.Ks, *self.size, **by)
        colors = sh(DEGREE, x["means"], self.centers, x["sh0"], x["shN"], (p.radii > 0).all(-1), **by)
        t = tiles(p.means2d, p.radii, p.depths, *self.size, **by)
        geometry = p.means2d, p.conics, colors, x["opacities"][None]
        image, alpha = blend(*geometry, t, *self.size, background=self.background, **by)
        return image, alpha, t, p.radii

    def step(self) -> None:
        """Run one training step of all kernels: forward, backward, update. Learning rate 0 keeps the workload
        the same.
        """
        image = self.forward()[0]
        ssim(image, self.target, backend=self.backend).mean().backward()
        self.update()
        for tensor in self.params.values():
            tensor.grad = None

    def update(self) -> None:
        """Run Adam on every parameter that has a gradient."""
        self.steps += 1
        for name, tensor in self.params.items():
            if tensor.grad is not None:
                adam(tensor, tensor.grad, *self.moments[name], step=self.steps, lr=0.0, backend=self.backend)


def synthetic(
    N: int, width: int, height: int, *, seed: int = 0, device: str = "cpu", backend: str = "cpu"
) -> Workload:
    """Return Gaussians distributed like those of a scene that was trained on photos.

    Five of six lie in the frame, half of them with low opacity; at 60k and 270x480 their deviations are
    log-normal around 2.4 by 1.2 px, a visible one lies in 3 tiles and a pixel composites 54. Sizes follow the
    pixels per Gaussian, so that a pixel is covered equally often at every N and resolution: a scene with more
    Gaussians has finer ones.
    """
    g = torch.Generator().manual_seed(seed)
    focal = 1.2 * max(width, height)
    depths = torch.exp(2.1 * torch.rand(N, generator=g))  # 1 to 8
    frame = torch.rand(N, 2, generator=g) * 1.1 - 0.55  # a tenth more than the frame
    xy = frame * torch.tensor([width, height]) / focal * depths[:, None]
    pixels = 1.2 * (width * height / N) ** 0.5
    sizes = torch.exp(0.6 * torch.randn(N, 1, generator=g) + 0.35 * torch.randn(N, 3, generator=g))
    scales = pixels * sizes * torch.tensor([1.3, 1.0, 0.3]) * depths[:, None] / focal
    params = {
        "means": torch.cat([xy, depths[:, None]], 1),
        "quats": torch.randn(N, 4, generator=g),
        "scales": scales,
        "opacities": torch.sigmoid(2.4 * torch.randn(N, generator=g) - 0.9),
        "sh0": torch.randn(N, 1, 3, generator=g),
        "shN": 0.1 * torch.randn(N, 15, 3, generator=g),
    }
    Ks = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]]).to(device)
    params = {name: tensor.to(device) for name, tensor in params.items()}
    viewmats = torch.eye(4, device=device)[None]
    return Workload("synthetic", params, viewmats, Ks, width, height, backend)


def trained(folder: str, width: int, height: int) -> Workload:
    """Return a finished run's Gaussians in front of its first held-out camera, resized."""
    from splatexp.commands.open_run import open_run

    _, scene, splats = open_run(folder)
    camera = scene.test[0].camera.resized(width, height)
    raw = {
        "means": splats.means,
        "quats": splats.quats,
        "scales": splats.scales,
        "opacities": splats.opacities,
    }
    raw |= {"sh0": splats.sh0, "shN": _degree_three(splats.shN)}
    return Workload(
        folder, {k: v.detach().clone() for k, v in raw.items()}, camera.viewmats, camera.Ks, width, height
    )


def ply(path: str, width: int, height: int) -> Workload:
    """Return the Gaussians of a .ply, seen along +z from one and a half times their extent away."""
    from splatexp.io.ply import load_ply

    raw = load_ply(path)
    middle = raw["means"].median(0).values
    extent = (raw["means"] - middle).norm(dim=1).quantile(0.9)
    viewmats = torch.eye(4)[None].clone()
    viewmats[0, :3, 3] = -middle + torch.tensor([0, 0, 1.5]) * extent
    focal = 1.2 * max(width, height)
    Ks = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    params = {"means": raw["means"], "quats": raw["quats"], "scales": raw["log_scales"].exp().expand(-1, 3)}
    params |= {
        "opacities": raw["opacity_logits"].sigmoid(),
        "sh0": raw["sh0"],
        "shN": _degree_three(raw["shN"]),
    }
    return Workload(path, {k: v.float().contiguous() for k, v in params.items()}, viewmats, Ks, width, height)


def _degree_three(shN: Tensor) -> Tensor:
    missing = max(15 - shN.shape[1], 0)
    return torch.cat([shN[:, :15], shN.new_zeros(len(shN), missing, 3)], 1)


def floats(*tensors: Tensor) -> int:
    """Return how many numbers the tensors hold together."""
    return sum(prod(tensor.shape) for tensor in tensors)
