"""A process of two that train the tiny scene: `python distributed_case.py <rank> <folder> <case>`.

gloo stands in for NCCL, and the reference kernels for gsplat's: rows are projected into the views of both
processes, exchanged, and blended where the view is, as gsplat does it with distributed=True.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import gsplat
import torch
import torch.distributed as dist
from support import gsplat_stand_in, tiny
from support.gsplat_stand_in import bound

from splatexp.config.build import build, compose
from splatexp.densify import NoDensification, Rule, RuleStrategy
from splatexp.losses.photometric import Loss
from splatexp.raster.gsplat import Gsplat
from splatexp.run import distributed
from splatexp.schedules.schedule import Schedule
from splatexp.system.process_group import is_main_process
from splatexp.system.signals import StoppedBySignal, StopSignals
from splatexp.train.loop import train
from splatexp.train.optimizer import Adam
from splatexp.train.recipe import Recipe
from splatexp_kernels.blend import blend
from splatexp_kernels.project import project
from splatexp_kernels.sh import sh
from splatexp_kernels.tiles import tiles

STEPS, EVERY, CAP = 6, 4, 90
PARTS = {
    "loss": Loss(ssim=0.0, l1=1.0),
    "optimizer": Adam(),
    "schedule": Schedule(sh_degree_interval=2),
    "seed": 3,
}
GROW = RuleStrategy(
    every=2, start=0, max_gaussians=CAP, grow=Rule("clone", "grad2d_mean", "top", max_fraction=0.3)
)


def rows():
    """Sixty Gaussians, none round: else their rotation would learn from rounding errors."""
    splats = tiny.splats()
    with torch.no_grad():
        splats.log_scales += torch.linspace(-0.5, 0.5, 3)
    return splats


class Exchanged(torch.autograd.Function):
    """Rows [2,N,D] of this process, as both views see them -> rows [1,N of both,D] as its own view does."""

    @staticmethod
    def forward(ctx, rows):
        ctx.counts = [None, None]
        dist.all_gather_object(ctx.counts, rows.shape[1])
        parts = [None, None]
        dist.all_gather_object(parts, rows.detach())
        return torch.cat([part[dist.get_rank()] for part in parts])[None]

    @staticmethod
    def backward(ctx, grad):
        grads, rank = [None, None], dist.get_rank()
        dist.all_gather_object(grads, grad[0])
        return torch.stack([view.split(ctx.counts)[rank] for view in grads])


def rasterization(*args, **kwargs):
    """gsplat.rasterization, with distributed=True or without."""
    a = bound("rasterization", args, kwargs)
    if not a.distributed:
        return gsplat_stand_in.rasterization(*args, **kwargs)
    assert not a.packed and not a.absgrad
    viewmats = [None, None]
    dist.all_gather_object(viewmats, a.viewmats)
    viewmats = torch.cat(viewmats)
    p = project(
        a.means, a.quats, a.scales, a.opacities, viewmats, a.Ks.expand(2, 3, 3), a.width, a.height,
        eps2d=a.eps2d, near=a.near_plane, far=a.far_plane, backend="reference",
    )  # fmt: skip
    centers = torch.inverse(viewmats)[:, :3, 3]
    colors = sh(a.sh_degree, a.means, centers, a.colors[:, :1], a.colors[:, 1:], backend="reference")
    opacities = a.opacities.expand(2, -1)
    rows = [p.means2d, p.conics, colors, opacities[..., None], p.radii, p.depths[..., None]]
    there = Exchanged.apply(torch.cat(rows, -1))
    means2d, conics, colors, opaque, radii, depths = there.split([2, 3, 3, 1, 2, 1], -1)
    lists = tiles(means2d, radii, depths[..., 0], a.width, a.height, backend="reference")
    image, alpha = blend(
        means2d, conics, colors, opaque[..., 0], lists, a.width, a.height, background=a.backgrounds,
        backend="reference",
    )  # fmt: skip
    meta = {"means2d": p.means2d, "conics": p.conics, "opacities": opacities, "radii": p.radii.ceil().int()}
    return image, alpha, meta | {"isect_offsets": None, "flatten_ids": None}


def loop(rank: int, folder: Path, case: str) -> dict[str, Any]:
    """The training loop; the leader leaves its rows, and what it was called with."""
    splats, signals, called, logged = rows(), StopSignals(), [], []
    if rank:  # what the others begin with is of no account
        splats.means.detach().add_(7)

    class Log:
        def log(self, step, scalars):
            logged.append([step, scalars["num_gaussians"]])

    def on_step(step, whole):
        called.append([step, len(whole)])
        torch.save(whole.state_dict(), folder / f"{step}.pt")
        if signals.caught:
            raise StoppedBySignal(signals.caught)

    run, raster = distributed.distribute_training(train, signals, EVERY), Gsplat(distributed=True)
    densify = GROW if case == "grow" else NoDensification(max_gaussians=CAP)
    if case == "stop" and rank:
        signals.caught = 15  # only one of them hears it
    try:
        recipe = Recipe(raster=raster, densify=densify, steps=STEPS, **PARTS)
        run(
            splats,
            tiny.scene(),
            recipe,
            start=0,
            tracker=Log(),
            log_every=3,
            progress=True,
            on_step=on_step,
        )
        end = "done"
    except StoppedBySignal as stop:
        end = str(stop)
    assert is_main_process() == (rank == 0)
    if not rank:
        torch.save(splats.state_dict(), folder / "end.pt")
    return {"end": end, "called": called, "logged": logged, "rows": len(splats)}


def whole(rank: int, folder: Path) -> dict[str, Any]:
    """A run from its first line to its last."""
    words = ["data.size=24", "data.train_views=4", "data.test_views=1", "data.points=40", "data.samples=1"]
    words += ["data.cache=false", "densify=none", "steps=4", "log_every=4", "tracker=[csv]"]
    words += ["evaluate.turntable=false", "raster=gsplat", "raster.distributed=true", "regularizer=[]"]
    run = build(compose(words))
    scene, state = run.prepare(folder / f"run{rank}")
    messages = state.messages
    result = run.fit(scene, state, folder / f"run{rank}")
    if not rank:
        torch.save({}, folder / "end.pt")
    return {"psnr": result.get("psnr"), "rows": len(state.splats), "messages": messages}


def main(rank: int, folder: Path, case: str) -> None:
    """Meet the other process, and do what a case says."""
    store = dist.FileStore(str(folder / "meeting"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    gsplat.rasterization = rasterization
    Gsplat.device, Gsplat.backend = torch.device("cpu"), "reference"
    Gsplat.ensure_available, Gsplat.selection_note = lambda self: None, "gsplat stands in"
    said = whole(rank, folder) if case == "run" else loop(rank, folder, case)
    (folder / f"said{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()  # its threads must end before the interpreter does


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
