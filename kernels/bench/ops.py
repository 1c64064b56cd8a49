"""Each op's forward and backward as a call to time, with the operations and bytes that it cannot avoid.

`flops` are counted from the formulas of kernels/README.md: additions, multiplications, divisions and roots
count 1, exp and log 10 (a polynomial); for `blend` only pixels that a Gaussian contributes to count, so that
every pixel tested in vain is overhead. `bytes` read each input once and write each output once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor
from workload import DEGREE, GROUPS, Workload, floats

from splatexp_kernels.blend import Attribution, attribute, blend
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.noise import noise as langevin
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import tiles

OPS = ("project", "sh", "tiles", "blend", "blend2d", "ssim", "adam", "noise")


@dataclass
class OpCall:
    """A call of an op to time, with its operations and bytes."""

    op: str
    direction: str  # forward, backward, both
    call: Callable[[], object]
    flops: float
    bytes: float
    in_step: bool = True  # part of every training step


def op_calls(w: Workload) -> Iterator[OpCall]:
    """Yield all ops of a training step in their order, on the outputs of the ones before."""
    x, N = w.params, len(w)
    means, quats, scales, opacities, sh0, shN = x.values()
    noise, by = torch.Generator().manual_seed(0), {"backend": w.backend}

    def projection():
        return project(means, quats, scales, opacities, w.viewmats, w.Ks, *w.size, **by)

    p = projection()
    # rotation 30, unit quaternion 13, camera space 25, J W 18, J W R S 36, covariance 15, minors and
    # determinants 19, conic and mean 8, radii 26; backward recomputes all but the radii, then returns
    yield OpCall("project", "forward", projection, 190 * N, 4 * 20 * N)
    yield OpCall("project", "backward", _backward(p[:3], [means, quats, scales], noise), 430 * N, 4 * 28 * N)

    seen = (p.radii > 0).all(-1)
    visible = int(seen.sum())
    flat = [tensor.detach().requires_grad_() for tensor in p[:2]]

    def colors():
        return sh(DEGREE, means, w.centers, sh0, shN, seen, **by)

    c = colors()
    # direction 12, basis 45, 48 coefficients times 2; backward: basis and derivatives 150, 48 times 3
    yield OpCall("sh", "forward", colors, 153 * visible, visible * 4 * 51 + N * (1 + 4 * 3))
    # gradients are written for all, zeros for the invisible
    yield OpCall(
        "sh",
        "backward",
        _backward([c], [means, sh0, shN], noise),
        330 * visible,
        visible * 4 * 54 + N * 4 * 51,
    )

    def lists():
        return tiles(p.means2d, p.radii, p.depths, *w.size, **by)

    t = lists()
    # means, radii and depths in, order and one id a pair out
    yield OpCall("tiles", "forward", lists, 0, N * 4 * 5 + 4 * len(t.order) + 4 * len(t.ids))

    geometry = flat[0], flat[1], c.detach().requires_grad_(), opacities.detach()[None].requires_grad_()

    def blended():
        return blend(*geometry, t, *w.size, background=w.background, **by)

    image, alpha = blended()
    maps = w.target[..., :1]
    weights = attribute(flat[0], flat[1], geometry[3], t, *w.size, maps, **by)
    contributions, pixels = float(weights.pixels.sum()), w.width * w.height
    entries = visible * 4 * floats(*(tensor[:, :1] for tensor in geometry)) + 4 * len(t.ids)
    # alpha 20, transmittance 3, D channels 2 each
    yield OpCall("blend", "forward", blended, contributions * 29, entries + pixels * 16)
    # alpha and transmittance once more 23, colours 4 D, v_alpha 6, nine sums 20
    both = _backward([image, alpha], list(geometry), noise)
    yield OpCall("blend", "backward", both, contributions * 61, 2 * entries + pixels * 32)

    def attributed():
        return attribute(flat[0], flat[1], geometry[3], t, *w.size, maps, **by)

    yield OpCall("blend", "attribute", attributed, contributions * 28, entries + pixels * 4, in_step=False)

    def all_fields():
        more = {"colors": geometry[2], "image": image, "target": w.target, "want": Attribution._fields}
        return attribute(flat[0], flat[1], geometry[3], t, *w.size, maps, **more, **by)

    # map 1, distance 5, largest weight 1, what leaving out does 36
    yield OpCall("blend", "all fields", all_fields, contributions * 71, entries + pixels * 28, in_step=False)

    def summed():
        return blend2d(*geometry, t, *w.size, background=w.background, **by)

    # no pixel stops: the area of each ellipse counts, also where it leaves the frame
    a, b, c = p.conics.detach()[seen].unbind(-1)
    areas = 2 * math.pi * torch.log(255 * opacities.detach()[seen[0]]) / (a * c - b * b).sqrt()
    contributions = float(areas.sum())
    # w 19, total 1, D channels 2 each; w once more 19, colours 4 D, nine sums 16
    if has("blend2d", w.backend):
        yield OpCall("blend2d", "forward", summed, contributions * 26, entries + pixels * 16, in_step=False)
        again = _backward(summed(), list(geometry), noise)
        yield OpCall(
            "blend2d", "backward", again, contributions * 47, 2 * entries + pixels * 32, in_step=False
        )

    shown = image.detach().requires_grad_()

    def similarity():
        return ssim(shown, w.target, **by)

    # five maps through two 11-tap passes of 22, products 3, formula and its derivatives 40
    yield OpCall("ssim", "forward", similarity, 263 * shown.numel(), 4 * 6 * shown.numel())
    # three maps through both passes, 8 to join them
    yield OpCall(
        "ssim",
        "backward",
        _backward([similarity()], [shown], noise),
        140 * shown.numel(),
        4 * 7 * shown.numel(),
    )

    for name in GROUPS:
        x[name].grad = torch.randn(x[name].shape, generator=noise).to(w.device)
    # two moments 7, update 6; four arrays in, three out
    yield OpCall("adam", "both", w.update, 13 * floats(*x.values()), 4 * 7 * floats(*x.values()))
    for name in GROUPS:
        x[name].grad = None

    uid = torch.arange(N, device=w.device)

    def shaken():
        langevin(means, quats, scales, opacities, uid, lr=0.0, seed=0, step=0, **by)

    moved = float((100 * (opacities.detach() - 0.005) < 18.4).sum())  # the gate is open wider than 1e-8
    # gate 15; four words 60 (of integers), two pairs of deviates 70, rotation 30, covariance times deviate 40
    yield OpCall("noise", "both", shaken, 15 * N + 200 * moved, 4 * N + moved * 4 * 15, in_step=False)


def has(op: str, backend: str) -> bool:
    """Return whether an op has a kernel for a backend, even if this machine cannot run it."""
    return find_spec(f"splatexp_kernels.{op}.{backend}") is not None


def _backward(outputs, inputs: list[Tensor], noise: torch.Generator) -> Callable[[], object]:
    upstream = [torch.randn(output.shape, generator=noise).to(output.device) for output in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
