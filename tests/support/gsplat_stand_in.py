"""gsplat's two functions made of the reference kernels: they take its arguments and leave what it leaves.

What CUDA kernels do not write is NaN here, and half extents are whole pixels, as gsplat's are.
"""

import inspect
from functools import partial
from types import SimpleNamespace

import gsplat
import torch

from splatexp_kernels.blend import blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import Tiles, tiles

REAL = {name: inspect.signature(getattr(gsplat, name)) for name in ("rasterization", "rasterize_to_pixels")}


def bound(name, args, kwargs):
    """The arguments of a call by gsplat's own names for them, with its defaults."""
    call = REAL[name].bind(*args, **kwargs)
    call.apply_defaults()
    return SimpleNamespace(**call.arguments)


class _Carried(torch.autograd.Function):
    """The means as they are; on the way back they are given their absolute gradient, as gsplat does."""

    @staticmethod
    def forward(ctx, means2d, absgrad):
        ctx.means2d, ctx.absgrad = means2d, absgrad
        return means2d.view_as(means2d)

    @staticmethod
    def backward(ctx, grad):
        if ctx.absgrad is not None:
            ctx.means2d.absgrad = ctx.absgrad
        return grad, None


def rasterization(*args, calls=None, **kwargs):
    """gsplat.rasterization with packed=False; `calls` collects the arguments."""
    a = bound("rasterization", args, kwargs)
    if calls is not None:
        calls.append(a)
    C, N = len(a.viewmats), len(a.means)
    assert not a.packed and a.camera_model == "pinhole" and a.render_mode in ("RGB", "RGB+ED")
    prefilter = {"antialiased": True, "classic": False}[a.rasterize_mode]
    p = project(
        a.means, a.quats, a.scales, a.opacities, a.viewmats, a.Ks, a.width, a.height, eps2d=a.eps2d,
        near=a.near_plane, far=a.far_plane, cull_radius_px=a.radius_clip, prefilter=prefilter,
        backend="reference",
    )  # fmt: skip
    visible = (p.radii > 0).all(-1)
    unwritten = torch.where(visible, 0.0, torch.nan)[..., None]
    means2d, conics = p.means2d + unwritten, p.conics + unwritten
    opacities = a.opacities.expand(C, N) * p.compensations if prefilter else a.opacities.expand(C, N)
    if a.sh_degree is None:
        colors = a.colors.expand(C, N, -1)
    else:
        centers = torch.inverse(a.viewmats)[:, :3, 3]
        colors = sh(a.sh_degree, a.means, centers, a.colors[:, :1], a.colors[:, 1:], backend="reference")
    lists = tiles(p.means2d, p.radii, p.depths, a.width, a.height, tile_size=a.tile_size, backend="reference")
    deep = a.render_mode == "RGB+ED"
    channels = torch.cat([colors, p.depths[..., None]], -1) if deep else colors
    behind = a.backgrounds
    if deep and behind is not None:
        behind = torch.nn.functional.pad(behind, (0, 1))
    absgrad = torch.zeros_like(means2d) if a.absgrad else None
    image, alpha = blend(
        _Carried.apply(means2d, absgrad), conics, channels, opacities, lists, a.width, a.height,
        background=behind, absgrad=absgrad, backend="reference",
    )  # fmt: skip
    if deep:
        image = torch.cat([image[..., :-1], image[..., -1:] / alpha.clamp_min(1e-10)], -1)
    meta = {"means2d": means2d, "conics": conics, "depths": p.depths, "opacities": opacities}
    meta |= {"radii": p.radii.ceil().int(), "flatten_ids": lists.order[lists.ids.long()]}
    meta["isect_offsets"] = lists.starts.int().reshape(C, lists.tiles_y, lists.tiles_x)
    return image, alpha, meta


def rasterize_to_pixels(*args, **kwargs):
    """gsplat.rasterize_to_pixels with packed=False."""
    a = bound("rasterize_to_pixels", args, kwargs)
    assert not a.packed and a.masks is None and not a.absgrad
    pairs, (_, down, across) = len(a.flatten_ids), a.isect_offsets.shape
    starts = a.isect_offsets.flatten().long()
    ends = torch.cat([starts[1:], starts.new_tensor([pairs])])
    ids = torch.arange(pairs, dtype=torch.int32)
    lists = Tiles(a.flatten_ids, ids, starts, ends, a.tile_size, a.tile_size, across, down)
    return blend(
        a.means2d, a.conics, a.colors, a.opacities, lists, a.image_width, a.image_height,
        background=a.backgrounds, backend="reference",
    )  # fmt: skip


def stand_in(monkeypatch):
    """Put them in gsplat's place for a test.  Returns: the list that collects what is asked of it."""
    calls = []
    monkeypatch.setattr(gsplat, "rasterization", partial(rasterization, calls=calls))
    monkeypatch.setattr(gsplat, "rasterize_to_pixels", rasterize_to_pixels)
    return calls
