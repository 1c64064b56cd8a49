"""Scores [N] by which rules select rows and which their gates compare, and the statistics that they need.

A score is a name or a product of names: `error_max`, `error_mean * footprint`, `edge / weight`. A name is one
of SCORES; or a channel, which stands for its mean over the views that saw the row; or a channel and a
reduction over the views: `_mean`, `_max`, `_sum`, `_var`, or `_ema`, the moving average of the mean over
surveys.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from splatexp.densify import channels  # noqa: F401  registers the channels of surveys
from splatexp.densify.statistics import CHANNELS, check_statistic
from splatexp.gaussians.splats import Splats
from splatexp.importance import average_importance
from splatexp.settings.checks import check_choice


@dataclass(frozen=True)
class Score:
    """A score: `value(splats, step, random)` returns [N]; `statistics` names the statistics that it reads."""

    value: Callable[[Splats, int, torch.Generator], Tensor]
    statistics: tuple[str, ...] = ()


SCORES: dict[str, Score] = {}
# Reduction over views -> the accumulators that it needs.
REDUCTIONS = {"mean": ("sum",), "max": ("max",), "sum": ("sum",), "var": ("sum", "square"), "ema": ("ema",)}


def score(*statistics: str) -> Callable[[Callable[[Splats, int], Tensor]], Callable[[Splats, int], Tensor]]:
    """Register the decorated function as the score of its name.

    Args:
        statistics: names of the statistics that the function reads with `splats.row_stat`.
    """
    for name in statistics:
        check_statistic(name)

    def register(function: Callable[[Splats, int], Tensor]) -> Callable[[Splats, int], Tensor]:
        SCORES[function.__name__] = Score(lambda splats, step, random: function(splats, step), statistics)
        return function

    return register


def score_names() -> list[str]:
    """Return every name that a score may contain."""
    reduced = [
        f"{base}_{reduction}"
        for base, channel in CHANNELS.items()
        for reduction in REDUCTIONS
        if reduction != "ema" or channel.survey
    ]
    return [*SCORES, *CHANNELS, *reduced]


@cache
def parse_score(text: str, where: str = "rule.score") -> tuple[tuple[bool, str], ...]:
    """Return the names of a product, each with a flag that tells whether it divides.

    Args:
        where: the setting that an error message names.

    Raises: ValueError for an unknown name.
    """
    parts = re.split(r"\s*([*/])\s*", text.strip())
    for name in parts[::2]:
        check_choice(where, name, score_names(), dict.fromkeys((*SCORES, *CHANNELS)))
    return tuple(zip([False, *(sign == "/" for sign in parts[1::2])], parts[::2], strict=True))


@cache
def required_statistics(text: str) -> frozenset[str]:
    """Return the names of the statistics that a score reads."""
    return frozenset(statistic for _, name in parse_score(text) for statistic in _find(name).statistics)


def evaluate_score(text: str, splats: Splats, step: int, random: torch.Generator) -> Tensor:
    """Return the value [N] of a score; a division by 0 gives 0."""
    total = torch.ones(len(splats), device=splats.means.device)
    for divides, name in parse_score(text):
        value = _find(name).value(splats, step, random).to(total.dtype)
        total = torch.where(value != 0, total / value, 0) if divides else total * value
    return total


def _find(name: str) -> Score:
    if name in SCORES:
        return SCORES[name]
    if name in CHANNELS:
        return _reduced(name, "mean")
    base, _, reduction = name.rpartition("_")
    return _reduced(base, reduction)


@cache
def _reduced(base: str, reduction: str) -> Score:
    """Return the score that reduces a channel over the views."""
    count = "surveyed" if CHANNELS[base].survey else "views"

    def value(splats: Splats, step: int, random: torch.Generator) -> Tensor:
        rows = [splats.row_stat(f"{base}.{part}") for part in REDUCTIONS[reduction]]
        seen = splats.row_stat(count).clamp_min(1)
        if reduction == "mean":
            return rows[0] / seen
        if reduction == "var":
            return (rows[1] / seen - (rows[0] / seen).square()).clamp_min(0)
        return rows[0]

    own = [f"{base}.{part}" for part in REDUCTIONS[reduction]]
    return Score(value, (*own, count, *CHANNELS[base].statistics))


@score("views")
def views(splats: Splats, step: int) -> Tensor:
    """Return the number of training views since the last event that saw each row."""
    return splats.row_stat("views")


@score("surveyed")
def surveyed(splats: Splats, step: int) -> Tensor:
    """Return the number of views of the last survey that saw each row."""
    return splats.row_stat("surveyed")


@score()
def opacity(splats: Splats, step: int) -> Tensor:
    """Return the activated opacity."""
    return splats.opacities.detach()


@score()
def effective_opacity(splats: Splats, step: int) -> Tensor:
    """Return the opacity as it is rendered, times the learned importance."""
    with torch.no_grad():
        return splats.render_params()[1]


@score()
def importance(splats: Splats, step: int) -> Tensor:
    """Return the moving average of the learned importance, in [0,1].

    Raises: ValueError where none is learned.
    """
    return average_importance(splats)


@score()
def size(splats: Splats, step: int) -> Tensor:
    """Return the largest scale, in scene extents."""
    return splats.log_scales.detach().amax(1).exp() / splats.extent


@score()
def age(splats: Splats, step: int) -> Tensor:
    """Return the number of steps since each row was born."""
    return (step - splats.born).float()


@score()
def generation(splats: Splats, step: int) -> Tensor:
    """Return how many edits lie between each row and the initialization."""
    return splats.generation.float()


@score()
def one(splats: Splats, step: int) -> Tensor:
    """Return 1 for every row."""
    return torch.ones(len(splats), device=splats.means.device)


@score("pixel_grad2d.sum", "ellipse.sum")
def pixel_grad(splats: Splats, step: int) -> Tensor:
    """Return the mean of grad2d over views, weighted by the number of touched pixels.

    Source: Zhang et al. 2024, "Pixel-GS", eq. 7 and 9.
    """
    return splats.row_stat("pixel_grad2d.sum") / splats.row_stat("ellipse.sum").clamp_min(1e-6)


@score("opacity_pull.sum", "views")
def steepness(splats: Splats, step: int) -> Tensor:
    """Return the smallest eigenvalue of the splitting matrix; where it is negative, a split lowers the loss.

    Source: Wang et al. 2025, "SteepGS", with the estimate by the inverse covariance that its code uses.
    """
    pull = splats.row_stat("opacity_pull.sum") / splats.row_stat("views").clamp_min(1)
    return pull.clamp_max(0) / splats.log_scales.detach().amin(1).exp().square().clamp_min(1e-20)


@score("taming.sum", *CHANNELS["taming"].statistics)
def taming(splats: Splats, step: int) -> Tensor:
    """Return the weighted mix of nine features, summed over views.

    Source: Mallick et al. 2024, "Taming 3DGS", section 3.2.
    """
    return splats.row_stat("taming.sum")


@score("hits_loss.sum")
def fastgs(splats: Splats, step: int) -> Tensor:
    """Return the number of high-error pixels of each row times the view's loss, scaled to [0,1].

    Source: Ren et al. 2025, "FastGS".
    """
    total = splats.row_stat("hits_loss.sum")
    return (total - total.min()) / (total.max() - total.min()).clamp_min(1e-12) if len(total) else total


@score("weight.sum")
def lightgs(splats: Splats, step: int) -> Tensor:
    """Return the summed blending weight times volume^0.1, with the volume capped at its 90 % quantile.

    Source: Fan et al. 2024, "LightGaussian", eq. 3-4. Differs: the weights include the
    falloff, not o T alone.
    """
    volume = splats.log_scales.detach().sum(1) * (3 / splats.log_scales.shape[1])
    if not len(volume):
        return volume
    large = volume.sort().values[max(1, round(0.9 * len(volume))) - 1]
    return splats.row_stat("weight.sum") * (0.1 * (volume - large).clamp_max(0)).exp()


def _random(splats: Splats, step: int, random: torch.Generator) -> Tensor:
    """Return uniform random numbers in (0,1]."""
    return 1 - torch.rand(len(splats), generator=random).to(splats.means.device)


SCORES["random"] = Score(_random)
