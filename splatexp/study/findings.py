"""The findings of a study: verdicts, changes and costs of every variant, and issues of the comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeGuard

from splatexp.study.fairness import FairnessIssue, find_issues, format_percent
from splatexp.study.results import Result, changes, differences
from splatexp.study.statistics import Comparison, verdicts

LABELS = {  # name of a metric -> label, unit, decimals
    "psnr": ("PSNR", "dB", 2),
    "psnr_u8": ("PSNR of 8-bit images", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "psnr_pose_opt": ("PSNR, poses optimized", "dB", 2),
    "ssim_pose_opt": ("SSIM, poses optimized", "", 4),
    "psnr_layers": ("PSNR, mean of prefixes", "dB", 2),
    "lpips_vgg": ("LPIPS (VGG)", "", 4),
    "lpips_alex": ("LPIPS (AlexNet)", "", 4),
    "lpips_vgg01": ("LPIPS (VGG on [0, 1])", "", 4),
}
COSTS = {  # name of a cost -> heading, size of a unit, decimals
    "num_gaussians": ("Gaussians", 1, 0),
    "train_seconds": ("training (s)", 1, 1),
    "wall_seconds": ("wall time (s)", 1, 1),
    "peak_memory_bytes": ("peak memory (MB)", 1e6, 0),
    "size": ("model (MB)", 1e6, 2),
    "bpp": ("bits per pixel", 1, 3),
}
OPTIONAL_COSTS = ("bpp",)  # left out where no run has them
VERDICT_TEXT = {"too few": "too few runs to tell"}  # text of a verdict that is not its own name
DASH = "–"  # stands for a missing value


@dataclass(frozen=True)
class Metric:
    """A metric of held-out views, and the format of its values."""

    name: str

    @property
    def label(self) -> str:
        """The name for people."""
        return LABELS.get(self.name, (self.name, "", 4))[0]

    @property
    def unit(self) -> str:
        """The unit, such as dB, or ""."""
        return LABELS.get(self.name, ("", "", 4))[1]

    @property
    def higher_is_better(self) -> bool:
        """Return whether more is better; false for distances such as LPIPS."""
        return not self.name.startswith("lpips")

    def value(self, number: float | None, sign: bool = False) -> str:
        """Format a value, or with `sign` a difference of two values."""
        return format_decimal(number, LABELS.get(self.name, ("", "", 4))[2], sign)

    def interval(self, comparison: Comparison) -> str:
        """Format the interval of a difference, such as [−0.12, +0.30]."""
        if not (is_finite(comparison.low) and is_finite(comparison.high)):
            return DASH
        return f"[{self.value(comparison.low, True)}, {self.value(comparison.high, True)}]"


@dataclass(frozen=True)
class Findings:
    """The contents of a report, whatever its format."""

    title: str
    baseline: str
    results: Sequence[Result]
    metrics: Sequence[Metric]
    description: str = ""
    command: str = ""
    verdicts: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)  # by metric and variant
    issues: Sequence[FairnessIssue] = ()

    @cached_property
    def variants(self) -> list[str]:
        """The names of all variants, the baseline first."""
        return [self.baseline, *(name for name in self._each("variant") if name != self.baseline)]

    @property
    def compared_variants(self) -> list[str]:
        """The names of all variants but the baseline."""
        return self.variants[1:]

    @cached_property
    def scenes(self) -> list[str]:
        """The names of all scenes."""
        return self._each("scene")

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds."""
        return sorted(self._each("seed"))

    def runs(self, variant: str, scene: str | None = None) -> list[Result]:
        """Return the runs of a variant, or of a variant and a scene, sorted by scene and seed."""
        mine = [run for run in self.results if run.variant == variant and scene in (None, run.scene)]
        return sorted(mine, key=lambda run: (self.scenes.index(run.scene), run.seed))

    def paired_runs(self, variant: str) -> list[tuple[Result, Result]]:
        """Return the baseline's and the variant's run of every scene and seed that both have."""
        base = {run.pair_key: run for run in self.runs(self.baseline)}
        return [(base[run.pair_key], run) for run in self.runs(variant) if run.pair_key in base]

    def mean(self, variant: str, name: str) -> float | None:
        """Return the mean over scenes of the means over seeds of a metric or cost; None if no run has it."""
        return _mean((run.scene, value_of(run, name)) for run in self.runs(variant))

    def mean_and_std(self, variant: str, name: str, scene: str) -> tuple[float, float] | None:
        """Return mean and standard deviation over seeds (0 for one seed); None where no run has the value."""
        values = [
            float(value) for run in self.runs(variant, scene) if is_finite(value := value_of(run, name))
        ]
        return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None

    def relative_cost(self, variant: str, name: str) -> str:
        """Return the mean of a cost relative to the baseline's, over the runs of both, such as −12 %."""
        pairs = [
            (base.scene, value_of(base, name), value_of(run, name)) for base, run in self.paired_runs(variant)
        ]
        both = [(scene, *values) for scene, *values in pairs if all(map(is_finite, values))]
        usual = _mean((scene, before) for scene, before, _ in both)
        mean = _mean((scene, after) for scene, _, after in both)
        return format_percent(mean / usual - 1) if usual and mean is not None else DASH

    @property
    def costs(self) -> list[str]:
        """The names of COSTS that are shown."""
        return [
            name
            for name in COSTS
            if name not in OPTIONAL_COSTS or any(run.metrics.get(name) for run in self.results)
        ]

    def cost(self, variant: str, name: str) -> str:
        """Format the mean of a cost in its unit."""
        _, unit, decimals = COSTS[name]
        mean = self.mean(variant, name)
        return DASH if mean is None else format_decimal(mean / unit, decimals)

    def changes(self, variant: str) -> list[tuple[str, str, str, str]]:
        """Return the settings that a variant changes: key, the baseline's value, the variant's, scenes.

        Scenes are named only if a setting is not changed in all of them.
        """
        where: dict[tuple[str, str, str], list[str]] = {}
        pairs = self.paired_runs(variant)
        for base, run in pairs:
            for key, (before, after) in changes(base.config, run.config).items():
                where.setdefault((key, before, after), []).append(run.scene)
        scenes = set(run.scene for _, run in pairs)
        return [
            (*line, "" if set(by) == scenes else ", ".join(dict.fromkeys(by))) for line, by in where.items()
        ]

    def setting_differences(self, variant: str) -> dict[str, tuple[Any, Any]]:
        """Return every single setting that a variant changes in one scene or more: key -> both values."""
        found: dict[str, tuple[Any, Any]] = {}
        for base, run in self.paired_runs(variant):
            found = differences(base.config, run.config) | found
        return found

    def verdict_summary(self, metric: Metric) -> str:
        """Return a sentence that says which variants are better, worse or neither by a metric."""
        groups: dict[str, list[str]] = {word: [] for word in ("better", "worse", "within noise", "too few")}
        for name, comparison in self.verdicts[metric.name].items():
            groups.setdefault(comparison.verdict, []).append(name)
        said = [
            f"{VERDICT_TEXT.get(word, word)}: {', '.join(names)}" for word, names in groups.items() if names
        ]
        text = "; ".join(said) or "nothing to compare"
        return f"{text[0].upper()}{text[1:]}."

    def _each(self, name: str) -> list[Any]:
        return list(dict.fromkeys(getattr(run, name) for run in self.results))


def analyze(
    title: str,
    baseline: str,
    results: Sequence[Result],
    metrics: Sequence[str],
    description: str,
    command: str,
) -> Findings:
    """Compare all variants with the baseline.

    Raises: ValueError for no metric, no run of the baseline, or two of one variant, scene and seed.
    """
    if not metrics:
        raise ValueError("metrics: expected at least one, got none")
    variants = list(dict.fromkeys(run.variant for run in results))
    if baseline not in variants:
        raise ValueError(f"baseline: expected one of {', '.join(variants) or 'the variants'}, got {baseline}")
    names = [run.label for run in results]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"results: expected one run of {twice}, got {names.count(twice)}")
    return Findings(
        title,
        baseline,
        list(results),
        [Metric(name) for name in metrics],
        description,
        command,
        verdicts={name: _verdicts(name, baseline, variants, results) for name in metrics},
        issues=find_issues(results, baseline, metrics),
    )


def _verdicts(
    name: str, baseline: str, variants: Sequence[str], results: Sequence[Result]
) -> dict[str, Comparison]:
    """Return the comparisons of the variants that share a view with the baseline."""
    tables: dict[str, dict[tuple[str, int, str], float]] = {variant: {} for variant in variants}
    for run in results:
        for view in run.views:
            if is_finite(view.get(name)):
                tables[run.variant][run.scene, run.seed, str(view["view"])] = float(view[name])
    tables = {variant: table for variant, table in tables.items() if table.keys() & tables[baseline].keys()}
    if len(tables) < 2 or baseline not in tables:
        return {}
    return verdicts(tables, baseline, higher_is_better=Metric(name).higher_is_better)


def value_of(run: Result, name: str) -> float | None:
    """Return a number of metrics.json, or for `size` the size of the model in bytes."""
    return run.size if name == "size" else run.metrics.get(name)


def _mean(values: Iterable[tuple[str, Any]]) -> float | None:
    """Return the mean over scenes of the mean over the values of a scene; None without values."""
    found: dict[str, list[float]] = {}
    for scene, value in values:
        if is_finite(value):
            found.setdefault(scene, []).append(float(value))
    return fmean(map(fmean, found.values())) if found else None


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def format_decimal(number: float | None, decimals: int, sign: bool = False) -> str:
    """Format a number with thousands separators; None and NaN give a dash."""
    if number is None or not is_finite(number):
        return DASH
    text = f"{number:{'+' if sign else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def format_p(p: float | None) -> str:
    """Format a p-value."""
    if p is None or not is_finite(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
