"""What a study found: its verdicts, what every variant changes and costs, and what is unfair about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, TypeGuard

from splatexp.study.fairness import Doubt, doubts, percent
from splatexp.study.results import Result, changes, differences
from splatexp.study.statistics import Comparison, verdicts

LABELS = {
    "psnr": ("PSNR", "dB", 2),
    "psnr_u8": ("PSNR of 8-bit pictures", "dB", 2),
    "ssim": ("SSIM", "", 4),
    "psnr_aligned": ("PSNR, poses fitted", "dB", 2),
    "ssim_aligned": ("SSIM, poses fitted", "", 4),
    "psnr_layers": ("PSNR, mean of prefixes", "dB", 2),
    "lpips_vgg": ("LPIPS (VGG)", "", 4),
    "lpips_alex": ("LPIPS (AlexNet)", "", 4),
    "lpips_vgg01": ("LPIPS (VGG on [0, 1])", "", 4),
}
COSTS = {  # name -> heading, what one unit of it is, decimals
    "num_gaussians": ("Gaussians", 1, 0),
    "train_seconds": ("training s", 1, 1),
    "wall_seconds": ("wall s", 1, 1),
    "peak_memory_bytes": ("peak MB", 1e6, 0),
    "size": ("model MB", 1e6, 2),
    "bpp": ("bits per pixel", 1, 3),
}
SELDOM = ("bpp",)  # costs that most models do not have: left out where none has
TOLD = {"too few": "too few runs to tell"}
NOTHING = "–"


@dataclass(frozen=True)
class Metric:
    """A number per view, and how it is written."""

    name: str

    @property
    def label(self) -> str:
        """Its name for people."""
        return LABELS.get(self.name, (self.name, "", 4))[0]

    @property
    def unit(self) -> str:
        """`dB`, or nothing."""
        return LABELS.get(self.name, ("", "", 4))[1]

    @property
    def higher_is_better(self) -> bool:
        """False for distances."""
        return not self.name.startswith("lpips")

    def value(self, number: float | None, sign: bool = False) -> str:
        """A value of it, or with `sign` a difference of two."""
        return decimal(number, LABELS.get(self.name, ("", "", 4))[2], sign)

    def interval(self, comparison: Comparison) -> str:
        """The interval of a difference: [−0.12, +0.30]."""
        if not (finite(comparison.low) and finite(comparison.high)):
            return NOTHING
        return f"[{self.value(comparison.low, True)}, {self.value(comparison.high, True)}]"


@dataclass(frozen=True)
class Findings:
    """All that the report tells, whichever way it is written."""

    title: str
    baseline: str
    results: Sequence[Result]
    metrics: Sequence[Metric]
    description: str = ""
    command: str = ""
    verdicts: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)  # by metric and variant
    doubts: Sequence[Doubt] = ()

    @cached_property
    def variants(self) -> list[str]:
        """Every variant, the baseline first."""
        return [self.baseline, *(name for name in self._each("variant") if name != self.baseline)]

    @property
    def others(self) -> list[str]:
        """Every variant but the baseline."""
        return self.variants[1:]

    @cached_property
    def scenes(self) -> list[str]:
        """Every scene."""
        return self._each("scene")

    @cached_property
    def seeds(self) -> list[int]:
        """Every seed."""
        return sorted(self._each("seed"))

    def runs(self, variant: str, scene: str | None = None) -> list[Result]:
        """The runs of a variant, of one scene if it is given, by seed."""
        mine = [run for run in self.results if run.variant == variant and scene in (None, run.scene)]
        return sorted(mine, key=lambda run: (self.scenes.index(run.scene), run.seed))

    def paired(self, variant: str) -> list[tuple[Result, Result]]:
        """The baseline's run and the variant's, of every scene and seed that both have."""
        base = {run.key: run for run in self.runs(self.baseline)}
        return [(base[run.key], run) for run in self.runs(variant) if run.key in base]

    def mean(self, variant: str, name: str) -> float | None:
        """Mean of a metric or a cost over seeds, and of that over scenes; None where no run has it."""
        return _mean((run.scene, measured(run, name)) for run in self.runs(variant))

    def spread(self, variant: str, name: str, scene: str) -> tuple[float, float] | None:
        """Mean over seeds and their standard deviation, which is 0 of one; None where no run has it."""
        values = [float(value) for run in self.runs(variant, scene) if finite(value := measured(run, name))]
        return (fmean(values), stdev(values) if len(values) > 1 else 0.0) if values else None

    def against(self, variant: str, name: str) -> str:
        """The mean of a cost relative to the baseline's, over the runs that both have: −12 %."""
        pairs = [
            (base.scene, measured(base, name), measured(run, name)) for base, run in self.paired(variant)
        ]
        both = [(scene, *values) for scene, *values in pairs if all(map(finite, values))]
        usual = _mean((scene, before) for scene, before, _ in both)
        mean = _mean((scene, after) for scene, _, after in both)
        return percent(mean / usual - 1) if usual and mean is not None else NOTHING

    @property
    def costs(self) -> list[str]:
        """The names in COSTS that are worth telling."""
        return [
            name for name in COSTS if name not in SELDOM or any(run.metrics.get(name) for run in self.results)
        ]

    def cost(self, variant: str, name: str) -> str:
        """The mean of a cost in its unit."""
        _, unit, decimals = COSTS[name]
        mean = self.mean(variant, name)
        return NOTHING if mean is None else decimal(mean / unit, decimals)

    def changes(self, variant: str) -> list[tuple[str, str, str, str]]:
        """Settings in which a variant differs from the baseline: key, before, after, scenes if not all."""
        where: dict[tuple[str, str, str], list[str]] = {}
        pairs = self.paired(variant)
        for base, run in pairs:
            for key, (before, after) in changes(base.config, run.config).items():
                where.setdefault((key, before, after), []).append(run.scene)
        scenes = set(run.scene for _, run in pairs)
        return [
            (*line, "" if set(by) == scenes else ", ".join(dict.fromkeys(by))) for line, by in where.items()
        ]

    def keys(self, variant: str) -> dict[str, tuple[Any, Any]]:
        """Every single setting in which a variant differs from the baseline, in one scene or more."""
        found: dict[str, tuple[Any, Any]] = {}
        for base, run in self.paired(variant):
            found = differences(base.config, run.config) | found
        return found

    def tally(self, metric: Metric) -> str:
        """The verdicts of a metric in words: which variants are better, worse, neither."""
        groups: dict[str, list[str]] = {word: [] for word in ("better", "worse", "within noise", "too few")}
        for name, comparison in self.verdicts[metric.name].items():
            groups.setdefault(comparison.verdict, []).append(name)
        said = [f"{TOLD.get(word, word)}: {', '.join(names)}" for word, names in groups.items() if names]
        text = "; ".join(said) or "nothing to compare"
        return f"{text[0].upper()}{text[1:]}."

    def _each(self, name: str) -> list[Any]:
        return list(dict.fromkeys(getattr(run, name) for run in self.results))


def find(
    title: str,
    baseline: str,
    results: Sequence[Result],
    metrics: Sequence[str],
    description: str,
    command: str,
) -> Findings:
    """Compare every variant with the baseline.

    Raises: ValueError for no metric, no run of the baseline, or two of one variant, scene and seed.
    """
    if not metrics:
        raise ValueError("metrics: expected at least one, got none")
    variants = list(dict.fromkeys(run.variant for run in results))
    if baseline not in variants:
        raise ValueError(f"baseline: expected one of {', '.join(variants) or 'the variants'}, got {baseline}")
    names = [run.name for run in results]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"results: expected one run of {twice}, got {names.count(twice)}")
    found = {name: _verdicts(name, baseline, variants, results) for name in metrics}
    said = doubts(results, baseline, metrics)
    kinds = [Metric(name) for name in metrics]
    return Findings(title, baseline, list(results), kinds, description, command, found, said)


def _verdicts(
    name: str, baseline: str, variants: Sequence[str], results: Sequence[Result]
) -> dict[str, Comparison]:
    """Comparisons of the variants that share a view with the baseline."""
    tables: dict[str, dict[tuple[str, int, str], float]] = {variant: {} for variant in variants}
    for run in results:
        for view in run.views:
            if finite(view.get(name)):
                tables[run.variant][run.scene, run.seed, str(view["view"])] = float(view[name])
    tables = {variant: table for variant, table in tables.items() if table.keys() & tables[baseline].keys()}
    if len(tables) < 2 or baseline not in tables:
        return {}
    return verdicts(tables, baseline, higher_is_better=Metric(name).higher_is_better)


def measured(run: Result, name: str) -> float | None:
    """A number of metrics.json; `size`: bytes of the model."""
    return run.size if name == "size" else run.metrics.get(name)


def _mean(values: Iterable[tuple[str, Any]]) -> float | None:
    """Of values by scene: the mean of every scene's mean; None of none."""
    found: dict[str, list[float]] = {}
    for scene, value in values:
        if finite(value):
            found.setdefault(scene, []).append(float(value))
    return fmean(map(fmean, found.values())) if found else None


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number at all."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimal(number: float | None, decimals: int, sign: bool = False) -> str:
    """A number with thousands set off; a dash for none."""
    if number is None or not finite(number):
        return NOTHING
    text = f"{number:{'+' if sign else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def chance(p: float | None) -> str:
    """A p-value."""
    if p is None or not finite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
