"""What a study consists of: variants x scenes x seeds, on a budget; each a list of overrides for one run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splatexp.settings.checks import check_range

ROW_FLOATS = 14  # of a row of a .ply, besides 3 for each SH coefficient


@dataclass
class Budget:
    """What all runs may spend alike; at most one of these."""

    gaussians: int = 0  # rows at the end, exactly
    bytes: int = 0  # of point_cloud.ply
    seconds: float = 0.0  # of training: steps are fitted to it

    def __post_init__(self) -> None:
        for name in ("gaussians", "bytes", "seconds"):
            check_range(f"budget.{name}", getattr(self, name), 0)
        if sum(map(bool, (self.gaussians, self.bytes, self.seconds))) > 1:
            raise ValueError("budget: expected one of gaussians, bytes, seconds, got several")


@dataclass
class Study:
    """A file of conf/study/ and what the command line says of it."""

    title: str = ""
    baseline: str = ""  # the variant that the others are compared with
    variants: dict[str, list[str]] = field(default_factory=dict)  # name -> overrides
    common: list[str] = field(default_factory=list)  # overrides of all
    builtin: list[str] = field(default_factory=lambda: ["data=builtin"])  # what the scene builtin stands for
    scenes: list[str] = field(default_factory=lambda: ["builtin"])  # builtin, folders of data, pictures
    seeds: int = 3
    steps: int = 2000
    budget: Budget = field(default_factory=Budget)
    budgets: list[int] = field(default_factory=list)  # Gaussians: the whole study at each of these
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim"])

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, 1)
        check_range("steps", self.steps, 1)
        if self.baseline not in self.variants:
            names = ", ".join(self.variants) or "none"
            raise ValueError(f"baseline: expected one of the variants ({names}), got {self.baseline!r}")
        if self.budgets and (self.budget.gaussians or self.budget.bytes or self.budget.seconds):
            raise ValueError("budgets: expected no further budget besides")
        names = [scene_name(scene) for scene in self.scenes]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"scenes: expected different names, got {', '.join(names) or 'none'}")
        for scene in self.scenes:
            if scene != "builtin" and not Path(scene).exists():
                raise ValueError(f"scenes: expected builtin, a folder of data or a picture, got {scene}")

    def tasks(self) -> Iterator[Task]:
        """Every run, the baseline's first and seed by seed, so that what is there early can be compared."""
        names = [self.baseline, *(name for name in self.variants if name != self.baseline)]
        for seed in range(self.seeds):
            for scene in self.scenes:
                for gaussians in self.budgets or [self.budget.gaussians]:
                    for name in names:
                        yield self._task(name, scene, seed, gaussians)

    def _task(self, name: str, scene: str, seed: int, gaussians: int) -> Task:
        where = self.builtin if scene == "builtin" else [f"data.path={_quoted(Path(scene).resolve())}"]
        words = [*where, f"steps={self.steps}", f"seed={seed}", *self.common, *self.variants[name]]
        if gaussians:
            words += [f"densify.max_gaussians={gaussians}", "densify.exact=true"]
        label = f"{name} @ {gaussians:,}" if self.budgets else name
        return Task(label, scene_name(scene), seed, tuple(words), gaussians if self.budgets else 0)


@dataclass(frozen=True)
class Task:
    """One run of a study."""

    variant: str
    scene: str
    seed: int
    words: tuple[str, ...]  # overrides
    budget: int = 0  # of several, which

    @property
    def place(self) -> Path:
        """Where it lies below the study's folder."""
        return Path("runs", plain(self.variant), plain(self.scene), str(self.seed))


def scene_name(scene: str) -> str:
    """The last part of a path, without the suffix of a picture."""
    path = Path(scene)
    return (path.stem if path.is_file() else path.name) or scene


def rows_of_bytes(size: int, sh_degree: int) -> int:
    """How many Gaussians a .ply of so many bytes holds, its header (less than 2 KB) left out."""
    return max(1, (size - 2048) // (4 * (ROW_FLOATS + 3 * (sh_degree + 1) ** 2)))


def plain(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._") or "_"


def same_budget(tasks: Sequence[Task]) -> dict[int, list[Task]]:
    """Tasks by their budget."""
    found: dict[int, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.budget, []).append(task)
    return found


def _quoted(path: Path) -> str:
    """A path as a value of an override, whatever characters it has."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
