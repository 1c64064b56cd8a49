"""Checks of each op on a device against the reference in float64 on the host: errors over what is allowed."""

from __future__ import annotations

import torch
from compare import (
    BROKEN,
    Ratios,
    all_ratios,
    apart,
    beside_cutoffs,
    compared,
    edges_of,
    expect,
    hidden,
    poisoned,
    ratio,
    scene,
    spoiled,
)
from rasterizers import rasterize
from torch import Tensor

from splatexp_kernels.adam import adam
from splatexp_kernels.blend import LEAVE_ONE_OUT_FIELDS, Attribution, attribute, blend
from splatexp_kernels.blend2d import blend2d
from splatexp_kernels.noise import noise
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.ssim import ssim
from splatexp_kernels.tiles import Tiles, tiles

TRAINED = ("means", "quats", "scales", "opacities", "sh0", "shN")


def projected(device: str, s, prefilter: bool) -> Ratios:
    def function(backend, to, means, quats, scales, viewmats):
        fixed = to(s.opacities), viewmats, to(s.Ks), s.width, s.height
        return project(means, quats, scales, *fixed, prefilter=prefilter, backend=backend)._asdict()

    inputs = {name: getattr(s, name) for name in ("means", "quats", "scales", "viewmats")}
    actual, expected = compared(device, function, inputs)
    depths = expected["depths"][expected["depths"] > 0]
    # some 4 units are taken off a depth, and rounding of them weighs the more the nearer a Gaussian is
    nearest = depths.min().item() if len(depths) else 1.0
    return all_ratios(actual, expected, max(1e-5, 1e-6 / nearest))


def colored(device: str, s, degree: int) -> Ratios:
    g = torch.Generator().manual_seed(1)
    visible = torch.rand(len(s.viewmats), len(s.means), generator=g) < 0.8
    centers = -(s.viewmats[:, :3, :3].mT @ s.viewmats[:, :3, 3:])[:, :, 0]

    def function(backend, to, **leaves):
        return {"colors": sh(degree, **leaves, visible=to(visible), backend=backend)}

    actual, expected = compared(
        device, function, {"means": s.means, "centers": centers, "sh0": s.sh0, "shN": s.shN}
    )
    return all_ratios(actual, expected, 3e-6)


def broken(device: str) -> Ratios:
    """Check that broken rows give 0, and that the other rows keep their bits."""
    found = []
    for spoil in (False, True):
        s = spoiled(scene(40), 20) if spoil else hidden(scene(40), 20)
        leaves = [
            tensor.to(device).requires_grad_() for tensor in (s.means, s.quats, s.scales, s.viewmats.clone())
        ]
        with poisoned():
            p = project(
                *leaves[:3], s.opacities.to(device), leaves[3], s.Ks.to(device), 64, 48, backend="gpu"
            )
            (p.means2d.sum() + p.conics.sum() + p.depths.sum()).backward()
        outputs = {name: tensor.detach()[0] for name, tensor in p._asdict().items()}
        found.append(outputs | {f"v_{i}": leaf.grad for i, leaf in enumerate(leaves[:3])})
    for name, tensor in found[1].items():
        expect(bool((tensor[20 : 20 + len(BROKEN)] == 0).all()), f"{name}: a broken row is not 0")
        expect(torch.equal(tensor[:20], found[0][name][:20]), f"{name}: a broken row changed others")
    return {}


def listed(device: str, f, tile_size: int, cap: int) -> Ratios:
    """Check that the tile lists are those of the reference, to the last index."""
    f.depths = torch.where(f.depths > 0, (f.depths * 4).round() / 4, f.depths)  # some are equal
    flat_, knobs = (f.means2d, f.radii, f.depths), {"tile_size": tile_size, "per_tile_max": cap}
    expected = tiles(*flat_, f.width, f.height, backend="reference", **knobs)
    for _ in range(2):
        with poisoned():
            t = tiles(*(x.to(device) for x in flat_), f.width, f.height, backend="gpu", **knobs)
        expect(t[4:8] == expected[4:8], f"tiles of {t[4:8]}, expected {expected[4:8]}")
        held = [t.ids[a:b].tolist() for a, b in zip(t.starts.tolist(), t.ends.tolist(), strict=True)]
        wanted = zip(expected.starts.tolist(), expected.ends.tolist(), strict=True)
        expect(t.order.tolist() == expected.order.tolist(), "order differs from the reference's")
        expect(held == [expected.ids[a:b].tolist() for a, b in wanted], "lists differ from the reference's")
    return {}


def both_tiles(device: str, f, tile_size: int) -> dict[str, Tiles]:
    """Return the tile lists of the backend gpu, and the same lists for the reference on the host."""
    made = tiles(
        *(x.to(device) for x in (f.means2d, f.radii, f.depths)), f.width, f.height,
        tile_size=tile_size, backend="gpu",
    )  # fmt: skip
    return {"gpu": made, "reference": Tiles(*(tensor.cpu() for tensor in made[:4]), *made[4:8])}


def blended(device: str, f, tile_size: int, cap: int) -> Ratios:
    lists = both_tiles(device, f, tile_size)

    def function(backend, to, background, **leaves):
        absgrad = to(torch.full(f.means2d.shape, 7.0)) if f.colors.shape[2] <= 4 else None
        knobs = {"background": background, "max_splats_per_pixel": cap, "absgrad": absgrad}
        image, alpha = blend(*leaves.values(), lists[backend], f.width, f.height, **knobs, backend=backend)
        kept[backend] = absgrad
        return {"image": image, "alpha": alpha}

    kept: dict[str, Tensor | None] = {}
    names = ("means2d", "conics", "colors", "opacities", "background")
    actual, expected = compared(device, function, {name: getattr(f, name) for name in names})
    edge, touched = beside_cutoffs(f)
    found = {}
    for name in ("image", "alpha"):
        found[name] = ratio(actual[name], expected[name], 5e-6, ~edge)
        found[f"{name}, at cut-offs"] = ratio(actual[name], expected[name], 0.02)
    for name in names[:4]:
        found[f"v_{name}"] = ratio(actual[f"v_{name}"], expected[f"v_{name}"], 1e-5, ~touched)
    if kept["gpu"] is not None:
        found["absgrad"] = ratio(kept["gpu"].cpu(), kept["reference"], 1e-5, ~touched)
    if not edge.any():
        found["v_background"] = ratio(actual["v_background"], expected["v_background"], 1e-5)
    return found


def planar(device: str, f, mode: str, top_k: int) -> Ratios:
    lists = both_tiles(device, f, 16)

    def function(backend, to, background, **leaves):
        knobs = {"mode": mode, "top_k": top_k, "background": background, "backend": backend}
        image, total = blend2d(*leaves.values(), lists[backend], f.width, f.height, **knobs)
        return {"image": image, "total": total}

    names = ("means2d", "conics", "colors", "weights", "background")
    actual, expected = compared(device, function, {name: getattr(f, name) for name in names})
    (edge, touched), found = edges_of(f, mode, top_k), {}
    for name in ("image", "total"):
        found[name] = ratio(actual[name], expected[name], 5e-6, ~edge)
    for name in names[:4]:
        allowed = 2e-5 if name == "conics" else 1e-5  # of a wide Gaussian, dx^2 of far pixels
        found[f"v_{name}"] = ratio(actual[f"v_{name}"], expected[f"v_{name}"], allowed, ~touched)
    return found


def attributed(device: str, f, tile_size: int) -> Ratios:
    lists, g = both_tiles(device, f, tile_size), torch.Generator().manual_seed(2)
    shape = len(f.means2d), f.height, f.width
    maps, target = (torch.rand(*shape, M, generator=g) for M in (2, 3))

    def function(backend, to, **leaves):
        flat_, size = [leaves[name] for name in ("means2d", "conics", "opacities")], (f.width, f.height)
        t, colors = lists[backend], leaves["colors"].detach()
        image, _ = blend(flat_[0], flat_[1], colors, flat_[2], t, *size, backend=backend)
        more = {"colors": colors, "image": image.detach(), "target": to(target), "threshold": 0.4}
        want = Attribution._fields
        return attribute(*flat_, t, *size, to(maps), want=want, **more, backend=backend)._asdict()

    names = ("means2d", "conics", "colors", "opacities")
    actual, expected = compared(device, function, {name: getattr(f, name) for name in names}, graded=False)
    touched, found = beside_cutoffs(f)[1], {}
    for name, tensor in expected.items():
        if name == "dominant":  # of weights that all but tie either may win
            off = (actual[name] - tensor).abs().sum().item()
            found[name] = off / max(0.01 * tensor.sum().item(), 1)
        else:
            allowed = 0 if tensor.dtype == torch.int32 else 1e-5 if name in LEAVE_ONE_OUT_FIELDS else 5e-6
            found[name] = ratio(actual[name], tensor, allowed, ~touched)
    return found


def similar(device: str, shape: tuple[int, ...]) -> Ratios:
    g = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=g)
    target[:, :, shape[2] // 2 :] = 0.8
    image = (target + 0.1 * torch.randn(shape, generator=g)).clamp(0, 1)

    def function(backend, to, image):
        return {"map": ssim(image, to(target), backend=backend)}

    actual, expected = compared(device, function, {"image": image})
    return all_ratios(actual, expected, 2e-4)


def stepped(device: str, shape: tuple[int, ...]) -> Ratios:
    visible = torch.rand(shape[0], generator=torch.Generator().manual_seed(1)) < 0.5

    def function(backend, to, param):
        g = torch.Generator().manual_seed(0)
        param, moments = param.detach().clone(), to(torch.zeros(2, *shape))
        for step in range(1, 6):
            grad = to(torch.randn(shape, generator=g) * 10.0 ** (-step))
            adam(param, grad, *moments, step=step, lr=0.01, visible=to(visible), backend=backend)
        return {"param": param, "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    param = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    actual, expected = compared(device, function, {"param": param}, graded=False)
    return all_ratios(actual, expected, 1e-6)


def shaken(device: str, N: int) -> Ratios:
    s, uid = scene(N), torch.randperm(N, generator=torch.Generator().manual_seed(1)) * (2**33 + 1)

    def function(backend, to, means, **rows):
        moved = means.detach().clone()
        noise(moved, *rows.values(), to(uid), lr=3.0, seed=2**40 + 7, step=12, backend=backend)
        return {"means": moved}

    rows = {"quats": s.quats, "scales": s.scales, "opacities": 0.06 * s.opacities}
    actual, expected = compared(device, function, {"means": s.means, **rows}, graded=False)
    return all_ratios(actual, expected, 1e-6)


def step_of(s, cotangent: Tensor):
    """Return all ops in sequence as a function for `compared`: image, alpha, and through `run` every
    gradient.
    """

    def function(backend, to, viewmats, **x):
        view = {"width": s.width, "height": s.height, "backend": backend}
        flat_ = x["means"], x["quats"], x["scales"], x["opacities"]
        p = project(*flat_, viewmats, to(s.Ks), prefilter=True, **view)
        centers = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[:, :, 0]
        seen = (p.radii > 0).all(-1)
        colors = sh(4, x["means"], centers, x["sh0"], x["shN"], seen, backend=backend)
        channels = torch.cat([colors, p.depths[..., None]], -1)
        t = tiles(p.means2d, p.radii, p.depths, **view)
        image, alpha = blend(p.means2d, p.conics, channels, x["opacities"] * p.compensations, t, **view)
        similarity = ssim(image, to(cotangent), backend=backend)
        return {"image": image, "alpha": alpha, "similarity": similarity}

    return function, {name: getattr(s, name) for name in (*TRAINED, "viewmats")}


def chained(device: str, s) -> Ratios:
    """Check a whole step. Decisions at cut-offs differ between float32 and float64 and all errors add up, so
    tensors are compared by norms.
    """
    g = torch.Generator().manual_seed(4)
    function, inputs = step_of(s, torch.rand(len(s.viewmats), s.height, s.width, 4, generator=g))
    actual, expected = compared(device, function, inputs)
    return {name: apart(actual[name], tensor, 1e-3) for name, tensor in expected.items()}


def chained_broken(device: str, N: int, C: int, width: int, height: int) -> Ratios:
    """Check that broken Gaussians get gradients of 0, and the others the gradients that they get without
    them.
    """
    found, first = [], N - len(BROKEN)
    for spoil in (False, True):
        s = (spoiled if spoil else hidden)(scene(N, C, width, height), first)
        s.shN[first:] = float("nan") if spoil else 0.0
        function, inputs = step_of(s, torch.full((C, height, width, 4), 0.4))
        leaves = {name: tensor.to(device).requires_grad_() for name, tensor in inputs.items()}
        with poisoned():
            outputs = function("gpu", lambda tensor: tensor.to(device), **leaves)
            sum(tensor.sum() for tensor in outputs.values()).backward()
        found.append(outputs | {f"v_{name}": leaf.grad for name, leaf in leaves.items()})
    for name in TRAINED:
        expect(bool((found[1][f"v_{name}"][first:] == 0).all()), f"v_{name}: a broken row is not 0")
    return {name: ratio(tensor.cpu(), found[0][name].cpu(), 1e-6) for name, tensor in found[1].items()}


def beside_gsplat(device: str, s) -> Ratios:
    """Check that image, alpha and gradients are those of gsplat, up to decisions at cut-offs: compared by
    norms.

    Opacities stay below 0.9, as gsplat clamps alpha at 0.999 where these kernels do at 0.99.
    """
    s.opacities, found = 0.9 * s.opacities, []
    view = [s.viewmats.to(device), s.Ks.to(device), s.width, s.height]
    for ours in (True, False):
        x = {name: getattr(s, name).to(device).requires_grad_() for name in TRAINED}
        image, alpha = _rasterized(x, *view) if ours else rasterize(x, *view, degree=3)
        weights = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).to(device)
        ((image * weights).sum() + alpha.sum()).backward()
        gradients = {f"v_{name}": leaf.grad for name, leaf in x.items()}
        found.append({"image": image.detach(), "alpha": alpha.detach(), **gradients})
    return {name: apart(found[0][name], tensor, 5e-3) for name, tensor in found[1].items()}


def _rasterized(x: dict[str, Tensor], viewmats: Tensor, Ks: Tensor, width: int, height: int):
    by, size = {"backend": "gpu"}, (width, height)
    flat_ = x["means"], x["quats"], x["scales"], x["opacities"]
    p = project(*flat_, viewmats, Ks, *size, **by)
    centers = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[:, :, 0]
    colors = sh(3, x["means"], centers, x["sh0"], x["shN"], (p.radii > 0).all(-1), **by)
    t = tiles(p.means2d, p.radii, p.depths, *size, **by)
    seen = x["opacities"].expand(len(viewmats), -1)
    return blend(p.means2d, p.conics, colors, seen, t, *size, **by)
