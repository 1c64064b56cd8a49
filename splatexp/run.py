"""One run: its settings, which are the config, and what it does with them."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from splatexp.choices import check_choice, check_range
from splatexp.densify.strategy import Strategy
from splatexp.dropout import Dropout
from splatexp.evaluate import Evaluate
from splatexp.importance import Importance
from splatexp.losses import Loss
from splatexp.model import Model
from splatexp.optimizer import Adam
from splatexp.raster import Rasterizer
from splatexp.regularizers import Regularizer
from splatexp.schedules import Schedule
from splatexp.smoothing import Smoothing
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
    evaluate: Evaluate = field(default_factory=Evaluate)
    objective: str = "psnr"  # what a sweep optimises: a name in metrics.json

    def __post_init__(self) -> None:
        check_range("steps", self.steps, 1)
        check_range("threads", self.threads, 0)
        check_range("log_every", self.log_every, 1)
        check_choice("objective", self.objective, OBJECTIVES)
        if missing := self.densify.wants - self.raster.offers:
            raise ValueError(
                f"densify: expected scores that raster={self.raster.backend} can gather, "
                f"got some that read {', '.join(sorted(missing))}"
            )
        if "importance" in self.densify.words and not self.importance.learns:
            raise ValueError("importance: expected logit, mlp or mask, as a rule reads it, got none")

    def __call__(self, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Everything from loading to the summary, into `folder`.  Returns: what metrics.json holds."""
        return self.fit(*self.prepare(), folder, overrides)

    def settle(self) -> None:
        """Set threads and every seed of this process to those of the run."""
        _use(self.threads, self.seed, self.raster.backend)

    def prepare(self) -> tuple[Scene, Splats]:
        """The scene and the first Gaussians; nothing is written.

        Raises: OSError, ValueError with one line for input that cannot be used.
        """
        self._began = time.perf_counter()
        _forget_peak()
        self.settle()
        scene = self.data.load()
        for penalty in self.regularizer.values():
            penalty.check(scene)
        return scene, self.model(scene, self.seed)

    def fit(
        self, scene: Scene, splats: Splats, folder: str | Path, overrides: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Train, save, measure, show.  Raises: OSError when a file cannot be written."""
        folder = Path(folder)
        trackers = Trackers(self.tracker)
        trackers.start(asdict(self), folder)
        failed = 1
        try:
            result = self._fit(scene, splats, folder, trackers, overrides)
            failed = 0
        finally:
            trackers.finish(failed)
        return result

    def _fit(
        self, scene: Scene, splats: Splats, folder: Path, trackers: Trackers, overrides: Sequence[str]
    ) -> dict[str, Any]:
        from splatexp.evaluate import evaluate, summary
        from splatexp.export import save_ply, save_splat
        from splatexp.train import train

        shows = any(isinstance(tracker, Console) for tracker in self.tracker.values())
        trained = train(
            splats, scene,
            raster=self.raster, loss=self.loss, optimizer=self.optimizer, schedule=self.schedule,
            densify=self.densify, importance=self.importance, dropout=self.dropout, smoothing=self.smoothing,
            regularizers=self.regularizer, tracker=trackers, log_every=self.log_every,
            steps=self.steps, seed=self.seed, progress=shows, on_step=self._between(scene, trackers),
        )  # fmt: skip
        baked = splats.baked()
        save_ply(folder / "point_cloud.ply", baked)
        save_splat(folder / "point_cloud.splat", baked)
        result = evaluate(
            splats, self.raster, scene, folder, self.evaluate,
            train_seconds=trained.seconds, wall_seconds=time.perf_counter() - self._began,
            peak_memory_bytes=_peak(), data=self.data, overrides=overrides,
        )  # fmt: skip
        quality = {f"test_{name}": result[name] for name in QUALITY if result.get(name) is not None}
        trackers.log(self.steps - 1, quality)
        self._show(folder, trackers)
        summary(result, folder)
        return result

    def _between(self, scene: Scene, trackers: Trackers) -> Any:
        """What happens after a step, off the clock: held-out means now and then; None where never."""
        if not self.evaluate.every:
            return None
        from splatexp.evaluate import means, measure
        from splatexp.metrics import metric_set

        metrics, _ = metric_set(self.evaluate.lpips_weights)

        def look(step: int, splats: Splats) -> None:
            if (step + 1) % self.evaluate.every == 0 and step + 1 < self.steps:
                rows = measure(splats, self.raster, scene, metrics)
                seen = {f"test_{name}": value for name, value in means(rows, metrics, {}).items()}
                trackers.log(step, {name: value for name, value in seen.items() if value is not None})

        return look

    def _show(self, folder: Path, trackers: Trackers) -> None:
        """Give the trackers some of the comparisons that were drawn."""
        import numpy as np
        from PIL import Image

        for path in sorted((folder / "renders").glob("*.png"))[:SHOWN]:
            with Image.open(path) as picture:
                trackers.image(self.steps - 1, path.stem, np.asarray(picture.convert("RGB")))


def _use(threads: int, seed: int, backend: str) -> None:
    """Set threads and every seed, whatever an earlier run in this process has set."""
    import numpy as np
    import torch

    import splatexp_kernels

    if backend == "cpu":
        splatexp_kernels.set_num_threads(threads or _processors())
    # torch gets one of its own: its sums depend on their number, and its pool disturbs that of the kernels
    torch.set_num_threads(1 if backend == "cpu" else threads or 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _processors() -> int:
    """Processors that this process may use: those it is bound to, or a container's share if less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no cgroup, or "max"
        return count


def _forget_peak() -> None:
    """Start the count of peak memory afresh (Linux): a sweep runs many runs in one process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _peak() -> int | None:
    """Peak resident memory of the process since then, bytes; None where the system does not tell."""
    try:  # Linux; its ru_maxrss would count the program that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
