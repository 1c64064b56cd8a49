"""The plan of a study: variants x scenes x seeds with a budget, as a list of overrides for each run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splatexp.settings.checks import check_range

PLY_ROW_FLOATS = 14  # numbers of a Gaussian in a .ply, besides 3 for each SH coefficient
PLY_HEADER_BYTES = 2048  # at most


@dataclass
class Budget:
    """A budget that all runs have in common; at most one of these is set."""

    gaussians: int = 0  # number of Gaussians at the end, exactly
    bytes: int = 0  # size of point_cloud.ply
    seconds: float = 0.0  # time of training; the number of steps is fitted to it

    def __post_init__(self) -> None:
        names = ("gaussians", "bytes", "seconds")
        for name in names:
            check_range(f"budget.{name}", getattr(self, name), 0)
        given = [name for name in names if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"budget: expected one of {', '.join(names)}, got {' and '.join(given)}")


@dataclass
class Study:
    """The settings of a study: a file of conf/study/, and what the command line overrides."""

    title: str = ""
    baseline: str = ""  # name of the variant with which the others are compared
    variants: dict[str, list[str]] = field(default_factory=dict)  # name -> overrides
    common_overrides: list[str] = field(default_factory=list)  # of every run
    builtin_overrides: list[str] = field(default_factory=lambda: ["data=builtin"])  # of the scene `builtin`
    scenes: list[str] = field(default_factory=lambda: ["builtin"])  # builtin, folders of data, image files
    seeds: int = 3  # number of runs per variant and scene
    steps: int = 2000  # of every run
    budget: Budget = field(default_factory=Budget)
    gaussian_budgets: list[int] = field(
        default_factory=list
    )  # the whole study is run at each of these numbers
    metrics: list[str] = field(default_factory=lambda: ["psnr", "ssim"])

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, 1)
        check_range("steps", self.steps, 1)
        if self.baseline not in self.variants:
            names = ", ".join(self.variants) or "none"
            raise ValueError(f"baseline: expected one of the variants ({names}), got {self.baseline!r}")
        if self.gaussian_budgets and (self.budget.gaussians or self.budget.bytes or self.budget.seconds):
            raise ValueError(f"gaussian_budgets: expected no other budget beside it, got {self.budget}")
        names = [scene_name(scene) for scene in self.scenes]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"scenes: expected different names, got {', '.join(names) or 'none'}")
        for scene in self.scenes:
            if scene != "builtin" and not Path(scene).exists():
                raise ValueError(f"scenes: expected builtin, a folder of data or an image file, got {scene}")

    def tasks(self) -> Iterator[Task]:
        """Yield every run, seed by seed and the baseline first, so that early results can be compared."""
        names = [self.baseline, *(name for name in self.variants if name != self.baseline)]
        for seed in range(self.seeds):
            for scene in self.scenes:
                for gaussians in self.gaussian_budgets or [self.budget.gaussians]:
                    for name in names:
                        yield self._task(name, scene, seed, gaussians)

    def _task(self, name: str, scene: str, seed: int, gaussians: int) -> Task:
        data = (
            self.builtin_overrides if scene == "builtin" else [f"data.path={_quote(Path(scene).resolve())}"]
        )
        fixed = [f"steps={self.steps}", f"seed={seed}"]
        overrides = [*data, *fixed, *self.common_overrides, *self.variants[name]]
        if gaussians:
            overrides += [f"densify.max_gaussians={gaussians}", "densify.exact=true"]
        label = f"{name} @ {gaussians:,}" if self.gaussian_budgets else name
        budget = gaussians if self.gaussian_budgets else 0
        return Task(label, scene_name(scene), seed, tuple(overrides), budget)


@dataclass(frozen=True)
class Task:
    """A run of a study."""

    variant: str
    scene: str
    seed: int
    overrides: tuple[str, ...]
    budget: int = 0  # which of several numbers of Gaussians; 0 where the study has not several

    @property
    def folder(self) -> Path:
        """The folder of the run below that of the study."""
        return Path("runs", path_safe(self.variant), path_safe(self.scene), str(self.seed))


def scene_name(scene: str) -> str:
    """Return the last part of a path, without the suffix of an image file."""
    path = Path(scene)
    return (path.stem if path.is_file() else path.name) or scene


def gaussians_for_bytes(size: int, sh_degree: int) -> int:
    """Return how many Gaussians a .ply of `size` bytes holds."""
    return max(1, (size - PLY_HEADER_BYTES) // (4 * (PLY_ROW_FLOATS + 3 * (sh_degree + 1) ** 2)))


def path_safe(name: str) -> str:
    """Return a name in characters that may stand in a path."""
    return re.sub(r"[^\w.=+-]+", "_", name).strip("._") or "_"


def group_by_budget(tasks: Sequence[Task]) -> dict[int, list[Task]]:
    """Return tasks by their budget."""
    groups: dict[int, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.budget, []).append(task)
    return groups


def _quote(path: Path) -> str:
    """Return a path as a value of an override, whatever characters it has."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"
