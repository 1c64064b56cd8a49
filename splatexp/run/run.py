"""One run: its settings, which are the config, and what it does with them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from splatexp.densify.strategy import Strategy
from splatexp.evaluation.evaluate import Evaluate
from splatexp.importance import Importance
from splatexp.losses.photometric import Loss
from splatexp.losses.regularizers import Regularizer
from splatexp.poses import Poses
from splatexp.raster.backends import Auto
from splatexp.raster.rasterizer import Drawing
from splatexp.run import compatibility, distributed
from splatexp.run.checkpoint import Checkpoint, found
from splatexp.run.checkpointer import Keeper
from splatexp.run.manifest import Journal
from splatexp.run.out_of_memory import OutOfMemory, relieve, shrunken
from splatexp.run.periodic_eval import looks
from splatexp.run.resume import resumed
from splatexp.run.state import State
from splatexp.schedules.schedule import Pace
from splatexp.settings.checks import check_choice, check_range
from splatexp.system import devices
from splatexp.system.cgroups import processors
from splatexp.system.memory import Memory, forget_peak, is_out
from splatexp.system.rng import seed_everything
from splatexp.system.signals import Signals
from splatexp.tracking import Console, Tracker, Trackers
from splatexp.train.dropout import Dropout
from splatexp.train.optimizer import Updates
from splatexp.train.rate import Rate
from splatexp.train.smoothing import Smoothing
from splatexp.viewer import Between, Viewer

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.gaussians.rows import Rows

QUALITY = ("psnr", "psnr_u8", "ssim", "lpips_vgg", "lpips_alex", "lpips_vgg01")
QUALITY += ("psnr_carried", "ssim_carried", "psnr_aligned", "ssim_aligned")
POSES = ("pose_rotation_deg", "pose_translation", "pose_focal_percent")
OBJECTIVES = (*QUALITY, *POSES, "num_gaussians", "train_seconds", "wall_seconds", "peak_memory_bytes")
SHOWN = 4  # held-out comparisons that go to the trackers


class Data(Protocol):
    """Where a scene comes from."""

    def load(self) -> Scene:
        """The scene, read whole.  Raises: OSError, ValueError with one line."""
        ...


class Source(Protocol):
    """Where the first rows come from."""

    def __call__(self, scene: Scene, seed: int = 0) -> Rows:
        """The first rows, from (scene, seed) alone.  Raises: ValueError for a scene that gives none."""


@dataclass(kw_only=True)
class Run:
    """Train one scene and measure it. The fields are the keys of the command line, in its order."""

    steps: int
    seed: int = 0
    threads: int = 0  # 0: all
    data: Data
    model: Source
    raster: Drawing
    camera: Poses
    batch: int = 1  # views a step: the mean of what they lose
    loss: Loss = field(default_factory=Loss)
    optimizer: Updates
    schedule: Pace
    densify: Strategy
    importance: Importance
    rate: Rate
    dropout: Dropout = field(default_factory=Dropout)
    smoothing: Smoothing = field(default_factory=Smoothing)
    regularizer: dict[str, Regularizer] = field(default_factory=dict)
    tracker: dict[str, Tracker] = field(default_factory=dict)
    log_every: int = 50  # steps
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    # auto: from the newest checkpoint in the run's folder; or another run's folder, or a file
    resume: str = ""
    # when memory runs out: stop, with a checkpoint; shrink: go on with fewer rows or pixels
    oom: str = "stop"
    memory: Memory = field(default_factory=Memory)
    # refuse what may give other bits the next time; the CPU always gives the same
    deterministic: bool = False
    evaluate: Evaluate = field(default_factory=Evaluate)
    # what a sweep optimises: a name in metrics.json, or several
    objective: str | list[str] = field(default="psnr", metadata={"unit": "words"})
    force: bool = False  # in a sweep: run it although it is finished
    # where sweeps note which jobs are done; "": nowhere
    ledger: str = field(default="multirun/.ledger", metadata={"unit": "path"})
    viewer: Viewer = field(default_factory=Viewer)

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("seed", self.seed, 0)
        check_range("threads", self.threads, 0, 1024)
        check_range("batch", self.batch, 1)
        check_range("log_every", self.log_every, 1)
        for name in self.objectives:
            check_choice("objective", name, OBJECTIVES)
        check_choice("oom", self.oom, ("stop", "shrink"))
        compatibility.is_picture(self)
        if isinstance(self.raster, Auto):  # what is recorded of the run is what draws
            self.raster = self.raster.chosen(self.deterministic, self.densify.wants)
        if self.deterministic and not self.raster.deterministic:
            raise ValueError(f"deterministic: expected false with raster={self.raster.name}, got true")
        if missing := self.densify.wants - self.raster.offers:
            raise ValueError(
                f"densify: expected scores that raster={self.raster.name} can gather, "
                f"got some that read {', '.join(sorted(missing))}"
            )
        if getattr(self.data, "guessed", False) and not self.camera.learns:
            got = "whose cameras are guesses, got fixed; preset=head has all that goes with it"
            raise ValueError(f"camera: expected orbit or another that learns with data=photos, {got}")
        if "importance" in self.densify.words and not self.importance.learns:
            raise ValueError("importance: expected logit, mlp or mask, as a rule reads it, got none")
        if self.raster.distributed:
            distributed.check(self)

    def __call__(self, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Everything from loading to the summary, into `folder`.  Returns: what metrics.json holds."""
        return self.fit(*self.prepare(folder), folder, overrides)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What a sweep optimises, as names."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    def settle(self) -> None:
        """Set threads, allocator and every seed of this process to those of the run.

        Raises: ValueError, one line, for a rasterizer that cannot run here.
        """
        self.raster.require()
        self.memory.settle()
        devices.settle(self.raster.device, self.deterministic)
        _use_threads(self.threads, self.raster.backend)
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # imports a compiler
            torch.use_deterministic_algorithms(self.deterministic)
        seed_everything(self.seed)

    def prepare(self, folder: str | Path) -> tuple[Scene, State]:
        """The scene, and the state to go on from: the first Gaussians, or a checkpoint as `resume` says.

        Raises: OSError, ValueError with one line for input that cannot be used; nothing is written then.
        """
        began = time.perf_counter()
        forget_peak()
        self.settle()
        self.viewer.check()
        scene = self.data.load()
        for part in (*self.regularizer.values(), self.rate):
            part.check(scene)
        state = resumed(self, scene, Path(folder)) if self.resume else None
        left = found(Path(folder, "checkpoints"))
        if left and not self.resume:
            raise ValueError(
                f"{folder}: a run has come to step {left[0][0]} there; resume=auto goes on with it, "
                "hydra.run.dir=<folder> begins elsewhere"
            )
        if state is None:
            state = State(self.raster.equipped(self.model(scene, self.seed)).to(self.raster.device))
            state.news += [f"nothing to resume in {folder}: begun anew"] if self.resume else []
        state.news[:0] = [self.raster.why] if self.raster.why else []
        state.news = state.news if distributed.leads() else []
        state.began = began
        return scene, state

    def fit(
        self, scene: Scene, state: State, folder: str | Path, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train, save, measure, show.

        Raises: OSError when a file cannot be written; FloatingPointError; MemoryError; `survive.Stopped`.
        """
        folder = Path(folder)
        journal = Journal(self, scene, state, folder, overrides)
        trackers, code = Trackers(self.tracker if distributed.leads() else {}), 1
        with Signals() as signals:
            try:
                trackers.start(journal.session)
                result = self._fit(scene, state, folder, trackers, journal, signals)
                code = 0
            except KeyboardInterrupt as stop:
                code = getattr(stop, "code", 130)
                raise
            except Exception as error:
                if is_out(error) and not isinstance(error, OutOfMemory):  # loading is done, training too
                    raise OutOfMemory.outside(error, folder) from error
                raise
            finally:
                trackers.finish(code)
                journal.finish(code)
        return result

    def _fit(
        self, scene: Scene, state: State, folder: Path, trackers: Trackers, journal: Journal, signals: Signals
    ) -> dict[str, Any]:
        from splatexp.evaluation.evaluate import evaluate, summary
        from splatexp.gaussians.splats import Splats
        from splatexp.io.ply import save_ply, save_splat
        from splatexp.poses.files import save_cameras

        keeper = Keeper(self, scene, state, folder, journal.notes, signals)
        with self.viewer.opened(self, scene, folder, trackers, signals) as watch:
            self._train(scene, state, trackers, keeper, watch)
        if not distributed.leads():
            return {}
        scene = self.camera.placed(scene, state.splats)
        if self.camera.learns:
            save_cameras(folder, scene)
        more = self.rate.finish(state.splats, scene, self.raster, folder)
        if isinstance(state.splats, Splats):
            baked = state.splats.baked()
            save_ply(folder / "point_cloud.ply", baked)
            save_splat(folder / "point_cloud.splat", baked)
        result = evaluate(
            state.splats, self.raster.alone(), scene, folder, self.evaluate,
            train_seconds=state.record.seconds,
            wall_seconds=state.wall(), peak_memory_bytes=state.peak(), peak_device_bytes=state.peak_device(),
            data=self.data, overrides=journal.overrides, more=more,
            run={"id": journal.id, "resumed": state.resumed, "shrunk": state.shrunk},
        )  # fmt: skip
        self._show(result, folder, trackers)
        summary(result, folder)
        return result

    def _train(self, scene: Scene, state: State, trackers: Trackers, keeper: Keeper, watch: Between) -> None:
        """The loop; again, with less, when memory has run out and `oom` is shrink."""
        from splatexp.train.loop import train

        if self.raster.distributed:
            train = distributed.over(train, keeper.signals, self.checkpoint.every)
        shows = any(isinstance(tracker, Console) for tracker in self.tracker.values())
        look = looks(self, scene, trackers, keeper.folder.parent)

        def between(step: int, splats: Rows) -> None:
            look(step, splats)
            watch(step, splats)
            keeper(step, splats)

        state.settle()
        while True:
            densify, schedule = shrunken(self, state)
            try:
                keeper.signals.patient = True
                train(
                    state.splats, scene, raster=self.raster, loss=self.loss, optimizer=self.optimizer,
                    schedule=schedule, densify=densify, importance=self.importance, dropout=self.dropout,
                    smoothing=self.smoothing, regularizers=self.regularizer, poses=self.camera,
                    tracker=trackers, log_every=self.log_every, steps=self.steps, start=state.step,
                    batch=self.batch, seed=self.seed, progress=shows, on_step=between, record=state.record,
                    rate=self.rate,
                )  # fmt: skip
                return
            except Exception as error:
                if not is_out(error):
                    raise
                lost = error
            finally:
                keeper.signals.patient = False
                keeper.watch.lift()
            relieve(self, lost, scene, state, keeper)

    def _show(self, result: dict[str, Any], folder: Path, trackers: Trackers) -> None:
        """Give the trackers the held-out means, each view's, some of the comparisons drawn, and the model."""
        import numpy as np
        from PIL import Image

        step = self.steps - 1
        trackers.log(step, {f"test_{name}": result[name] for name in QUALITY if result.get(name) is not None})
        trackers.table(step, "per_view", result["per_view"])
        for path in sorted((folder / "renders").glob("*.png"))[:SHOWN]:
            with Image.open(path) as picture:
                trackers.image(step, path.stem, np.asarray(picture.convert("RGB")))
        if not compatibility.is_picture(self):
            trackers.file(folder / "point_cloud.ply")


def _use_threads(threads: int, backend: str) -> None:
    """Set the threads of kernels and torch, whatever an earlier run in this process has set."""
    import splatexp_kernels

    if backend == "cpu":
        splatexp_kernels.set_num_threads(threads or processors())
    # torch gets one of its own: its sums depend on their number, and its pool disturbs that of the kernels
    torch.set_num_threads(1 if backend == "cpu" else threads or 1)
