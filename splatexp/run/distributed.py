"""One scene over several GPUs: each process holds a share of the rows and looks at views of its own.

`torchrun --nproc_per_node=<GPUs> -m splatexp raster=gsplat raster.distributed=true` starts them. Each step
draws as many views as there are processes, each with all rows: gsplat exchanges what is projected, and
gradients come back to the rows wherever they are. An update takes their sum. Density control looks at the
rows of its process alone, first every n-th one, n the number of processes: `max_gaussians` is shared out
among them, its other counts hold for each.

The process of rank 0 leads: whole rows come together there for checkpoints and the end, and it alone writes.
Source: Zhao et al. 2024, "On Scaling Up 3D Gaussian Splatting Training" (Grendel).
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.gaussians.splats import Splats
from splatexp.system.process_group import leads
from splatexp.system.signals import Stopped

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.densify.strategy import Strategy
    from splatexp.evaluation.evaluate import Evaluate
    from splatexp.raster.rasterizer import Drawing, Render
    from splatexp.system.signals import Signals
    from splatexp.train.recipe import Recipe
    from splatexp.viewer.settings import Viewer

APART = 1 << 40  # between the first new uids of two processes
COUNTS = ("next_uid", "initial", "extent")  # in the state of rows, but no rows


@contextmanager
def aside(raster: Drawing) -> Iterator[list[str]]:
    """Words of the command line that give a process that does not lead a folder, which is gone afterwards."""
    if not raster.distributed or os.environ.get("RANK", "0") == "0":
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="splatexp-rank-") as folder:
        yield [f"hydra.run.dir='{folder}'"]


def check(recipe: Recipe, evaluate: Evaluate, viewer: Viewer) -> None:
    """Hold the settings of a run against what is shared among processes.  Raises: ValueError, one line."""
    asked = {
        "importance": (recipe.importance.learns, "none"),
        "camera": (recipe.camera.learns, "fixed"),
        "densify": (
            any("absgrad" in recipe.densify.channels(step) for step in range(0, recipe.steps, 10)),
            "scores that read no absolute gradients",
        ),
        "evaluate.every": (evaluate.every > 0, "0"),
        "evaluate.pictures": (evaluate.pictures > 0, "0"),
        "batch": (recipe.batch > 1, "1, as each process has a view"),
        "oom": (recipe.oom != "stop", "stop"),
        "viewer": (viewer.on, "false"),
    }
    for name, (wrong, expected) in asked.items():
        if wrong:
            raise ValueError(f"{name}: expected {expected} with raster.distributed=true")


def over(train: Callable[..., Any], signals: Signals, every: int) -> Callable[..., Any]:
    """The training loop, each process with its share; the leader's rows are whole again at the end.

    `on_step` is called of the leader alone, with whole rows, where a checkpoint is due or a signal came.

    Args:
        train: as `splatexp.train.loop.train`, in every process with the same settings.
        every: steps between two checkpoints, 0: none.
    """

    def trained(splats: Splats, scene: Scene, recipe: Recipe, **known: Any) -> Any:
        _check_sizes(scene)
        steps, on_step, device = recipe.steps, known["on_step"], recipe.raster.device
        known["start"] = _told(known["start"])
        mine, tracker = share(splats), known["tracker"]

        def between(step: int, rows: Splats) -> None:
            signals.caught = _reduced(signals.heed(), dist.ReduceOp.MAX, device)
            last = step + 1 == steps
            if signals.caught or last or (every and (step + 1) % every == 0):
                whole = gather(rows)
                if whole is not None:
                    splats.load_state_dict(whole)
                    on_step(step, splats)
                elif signals.caught:
                    raise Stopped(signals.caught, f" after step {step + 1}")

        own = copy.copy(recipe)
        cap = -(-recipe.densify.max_gaussians // dist.get_world_size())
        own.densify = Everyone(replace(recipe.densify, max_gaussians=cap), scene, recipe.seed)
        known |= {"on_step": between, "progress": known["progress"] and leads()}
        known["tracker"] = tracker and _Summed(tracker, device)
        result = train(mine, _mine(scene), own, **known)
        if leads():
            splats.load_state_dict({name: tensor.to(device) for name, tensor in splats.state_dict().items()})
        return result

    return trained


def share(splats: Splats) -> Splats:
    """The rows of this process, out of the leader's whole ones; what others have here is of no account."""
    rank, size = dist.get_rank(), dist.get_world_size()
    device = splats.means.device
    state = {name: tensor.cpu() for name, tensor in splats.state_dict().items()}
    parts: list[Any] = [None] * size
    if leads():
        parts = [_part(state, other, size) for other in range(size)]
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, parts if leads() else None, src=0)
    made = Splats.of(mine[0], device)
    made.next_uid += rank * APART
    return made


def _part(state: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """Every size-th row; the numbers of rows are theirs."""
    part = {name: tensor if name in COUNTS else tensor[rank::size].clone() for name, tensor in state.items()}
    part["initial"] = torch.tensor(len(range(rank, int(state["initial"]), size)))
    return part


def gather(splats: Splats) -> dict[str, Tensor] | None:
    """The state of all rows, by process, on the CPU; None where this one does not lead."""
    states: list[Any] = [None] * dist.get_world_size()
    state = {name: tensor.cpu() for name, tensor in splats.state_dict().items()}
    dist.gather_object(state, states if leads() else None, dst=0)
    if not leads():
        return None
    whole = {name: torch.cat([other[name] for other in states]) for name in state if name not in COUNTS}
    whole["next_uid"] = torch.stack([other["next_uid"] for other in states]).amax()
    whole["initial"] = torch.stack([other["initial"] for other in states]).sum()
    return whole | {"extent": state["extent"]}


class Everyone:
    """A strategy that observes the views of all processes: this one's rows were projected into each."""

    def __init__(self, strategy: Strategy, scene: Scene, seed: int):
        self._strategy, self._scene, self._seed = strategy, scene, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Add each view's."""
        size = dist.get_world_size()
        for rank in range(size):
            view = self._scene.train[self._scene.sample(step * size + rank, self._seed)].camera
            there = Camera(view.viewmats.to(camera.viewmats), camera.Ks, camera.width, camera.height)
            self._strategy.observe(step, splats, _seen(render, rank), there)


def _seen(render: Render, view: int) -> Render:
    """What the rows of this process were in one view: their geometry and its gradient, not the picture."""
    one = slice(view, view + 1)
    names = ("means2d", "conics", "radii", "visible", "blended")
    part = {name: getattr(render, name)[one].detach() for name in names}
    if render.means2d.grad is not None:
        part["means2d"].grad = render.means2d.grad[one]
    return replace(render, **part)


def _mine(scene: Scene) -> Scene:
    """The scene with the views of this process: of each round of draws one."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mine: Any = copy.copy(scene)
    mine.sample = lambda step, seed: scene.sample(step * size + rank, seed)
    return mine


@dataclass
class _Summed:
    """A tracker that is told of the rows of all processes, and tells the leader's."""

    tracker: Any
    device: torch.device

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """As the tracker, from the leader."""
        count = _reduced(int(scalars["num_gaussians"]), dist.ReduceOp.SUM, self.device)
        if leads():
            self.tracker.log(step, {**scalars, "num_gaussians": count})


def _check_sizes(scene: Scene) -> None:
    sizes = {(view.camera.width, view.camera.height) for view in scene.train}
    if len(sizes) > 1:
        raise ValueError(
            f"data: expected views of one size with raster.distributed=true, got {_several(sorted(sizes))}"
        )


def _several(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (" ..." if sizes[3:] else "")


def _told(value: int) -> int:
    """The leader's number."""
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _reduced(value: int, how: Any, device: torch.device) -> int:
    """The sum, the largest, ... of the numbers of all processes."""
    box = torch.tensor(value, device=device)
    dist.all_reduce(box, how)
    return int(box)
