"""Training one scene on several GPUs: each process holds part of the rows and renders views of its own.

`torchrun --nproc_per_node=<GPUs> -m splatexp raster=gsplat raster.distributed=true` starts the processes.
Each step renders as many views as there are processes, each with all rows: gsplat exchanges the projected
Gaussians and returns the gradients to the process that holds the row. An update takes the sum of the
gradients. Density control sees only the rows of its own process, initially every n-th row for n processes:
`max_gaussians` is divided among the processes, its other counts hold for each.

The main process has rank 0. All rows are gathered there for checkpoints and at the end, and it alone writes.

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
from splatexp.system.process_group import is_main_process
from splatexp.system.signals import StoppedBySignal

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.densify.strategy import Strategy
    from splatexp.evaluation.evaluate import EvaluationSettings
    from splatexp.raster.rasterizer import Rasterizer, Render
    from splatexp.system.signals import StopSignals
    from splatexp.train.recipe import Recipe
    from splatexp.viewer.settings import ViewerSettings

UID_STRIDE = 1 << 40  # between the first new uids of two processes
NOT_PER_ROW = ("next_uid", "initial", "extent")  # entries in the state of rows that have no row dimension


@contextmanager
def worker_folder(raster: Rasterizer) -> Iterator[list[str]]:
    """Yield overrides that give a process other than the main one a temporary run folder; [] otherwise."""
    if not raster.distributed or os.environ.get("RANK", "0") == "0":
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="splatexp-rank-") as folder:
        yield [f"hydra.run.dir='{folder}'"]


def check_settings(recipe: Recipe, evaluate: EvaluationSettings, viewer: ViewerSettings) -> None:
    """Refuse settings that do not work with several processes.  Raises: ValueError, one line."""
    absgrad = any("absgrad" in recipe.densify.render_requests(step) for step in range(0, recipe.steps, 10))
    unsupported = {
        "importance": (recipe.importance.is_learned, "none"),
        "camera": (recipe.camera.is_learned, "fixed"),
        "densify": (absgrad, "scores that need no absolute gradients"),
        "evaluate.every": (evaluate.every > 0, "0"),
        "evaluate.train_images_every": (evaluate.train_images_every > 0, "0"),
        "batch": (recipe.batch > 1, "1, since each process renders a view of its own"),
        "oom": (recipe.oom != "stop", "stop"),
        "viewer": (viewer.enabled, "false"),
    }
    for name, (is_set, expected) in unsupported.items():
        if is_set:
            raise ValueError(f"{name}: expected {expected} with raster.distributed=true")


def distribute_training(train: Callable[..., Any], signals: StopSignals, every: int) -> Callable[..., Any]:
    """Return a training loop in which each process trains its part of the rows.

    `on_step` is called in the main process alone, with all rows, where a checkpoint is due or a signal came.
    At the end the main process holds all rows again.

    Args:
        train: `splatexp.train.train`, called with the same settings in every process.
        every: steps between two checkpoints; 0: none.
    """

    def distributed_train(splats: Splats, scene: Scene, recipe: Recipe, **arguments: Any) -> Any:
        _check_image_sizes(scene)
        steps, on_step, device = recipe.steps, arguments["on_step"], recipe.raster.device
        arguments["start"] = _broadcast(arguments["start"])
        own_rows, tracker = scatter_rows(splats), arguments["tracker"]

        def after_step(step: int, rows: Splats) -> None:
            signals.caught = _all_reduce(signals.poll(), dist.ReduceOp.MAX, device)
            last = step + 1 == steps
            if signals.caught or last or (every and (step + 1) % every == 0):
                state = gather_rows(rows)
                if state is not None:
                    splats.load_state_dict(state)
                    on_step(step, splats)
                elif signals.caught:
                    raise StoppedBySignal(signals.caught, f" after step {step + 1}")

        cap = -(-recipe.densify.max_gaussians // dist.get_world_size())
        local_densify = replace(recipe.densify, max_gaussians=cap)
        own_recipe = copy.copy(recipe)
        own_recipe.densify = AllViewsStrategy(local_densify, scene, recipe.seed)
        arguments["on_step"] = after_step
        arguments["progress"] = arguments["progress"] and is_main_process()
        arguments["tracker"] = tracker and _SummedTracker(tracker, device)
        result = train(own_rows, _scene_of_this_process(scene), own_recipe, **arguments)
        if is_main_process():
            splats.load_state_dict({name: tensor.to(device) for name, tensor in splats.state_dict().items()})
        return result

    return distributed_train


def scatter_rows(splats: Splats) -> Splats:
    """Return the rows of this process, a part of the main process's; the `splats` of others are ignored."""
    rank, size = dist.get_rank(), dist.get_world_size()
    device = splats.means.device
    state = {name: tensor.cpu() for name, tensor in splats.state_dict().items()}
    parts: list[Any] = [None] * size
    if is_main_process():
        parts = [_every_nth_row(state, other, size) for other in range(size)]
    own: list[Any] = [None]
    dist.scatter_object_list(own, parts if is_main_process() else None, src=0)
    rows = Splats.from_state_dict(own[0], device)
    rows.next_uid += rank * UID_STRIDE
    return rows


def _every_nth_row(state: Mapping[str, Tensor], rank: int, size: int) -> dict[str, Tensor]:
    """Return the state of the rows rank, rank + size, rank + 2 size, ..."""
    part = {
        name: tensor if name in NOT_PER_ROW else tensor[rank::size].clone() for name, tensor in state.items()
    }
    part["initial"] = torch.tensor(len(range(rank, int(state["initial"]), size)))
    return part


def gather_rows(splats: Splats) -> dict[str, Tensor] | None:
    """Return the state of the rows of all processes by rank, on the CPU; None except in the main process."""
    states: list[Any] = [None] * dist.get_world_size()
    state = {name: tensor.cpu() for name, tensor in splats.state_dict().items()}
    dist.gather_object(state, states if is_main_process() else None, dst=0)
    if not is_main_process():
        return None
    gathered = {
        name: torch.cat([other[name] for other in states]) for name in state if name not in NOT_PER_ROW
    }
    gathered["next_uid"] = torch.stack([other["next_uid"] for other in states]).amax()
    gathered["initial"] = torch.stack([other["initial"] for other in states]).sum()
    return gathered | {"extent": state["extent"]}


class AllViewsStrategy:
    """A strategy that observes the views of all processes; the rows of this one are projected into each."""

    def __init__(self, strategy: Strategy, scene: Scene, seed: int):
        self._strategy, self._scene, self._seed = strategy, scene, seed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)

    def observe(self, step: int, splats: Splats, render: Render, camera: Camera) -> None:
        """Have the strategy observe the view of each process."""
        size = dist.get_world_size()
        for rank in range(size):
            view = self._scene.train[self._scene.sample(step * size + rank, self._seed)].camera
            view_camera = Camera(view.viewmats.to(camera.viewmats), camera.Ks, camera.width, camera.height)
            self._strategy.observe(step, splats, _one_view(render, rank), view_camera)


def _one_view(render: Render, view: int) -> Render:
    """Return what the rows of this process were in one view: their projection and its gradient, no image."""
    one = slice(view, view + 1)
    names = ("means2d", "conics", "radii", "visible", "blended_opacities")
    part = {name: getattr(render, name)[one].detach() for name in names}
    if render.means2d.grad is not None:
        part["means2d"].grad = render.means2d.grad[one]
    return replace(render, **part)


def _scene_of_this_process(scene: Scene) -> Scene:
    """Return the scene with a `sample` that draws this process's view of each step."""
    rank, size = dist.get_rank(), dist.get_world_size()
    own: Any = copy.copy(scene)
    own.sample = lambda step, seed: scene.sample(step * size + rank, seed)
    return own


@dataclass
class _SummedTracker:
    """A tracker that logs the numbers of the main process, with the number of Gaussians of all processes."""

    tracker: Any
    device: torch.device

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a step, in the main process."""
        count = _all_reduce(int(scalars["num_gaussians"]), dist.ReduceOp.SUM, self.device)
        if is_main_process():
            self.tracker.log(step, {**scalars, "num_gaussians": count})


def _check_image_sizes(scene: Scene) -> None:
    sizes = {(view.camera.width, view.camera.height) for view in scene.train}
    if len(sizes) > 1:
        raise ValueError(
            f"data: expected images of one size with raster.distributed=true, got {_listed(sorted(sizes))}"
        )


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sizes[:3]) + (" ..." if sizes[3:] else "")


def _broadcast(value: int) -> int:
    """Return the main process's value in every process."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _all_reduce(value: int, operation: Any, device: torch.device) -> int:
    """Return the sum, the maximum, ... of the values of all processes."""
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, operation)
    return int(tensor)
