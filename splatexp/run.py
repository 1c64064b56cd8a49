"""One run: its settings, which are the config, and what it does with them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from splatexp.cgroups import processors
from splatexp.checkpoint import Checkpoint, found
from splatexp.choices import check_choice, check_range
from splatexp.densify.strategy import Strategy
from splatexp.dropout import Dropout
from splatexp.evaluate import Evaluate
from splatexp.importance import Importance
from splatexp.journal import Journal
from splatexp.losses import Loss
from splatexp.memory import CAP, FACTOR, Memory, advice, forget_peak, is_out, shrink
from splatexp.model import Model
from splatexp.optimizer import Adam
from splatexp.raster import Rasterizer
from splatexp.regularizers import Regularizer
from splatexp.restore import resumed
from splatexp.schedules import Schedule
from splatexp.seeds import seed_everything
from splatexp.smoothing import Smoothing
from splatexp.state import State
from splatexp.survive import Keeper, OutOfMemory, Signals
from splatexp.tracking import Console, Tracker, Trackers

if TYPE_CHECKING:
    from splatexp.data.scene import Scene
    from splatexp.splats import Splats

QUALITY = ("psnr", "psnr_u8", "ssim", "lpips_vgg", "lpips_alex", "lpips_vgg01")
OBJECTIVES = (*QUALITY, "num_gaussians", "train_seconds", "wall_seconds", "peak_memory_bytes")
SHOWN = 4  # held-out comparisons that go to the trackers


class Data(Protocol):
    """Where a scene comes from."""

    def load(self) -> Scene:
        """The scene, read whole.  Raises: OSError, ValueError with one line."""
        ...


@dataclass(kw_only=True)
class Run:
    """Train one scene and measure it. The fields are the keys of the command line, in its order."""

    steps: int
    seed: int = 0
    threads: int = 0  # 0: all
    data: Data
    model: Model = field(default_factory=Model)
    raster: Rasterizer
    loss: Loss = field(default_factory=Loss)
    optimizer: Adam = field(default_factory=Adam)
    schedule: Schedule
    densify: Strategy
    importance: Importance
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

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("threads", self.threads, 0)
        check_range("log_every", self.log_every, 1)
        for name in self.objectives:
            check_choice("objective", name, OBJECTIVES)
        check_choice("oom", self.oom, ("stop", "shrink"))
        if self.deterministic and not self.raster.deterministic:
            raise ValueError(f"deterministic: expected false with raster={self.raster.backend}, got true")
        if missing := self.densify.wants - self.raster.offers:
            raise ValueError(
                f"densify: expected scores that raster={self.raster.backend} can gather, "
                f"got some that read {', '.join(sorted(missing))}"
            )
        if "importance" in self.densify.words and not self.importance.learns:
            raise ValueError("importance: expected logit, mlp or mask, as a rule reads it, got none")

    def __call__(self, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Everything from loading to the summary, into `folder`.  Returns: what metrics.json holds."""
        return self.fit(*self.prepare(folder), folder, overrides)

    @property
    def objectives(self) -> tuple[str, ...]:
        """What a sweep optimises, as names."""
        return (self.objective,) if isinstance(self.objective, str) else tuple(self.objective)

    def settle(self) -> None:
        """Set threads, allocator and every seed of this process to those of the run."""
        self.memory.settle()
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
        scene = self.data.load()
        for penalty in self.regularizer.values():
            penalty.check(scene)
        state = resumed(self, scene, Path(folder)) if self.resume else None
        left = found(Path(folder, "checkpoints"))
        if left and not self.resume:
            raise ValueError(
                f"{folder}: a run has come to step {left[0][0]} there; resume=auto goes on with it, "
                "hydra.run.dir=<folder> begins elsewhere"
            )
        if state is None:
            state = State(self.model(scene, self.seed))
            state.news += [f"nothing to resume in {folder}: begun anew"] if self.resume else []
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
        trackers, code = Trackers(self.tracker), 1
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
        from splatexp.evaluate import evaluate, summary
        from splatexp.export import save_ply, save_splat

        keeper = Keeper(self, scene, state, folder, journal.notes, signals)
        self._train(scene, state, trackers, keeper)
        baked = state.splats.baked()
        save_ply(folder / "point_cloud.ply", baked)
        save_splat(folder / "point_cloud.splat", baked)
        result = evaluate(
            state.splats, self.raster, scene, folder, self.evaluate,
            train_seconds=state.record.seconds,
            wall_seconds=state.wall(), peak_memory_bytes=state.peak(),
            data=self.data, overrides=journal.overrides,
            run={"id": journal.id, "resumed": state.resumed, "shrunk": state.shrunk},
        )  # fmt: skip
        self._show(result, folder, trackers)
        summary(result, folder)
        return result

    def _train(self, scene: Scene, state: State, trackers: Trackers, keeper: Keeper) -> None:
        """The loop; again, with less, when memory has run out and `oom` is shrink."""
        from splatexp.train import train

        shows = any(isinstance(tracker, Console) for tracker in self.tracker.values())
        looks = self._looks(scene, trackers)

        def between(step: int, splats: Splats) -> None:
            looks(step, splats)
            keeper(step, splats)

        state.settle()
        while True:
            densify, schedule = self._shrunken(state)
            try:
                keeper.signals.patient = True
                train(
                    state.splats, scene, raster=self.raster, loss=self.loss, optimizer=self.optimizer,
                    schedule=schedule, densify=densify, importance=self.importance, dropout=self.dropout,
                    smoothing=self.smoothing, regularizers=self.regularizer, tracker=trackers,
                    log_every=self.log_every, steps=self.steps, start=state.step, seed=self.seed,
                    progress=shows, on_step=between, record=state.record,
                )  # fmt: skip
                return
            except Exception as error:
                if not is_out(error):
                    raise
                lost = error
            finally:
                keeper.signals.patient = False
                keeper.watch.lift()
            self._out_of_memory(lost, scene, state, keeper)

    def _shrunken(self, state: State) -> tuple[Strategy, Schedule]:
        """Density control and schedule with what was taken from them for want of memory."""
        taken = {each["setting"]: each["to"] for each in state.shrunk}
        densify = replace(self.densify, max_gaussians=taken.get(CAP, self.densify.max_gaussians))
        schedule = replace(self.schedule, least_factor=taken.get(FACTOR, self.schedule.least_factor))
        return densify, schedule

    def _out_of_memory(self, error: BaseException, scene: Scene, state: State, keeper: Keeper) -> None:
        """Save what there is; then go on with less, or raise MemoryError with advice."""
        text, broken = " ".join(str(error).split())[:200], not state.splats.between
        saved = keeper.rescue(error)
        camera, count = scene.train[0].camera, len(state.splats)
        densify, schedule = self._shrunken(state)
        factor = schedule.fitted(scene.train).factor(state.step)
        size = (camera.width // factor, camera.height // factor)
        degree = state.splats.sh_degree
        less = shrink(count, *size, factor, degree) if saved or not broken else None
        story = f"out of memory at step {state.step} ({text})"
        if self.oom == "shrink" and less:
            if broken and saved:
                state.restore(saved)
                story += f", back to step {state.step}"
            setting, value = less
            before = densify.max_gaussians if setting == CAP else factor
            state.shrunk.append({"step": state.step, "setting": setting, "from": before, "to": value})
            for edit in self._shrunken(state)[0].trim(state.step, state.splats):
                state.splats.apply(edit)
            warnings.warn(f"{story}; goes on with {setting}={value}", stacklevel=2)
            return
        tip = advice(
            count, *size, degree, factor=factor, pictures=len(scene.train) + len(scene.test),
            downscale=getattr(self.data, "downscale", 0), oom=self.oom,
        )  # fmt: skip
        kept = f"resume=auto goes on from {saved}" if saved else "no checkpoint was written"
        raise OutOfMemory(f"{story}; {kept}; {tip}")

    def _looks(self, scene: Scene, trackers: Trackers) -> Any:
        """What is measured after a step, off the clock: held-out means now and then."""
        from splatexp.evaluate import means, measure
        from splatexp.metrics import metric_set

        metrics = metric_set(self.evaluate.lpips_weights)[0] if self.evaluate.every else {}

        def look(step: int, splats: Splats) -> None:
            if self.evaluate.every and (step + 1) % self.evaluate.every == 0 and step + 1 < self.steps:
                rows = measure(splats, self.raster, scene, metrics)
                seen = {f"test_{name}": value for name, value in means(rows, metrics, {}).items()}
                trackers.log(step, {name: value for name, value in seen.items() if value is not None})

        return look

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
        trackers.file(folder / "point_cloud.ply")


def _use_threads(threads: int, backend: str) -> None:
    """Set the threads of kernels and torch, whatever an earlier run in this process has set."""
    import splatexp_kernels

    if backend == "cpu":
        splatexp_kernels.set_num_threads(threads or processors())
    # torch gets one of its own: its sums depend on their number, and its pool disturbs that of the kernels
    torch.set_num_threads(1 if backend == "cpu" else threads or 1)
