"""Make `render.safetensors`: a small scene, its picture and gradients by the float64 reference.

Run `python tests/golden/make_render.py` only where a change of the maths is meant; say why in the commit.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "kernels"), str(ROOT / "kernels")]  # what is installed comes first

INPUTS = ("means", "quats", "scales", "opacities", "viewmats", "Ks", "sh0", "shN", "background")
WIDTH, HEIGHT = 40, 30


def rendered(inputs, backend, dtype):
    """Image, alpha, and the gradients of their sums of squares, from the nine inputs."""
    from splatexp_kernels.blend import blend
    from splatexp_kernels.project import project
    from splatexp_kernels.sh import sh
    from splatexp_kernels.tiles import tiles

    leaves = {name: inputs[name].to(dtype).requires_grad_() for name in INPUTS}
    means, quats, scales, opacities, viewmats, Ks, sh0, shN, background = leaves.values()
    p = project(means, quats, scales, opacities, viewmats, Ks, WIDTH, HEIGHT, prefilter=True, backend=backend)
    centers = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[:, :, 0]
    colors = sh(3, means, centers, sh0, shN, (p.radii > 0).all(-1), backend=backend)
    t = tiles(p.means2d, p.radii, p.depths, WIDTH, HEIGHT, backend=backend)
    opacities = opacities * p.compensations
    image, alpha = blend(
        p.means2d, p.conics, colors, opacities, t, WIDTH, HEIGHT, background=background, backend=backend
    )
    ((image**2).sum() + (alpha**2).sum()).backward()
    gradients = {f"v_{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"image": image.detach(), "alpha": alpha.detach(), **gradients}


if __name__ == "__main__":
    from support.kernel_cases import scene

    s = scene(40, 1, WIDTH, HEIGHT, seed=11)
    s.opacities, s.shN = s.opacities.sqrt(), s.shN[:, :15].contiguous()
    s.background = torch.tensor([[0.2, 0.4, 0.6]])
    inputs = {name: getattr(s, name) for name in INPUTS}
    outputs = {name: tensor.float() for name, tensor in rendered(inputs, "reference", torch.float64).items()}
    save_file({**inputs, **outputs}, Path(__file__).with_name("render.safetensors"))
