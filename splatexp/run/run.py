"""A run: a recipe, and everything around it: from loading the data to the summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import splatexp_kernels
from splatexp.data.scene import Scene
from splatexp.evaluation.evaluate import Evaluate, evaluate
from splatexp.evaluation.summary import summary
from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import Splats
from splatexp.io.ply import save_ply, save_splat
from splatexp.poses.files import save_cameras
from splatexp.run import distributed
from splatexp.run.checkpoint import Checkpoint, found
from splatexp.run.checkpointer import Keeper
from splatexp.run.manifest import Journal
from splatexp.run.out_of_memory import OutOfMemory, relieve, shrunken
from splatexp.run.periodic_eval import looks
from splatexp.run.resume import resumed
from splatexp.run.state import State
from splatexp.settings.checks import check_choice, check_range
from splatexp.settings.serialize import settings
from splatexp.system import devices
from splatexp.system.cgroups import processors
from splatexp.system.memory import Memory, forget_peak, is_out
from splatexp.system.process_group import leads
from splatexp.system.rng import seed_everything
from splatexp.system.signals import Signals
from splatexp.tracking import Console, Tracker, Trackers
from splatexp.train.loop import train
from splatexp.train.recipe import Recipe
from splatexp.viewer.serve import opened
from splatexp.viewer.settings import Between, Viewer

QUALITY = (
    "psnr",
    "psnr_u8",
    "ssim",
    "lpips_vgg",
    "lpips_alex",
    "lpips_vgg01",
    "psnr_carried",
    "ssim_carried",
    "psnr_aligned",
    "ssim_aligned",
)
POSES = ("pose_rotation_deg", "pose_translation", "pose_focal_percent")
OBJECTIVES = (*QUALITY, *POSES, "num_gaussians", "train_seconds", "wall_seconds", "peak_memory_bytes")
SHOWN = 4  # held-out comparisons that the trackers get
NOT_IN_JOB_ID = {"in_job_id": False}  # metadata: a sweep over such a setting would run the same job again


@dataclass(kw_only=True)
class Run(Recipe):
    """A run: a recipe, and where it is stored, how it is logged and watched, and what is measured of it.

    Its fields, with those of `Recipe` before them, are the keys of the command line.
    """

    threads: int = 0  # of the CPU kernels; 0 takes all processors
    tracker: dict[str, Tracker] = field(default_factory=dict)
    log_every: int = 50  # steps between two logged rows
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    # "auto" continues from the newest checkpoint in the run's folder; else another run's folder, or a file
    resume: str = ""
    memory: Memory = field(default_factory=Memory)
    evaluate: Evaluate = field(default_factory=Evaluate)
    # what a sweep optimises: one or several names of numbers in metrics.json
    objective: str | list[str] = field(default="psnr", metadata={"unit": "words"})
    force: bool = field(default=False, metadata=NOT_IN_JOB_ID)  # a sweep runs the job even if it is finished
    # the folder in which sweeps record the jobs that were begun; "" records nothing
    ledger: str = field(default="multirun/.ledger", metadata={"unit": "path", **NOT_IN_JOB_ID})
    viewer: Viewer = field(default_factory=Viewer, metadata=NOT_IN_JOB_ID)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threads", self.threads, 0, 1024)
        check_range("log_every", self.log_every, 1)
        for name in self.objectives:
            check_choice("objective", name, OBJECTIVES)
        if self.is_image:
            self._check_image()
        if self.raster.distributed:
            distributed.check(self, self.evaluate, self.viewer)

    def _check_image(self) -> None:
        """Check the settings around the recipe of an image against what an image lacks."""
        for name, value in (
            ("viewer.on", self.viewer.on),
            ("evaluate.turntable", self.evaluate.turntable),
            ("evaluate.align", self.evaluate.align),
            ("checkpoint.cut_sh", self.checkpoint.cut_sh),
        ):
            if value:
                raise ValueError(f"{name}: expected false with data=image, got true")

    def __call__(self, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Load, train, measure and save the run into `folder`, and return what metrics.json holds."""
        return self.fit(*self.prepare(folder), folder, overrides)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of what a sweep optimises."""
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
        """Load the scene, and make the state to start from: new Gaussians, or a checkpoint as `resume` says.

        Raises: OSError, ValueError with one line for input that cannot be used; nothing is written then.
        """
        began = time.perf_counter()
        forget_peak()
        self.settle()
        self.viewer.check()
        scene = self.data.load()
        for part in (*self.regularizer.values(), self.rate):
            part.check(scene)
        state = None
        if self.resume:
            state = resumed(self, self.resume, self.checkpoint, scene, Path(folder))
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
        state.news = state.news if leads() else []
        state.began = began
        return scene, state

    def fit(
        self, scene: Scene, state: State, folder: str | Path, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train from `state`, save the model, measure it, and return what metrics.json holds.

        Raises: OSError when a file cannot be written; FloatingPointError; MemoryError; `signals.Stopped`.
        """
        folder = Path(folder)
        journal = Journal(self, settings(self), scene, state, folder, overrides)
        trackers = Trackers(self.tracker if leads() else {})
        code = 1
        with Signals() as signals:
            try:
                trackers.start(journal.session)
                result = self._fit(scene, state, folder, trackers, journal, signals)
                code = 0
            except KeyboardInterrupt as stop:
                code = getattr(stop, "code", 130)
                raise
            except Exception as error:
                if is_out(error) and not isinstance(error, OutOfMemory):  # loading and training are done
                    raise OutOfMemory.outside(error, folder) from error
                raise
            finally:
                trackers.finish(code)
                journal.finish(code)
        return result

    def _fit(
        self, scene: Scene, state: State, folder: Path, trackers: Trackers, journal: Journal, signals: Signals
    ) -> dict[str, Any]:
        """Train, save and measure, while trackers, manifest and signal handlers are in place."""
        keeper = Keeper(self, self.checkpoint, self.memory, scene, state, folder, journal.notes, signals)
        with opened(self.viewer, self, scene, folder, trackers, signals) as watch:
            self._train(scene, state, trackers, keeper, watch)
        if not leads():
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
            state.splats,
            self.raster.alone(),
            scene,
            folder,
            self.evaluate,
            train_seconds=state.record.seconds,
            wall_seconds=state.wall(),
            peak_memory_bytes=state.peak(),
            peak_device_bytes=state.peak_device(),
            data=self.data,
            overrides=journal.overrides,
            more=more,
            run={"id": journal.id, "resumed": state.resumed, "shrunk": state.shrunk},
        )
        self._show(result, folder, trackers)
        summary(result, folder)
        return result

    def _train(self, scene: Scene, state: State, trackers: Trackers, keeper: Keeper, watch: Between) -> None:
        """Run the loop, and run it again with less where memory has run out and `oom` is "shrink"."""
        look = looks(self, self.evaluate, scene, trackers, keeper.folder.parent)

        def on_step(step: int, rows: Rows) -> None:
            look(step, rows)
            watch(step, rows)
            keeper(step, rows)

        fit = (
            distributed.over(train, keeper.signals, self.checkpoint.every)
            if self.raster.distributed
            else train
        )
        state.settle()
        while True:
            try:
                keeper.signals.patient = True
                fit(
                    state.splats,
                    scene,
                    shrunken(self, state),
                    start=state.step,
                    record=state.record,
                    tracker=trackers,
                    log_every=self.log_every,
                    progress=any(isinstance(tracker, Console) for tracker in self.tracker.values()),
                    on_step=on_step,
                )
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
        """Give the trackers the held-out means, the metrics of each view, some comparisons, and the model."""
        step = self.steps - 1
        trackers.log(step, {f"test_{name}": result[name] for name in QUALITY if result.get(name) is not None})
        trackers.table(step, "per_view", result["per_view"])
        for path in sorted((folder / "renders").glob("*.png"))[:SHOWN]:
            with Image.open(path) as picture:
                trackers.image(step, path.stem, np.asarray(picture.convert("RGB")))
        if not self.is_image:
            trackers.file(folder / "point_cloud.ply")


def _use_threads(threads: int, backend: str) -> None:
    """Set the threads of the kernels and of torch, whatever an earlier run in this process has set."""
    if backend == "cpu":
        splatexp_kernels.set_num_threads(threads or processors())
    # torch gets one thread: its sums depend on their number, and its pool disturbs that of the kernels
    torch.set_num_threads(1 if backend == "cpu" else threads or 1)
