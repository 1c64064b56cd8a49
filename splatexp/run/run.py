"""A run: its settings, and everything from loading the data to the summary."""

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
from splatexp.evaluation.evaluate import EvaluationSettings, evaluate
from splatexp.evaluation.summary import print_summary
from splatexp.gaussians.rows import Rows
from splatexp.gaussians.splats import Splats
from splatexp.io.ply import save_ply, save_splat
from splatexp.poses.files import save_cameras
from splatexp.run import distributed
from splatexp.run.checkpoint import CheckpointSettings, list_checkpoints
from splatexp.run.checkpointer import Checkpointer
from splatexp.run.manifest import Manifest
from splatexp.run.out_of_memory import OutOfMemoryError, handle_out_of_memory, reduced_recipe
from splatexp.run.periodic_eval import PeriodicEvaluation
from splatexp.run.resume import resume_state
from splatexp.run.state import TrainingState
from splatexp.settings.checks import check_choice, check_range
from splatexp.settings.serialize import to_config
from splatexp.system import devices
from splatexp.system.linux_memory import cpu_count
from splatexp.system.memory import MemorySettings, is_out_of_memory, reset_peak_memory
from splatexp.system.process_group import is_main_process
from splatexp.system.rng import seed_everything
from splatexp.system.signals import StopSignals
from splatexp.tracking import Console, Tracker, Trackers
from splatexp.train.loop import train
from splatexp.train.recipe import Recipe
from splatexp.viewer.serve import viewer_context
from splatexp.viewer.settings import StepCallback, ViewerSettings

IMAGE_METRICS = (
    "psnr",
    "psnr_u8",
    "ssim",
    "lpips_vgg",
    "lpips_alex",
    "lpips_vgg01",
    "psnr_sim3",
    "ssim_sim3",
    "psnr_pose_opt",
    "ssim_pose_opt",
)
POSE_METRICS = ("pose_rotation_deg", "pose_translation", "pose_focal_percent")
OBJECTIVES = (
    *IMAGE_METRICS,
    *POSE_METRICS,
    "num_gaussians",
    "train_seconds",
    "wall_seconds",
    "peak_memory_bytes",
)
LOGGED_COMPARISONS = 4  # comparison images of held-out views that the trackers get
NOT_IN_JOB_ID = {"in_job_id": False}  # metadata: a sweep over such a setting would run the same job again


@dataclass(kw_only=True)
class Run(Recipe):
    """A run: a recipe, and where it is stored, how it is logged and viewed, and how its result is measured.

    Its fields, with those of `Recipe` before them, are the keys of the config.
    """

    threads: int = 0  # of the CPU kernels; 0: one for each processor
    tracker: dict[str, Tracker] = field(default_factory=dict)
    log_every: int = 50  # steps between two logged rows
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    # "" starts anew, "auto" continues from the newest checkpoint in the run's folder; or the folder of
    # another run, or a checkpoint file
    resume: str = ""
    memory: MemorySettings = field(default_factory=MemorySettings)
    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)
    # what a sweep optimizes: the name of a metric in metrics.json, or a list of names
    objective: str | list[str] = field(default="psnr", metadata={"unit": "names"})
    # true: a sweep runs the job even if its result is known
    force: bool = field(default=False, metadata=NOT_IN_JOB_ID)
    # folder in which sweeps note where a job was started; "": none, and every job is run
    job_cache: str = field(default="multirun/.job_cache", metadata={"unit": "path", **NOT_IN_JOB_ID})
    viewer: ViewerSettings = field(default_factory=ViewerSettings, metadata=NOT_IN_JOB_ID)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threads", self.threads, 0, 1024)
        check_range("log_every", self.log_every, 1)
        for name in self.objectives:
            check_choice("objective", name, OBJECTIVES)
        if self.is_image:
            self._check_image()
        if self.raster.distributed:
            distributed.check_settings(self, self.evaluate, self.viewer)

    def _check_image(self) -> None:
        """Check the settings around the recipe of an image against what an image lacks."""
        for name, value in (
            ("viewer.enabled", self.viewer.enabled),
            ("evaluate.turntable", self.evaluate.turntable),
            ("evaluate.optimize_poses", self.evaluate.optimize_poses),
            ("checkpoint.truncate_sh", self.checkpoint.truncate_sh),
        ):
            if value:
                raise ValueError(f"{name}: expected false with data=image, got true")

    def __call__(self, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Load, train, measure and save the run into `folder`, and return what metrics.json holds."""
        return self.fit(*self.prepare(folder), folder, overrides)

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the metrics that a sweep optimizes."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    def configure_process(self) -> None:
        """Set the threads, the allocator and every random seed of this process as the settings say.

        Raises: ValueError, one line, for a rasterizer that cannot run here.
        """
        self.raster.ensure_available()
        self.memory.configure_allocator()
        devices.configure_device(self.raster.device, self.deterministic)
        _set_num_threads(self.threads, self.raster.backend)
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # the call imports a compiler
            torch.use_deterministic_algorithms(self.deterministic)
        seed_everything(self.seed)

    def prepare(self, folder: str | Path) -> tuple[Scene, TrainingState]:
        """Load the scene, and make the state to start from: new Gaussians, or a checkpoint as `resume` says.

        Raises: OSError, ValueError with one line for input that cannot be used; nothing is written then.
        """
        started = time.perf_counter()
        reset_peak_memory()
        self.configure_process()
        self.viewer.check()
        scene = self.data.load()
        for part in (*self.regularizer.values(), self.rate):
            part.check(scene)
        state = None
        if self.resume:
            state = resume_state(self, self.resume, self.checkpoint, scene, Path(folder))
        existing = list_checkpoints(Path(folder, "checkpoints"))
        if existing and not self.resume:
            raise ValueError(
                f"{folder}: there are checkpoints of a run, up to step {existing[0][0]}; "
                "resume=auto continues it, hydra.run.dir=<folder> starts in another folder"
            )
        if state is None:
            state = TrainingState(
                self.raster.with_required_params(self.model(scene, self.seed)).to(self.raster.device)
            )
            if self.resume:
                state.messages.append(f"no checkpoint in {folder}: starting anew")
        if self.raster.selection_note:
            state.messages.insert(0, self.raster.selection_note)
        if not is_main_process():
            state.messages = []
        state.started = started
        return scene, state

    def fit(
        self, scene: Scene, state: TrainingState, folder: str | Path, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train from `state`, save the model, measure it, and return what metrics.json holds.

        Raises: OSError when a file cannot be written; FloatingPointError; MemoryError; `StoppedBySignal`.
        """
        folder = Path(folder)
        manifest = Manifest(self, to_config(self), scene, state, folder, overrides)
        trackers = Trackers(self.tracker if is_main_process() else {})
        exit_code = 1
        with StopSignals() as signals:
            try:
                trackers.start(manifest.session)
                result = self._fit(scene, state, folder, trackers, manifest, signals)
                exit_code = 0
            except KeyboardInterrupt as stop:
                exit_code = getattr(stop, "code", 130)
                raise
            except Exception as error:
                if is_out_of_memory(error) and not isinstance(
                    error, OutOfMemoryError
                ):  # loading and training are done
                    raise OutOfMemoryError.outside_training(error, folder) from error
                raise
            finally:
                trackers.finish(exit_code)
                manifest.finish(exit_code)
        return result

    def _fit(
        self,
        scene: Scene,
        state: TrainingState,
        folder: Path,
        trackers: Trackers,
        manifest: Manifest,
        signals: StopSignals,
    ) -> dict[str, Any]:
        """Train, save and measure, while trackers, manifest and signal handlers are in place."""
        checkpointer = Checkpointer(
            self, self.checkpoint, self.memory, scene, state, folder, manifest.checkpoint_metadata, signals
        )
        with viewer_context(self.viewer, self, scene, folder, trackers, signals) as update_viewer:
            self._train(scene, state, trackers, checkpointer, update_viewer)
        if not is_main_process():
            return {}
        scene = self.camera.with_learned_cameras(scene, state.splats)
        if self.camera.is_learned:
            save_cameras(folder, scene)
        extra_metrics = self.rate.finish(state.splats, scene, self.raster, folder)
        if isinstance(state.splats, Splats):
            baked = state.splats.baked()
            save_ply(folder / "point_cloud.ply", baked)
            save_splat(folder / "point_cloud.splat", baked)
        result = evaluate(
            state.splats,
            self.raster.single_process(),
            scene,
            folder,
            self.evaluate,
            train_seconds=state.step_log.seconds,
            wall_seconds=state.wall_seconds(),
            peak_memory_bytes=state.peak_memory(),
            peak_device_bytes=state.peak_device_memory(),
            data=self.data,
            overrides=manifest.overrides,
            extra_metrics=extra_metrics,
            run={"id": manifest.id, "resumed_at": state.resumed_at, "oom_reductions": state.oom_reductions},
        )
        self._log_result(result, folder, trackers)
        print_summary(result, folder)
        return result

    def _train(
        self,
        scene: Scene,
        state: TrainingState,
        trackers: Trackers,
        checkpointer: Checkpointer,
        update_viewer: StepCallback,
    ) -> None:
        """Run the training loop; with oom=shrink, run it again, reduced, whenever memory has run out."""
        evaluation = PeriodicEvaluation(self, self.evaluate, scene, trackers, checkpointer.folder.parent)

        def on_step(step: int, rows: Rows) -> None:
            evaluation(step, rows)
            update_viewer(step, rows)
            checkpointer(step, rows)

        fit = (
            distributed.distribute_training(train, checkpointer.signals, self.checkpoint.every)
            if self.raster.distributed
            else train
        )
        state.restore_rng()
        while True:
            try:
                checkpointer.signals.defer = True
                fit(
                    state.splats,
                    scene,
                    reduced_recipe(self, state),
                    start=state.step,
                    step_log=state.step_log,
                    tracker=trackers,
                    log_every=self.log_every,
                    progress=any(isinstance(tracker, Console) for tracker in self.tracker.values()),
                    on_step=on_step,
                )
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                out_of_memory = error
            finally:
                checkpointer.signals.defer = False
                checkpointer.memory_watch.stop()
            handle_out_of_memory(self, out_of_memory, scene, state, checkpointer)

    def _log_result(self, result: dict[str, Any], folder: Path, trackers: Trackers) -> None:
        """Give the trackers the held-out means, the metrics of each view, some comparisons, and the model."""
        step = self.steps - 1
        trackers.log(
            step, {f"eval/{name}": result[name] for name in IMAGE_METRICS if result.get(name) is not None}
        )
        trackers.log_table(step, "per_view", result["per_view"])
        for path in sorted((folder / "renders").glob("*.png"))[:LOGGED_COMPARISONS]:
            with Image.open(path) as image:
                trackers.log_image(step, path.stem, np.asarray(image.convert("RGB")))
        if not self.is_image:
            trackers.log_file(folder / "point_cloud.ply")


def _set_num_threads(threads: int, backend: str) -> None:
    """Set the threads of kernels and torch, regardless of what an earlier run in this process has set."""
    if backend == "cpu":
        splatexp_kernels.set_num_threads(threads or cpu_count())
    # torch gets one thread: its sums depend on the number, and its pool competes with that of the kernels
    torch.set_num_threads(1 if backend == "cpu" else threads or 1)
