"""The rasterizers that are timed side by side: these kernels with any backend, and gsplat where it is
installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

import torch
from workload import DEGREE, Workload

from splatexp_kernels.ssim import ssim


@cache
def missing(device: str) -> str:
    """Return why gsplat cannot run here, "" where it can. Its first use may compile it, which takes
    minutes.
    """
    if device == "cpu":
        return "gsplat rasterizes on CUDA devices alone"
    try:
        import gsplat

        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")  # else it compiles for all
        from gsplat.cuda._backend import _C
    except Exception as error:  # a failed compile may raise anything
        return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    return (
        "" if _C is not None else f"gsplat {gsplat.__version__} found no CUDA toolkit to compile itself with"
    )


def rasterize(
    params: dict[str, torch.Tensor], viewmats: torch.Tensor, Ks: torch.Tensor, width: int, height: int,
    degree: int, background: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return image [C,H,W,3] and alpha [C,H,W,1] of activated parameters by `gsplat.rasterization`."""
    from gsplat import rasterization

    x = params
    image, alpha, _ = rasterization(
        x["means"], x["quats"], x["scales"], x["opacities"], torch.cat([x["sh0"], x["shN"]], 1),
        viewmats, Ks, width, height, sh_degree=degree, packed=False, backgrounds=background,
    )  # fmt: skip
    return image, alpha


class Stepper:
    """A rasterizer on a workload."""

    def __init__(self, w: Workload) -> None:
        self.w = w

    def forward(self) -> torch.Tensor:
        """Return the image [1,H,W,3]."""
        return self.w.forward()[0]

    def backward(self) -> Callable[[], object]:
        """Return a call that computes the gradients of all parameters of an image rendered before."""
        image, inputs = self.forward(), list(self.w.params.values())
        upstream = torch.rand_like(image)
        return lambda: torch.autograd.grad(image, inputs, upstream, retain_graph=True)

    def step(self) -> None:
        """Run forward, loss, backward and update."""
        self.w.step()


class Gsplat(Stepper):
    """gsplat's rasterization, PyTorch's fused Adam, and the Triton SSIM: gsplat itself has neither."""

    def __init__(self, w: Workload) -> None:
        super().__init__(w)
        self.optimizer = torch.optim.Adam(list(w.params.values()), lr=0.0, eps=1e-15, fused=True)

    def forward(self) -> torch.Tensor:
        """Return the image [1,H,W,3]."""
        w = self.w
        return rasterize(w.params, w.viewmats, w.Ks, *w.size, DEGREE, w.background)[0]

    def step(self) -> None:
        """Run forward, loss, backward and update."""
        ssim(self.forward(), self.w.target, backend="gpu").mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
