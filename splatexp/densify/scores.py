"""Scores [N] that rules select by and gate with, and the statistics that each of them needs.

A score is a word or a product of words: `error_max`, `error_mean * footprint`, `edge / weight`. A word is one
of SCORES, or a channel (its mean over the views that saw a row), or a channel and a reduction over views:
`_mean`, `_max`, `_sum`, `_var`, or `_ema`, the moving average of the mean over surveys.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from splatexp.densify import channels  # noqa: F401  importing it registers the channels, which are scores too
from splatexp.densify.statistics import CHANNELS, check_statistic
from splatexp.gaussians.splats import Splats
from splatexp.importance import average
from splatexp.settings.checks import check_choice


@dataclass(frozen=True)
class Score:
    """`value(splats, step, random)` gives [N]; `needs` names statistics."""

    value: Callable[[Splats, int, torch.Generator], Tensor]
    needs: tuple[str, ...] = ()


SCORES: dict[str, Score] = {}
REDUCTIONS = {"mean": ("sum",), "max": ("max",), "sum": ("sum",), "var": ("sum", "square"), "ema": ("ema",)}


def score(*needs: str) -> Callable[[Callable[[Splats, int], Tensor]], Callable[[Splats, int], Tensor]]:
    """Make a function a score of its name; `needs` are statistics that it reads with `splats.row_stat`."""
    for name in needs:
        check_statistic(name)

    def register(function: Callable[[Splats, int], Tensor]) -> Callable[[Splats, int], Tensor]:
        SCORES[function.__name__] = Score(lambda splats, step, random: function(splats, step), needs)
        return function

    return register


def vocabulary() -> list[str]:
    """Every word."""
    reduced = (
        f"{base}_{how}" for base, c in CHANNELS.items() for how in REDUCTIONS if how != "ema" or c.survey
    )
    return [*SCORES, *CHANNELS, *reduced]


@cache
def parse(text: str, where: str = "rule.score") -> tuple[tuple[bool, str], ...]:
    """Words with whether each divides.  Raises: ValueError for what is no product of known words."""
    parts = re.split(r"\s*([*/])\s*", text.strip())
    for word in parts[::2]:
        check_choice(where, word, vocabulary(), dict.fromkeys((*SCORES, *CHANNELS)))
    return tuple(zip([False, *(sign == "/" for sign in parts[1::2])], parts[::2], strict=True))


@cache
def needs(text: str) -> frozenset[str]:
    """Statistics that a score reads."""
    return frozenset(name for _, word in parse(text) for name in _find(word).needs)


def evaluate(text: str, splats: Splats, step: int, random: torch.Generator) -> Tensor:
    """A score's value [N]; what is divided by 0 is 0."""
    total = torch.ones(len(splats), device=splats.means.device)
    for divides, word in parse(text):
        value = _find(word).value(splats, step, random).to(total.dtype)
        total = torch.where(value != 0, total / value, 0) if divides else total * value
    return total


def _find(word: str) -> Score:
    if word in SCORES:
        return SCORES[word]
    if word in CHANNELS:
        return _reduction(word, "mean")
    base, _, how = word.rpartition("_")
    return _reduction(base, how)


@cache
def _reduction(base: str, how: str) -> Score:
    """A channel reduced over views."""
    count = "surveyed" if CHANNELS[base].survey else "views"

    def value(splats: Splats, step: int, random: torch.Generator) -> Tensor:
        rows = [splats.row_stat(f"{base}.{part}") for part in REDUCTIONS[how]]
        seen = splats.row_stat(count).clamp_min(1)
        if how == "mean":
            return rows[0] / seen
        return (rows[1] / seen - (rows[0] / seen).square()).clamp_min(0) if how == "var" else rows[0]

    return Score(value, (*(f"{base}.{part}" for part in REDUCTIONS[how]), count, *CHANNELS[base].needs))


@score("views")
def views(splats: Splats, step: int) -> Tensor:
    """Training steps since the last event whose view saw it."""
    return splats.row_stat("views")


@score("surveyed")
def surveyed(splats: Splats, step: int) -> Tensor:
    """Views of the survey that saw it."""
    return splats.row_stat("surveyed")


@score()
def opacity(splats: Splats, step: int) -> Tensor:
    """Activated opacity."""
    return splats.opacities.detach()


@score()
def drawn_opacity(splats: Splats, step: int) -> Tensor:
    """Opacity as it is blended, times the importance."""
    with torch.no_grad():
        return splats.drawn()[1]


@score()
def importance(splats: Splats, step: int) -> Tensor:
    """Moving average of the learned importance in [0,1].  Raises: ValueError where none is learned."""
    return average(splats)


@score()
def size(splats: Splats, step: int) -> Tensor:
    """Largest scale, in extents of the scene."""
    return splats.log_scales.detach().amax(1).exp() / splats.extent


@score()
def age(splats: Splats, step: int) -> Tensor:
    """Steps since it was born."""
    return (step - splats.born).float()


@score()
def generation(splats: Splats, step: int) -> Tensor:
    """Edits between it and the initialisation."""
    return splats.generation.float()


@score()
def one(splats: Splats, step: int) -> Tensor:
    """1 for everyone."""
    return torch.ones(len(splats), device=splats.means.device)


@score("pixel_grad2d.sum", "ellipse.sum")
def pixel_grad(splats: Splats, step: int) -> Tensor:
    """grad2d as a mean over views weighted by the pixels touched. Source: Zhang et al. 2024, eq. 7 and 9."""
    return splats.row_stat("pixel_grad2d.sum") / splats.row_stat("ellipse.sum").clamp_min(1e-6)


@score("opacity_pull.sum", "views")
def steepness(splats: Splats, step: int) -> Tensor:
    """Least eigenvalue of the splitting matrix; a division lowers the loss where it is below 0.

    Source: Wang et al. 2025, "SteepGS", with the estimate by the inverse covariance that its code uses.
    """
    pull = splats.row_stat("opacity_pull.sum") / splats.row_stat("views").clamp_min(1)
    return pull.clamp_max(0) / splats.log_scales.detach().amin(1).exp().square().clamp_min(1e-20)


@score("taming.sum", *CHANNELS["taming"].needs)
def taming(splats: Splats, step: int) -> Tensor:
    """The weighted mix of nine features, summed over views. Source: Mallick et al. 2024, section 3.2."""
    return splats.row_stat("taming.sum")


@score("hits_loss.sum")
def fastgs(splats: Splats, step: int) -> Tensor:
    """Badly drawn pixels it takes part in, times the view's loss, as a share of the most. Source: FastGS."""
    total = splats.row_stat("hits_loss.sum")
    return (total - total.min()) / (total.max() - total.min()).clamp_min(1e-12) if len(total) else total


@score("weight.sum")
def lightgs(splats: Splats, step: int) -> Tensor:
    """Summed weight times the volume to the power 0.1, the volume no more than the 90 % largest.

    Source: Fan et al. 2024, "LightGaussian", eq. 3-4. Differs: weights with the falloff, not o T alone.
    """
    volume = splats.log_scales.detach().sum(1) * (3 / splats.log_scales.shape[1])
    if not len(volume):
        return volume
    large = volume.sort().values[max(1, round(0.9 * len(volume))) - 1]
    return splats.row_stat("weight.sum") * (0.1 * (volume - large).clamp_max(0)).exp()


def _random(splats: Splats, step: int, random: torch.Generator) -> Tensor:
    """Uniform in (0,1]."""
    return 1 - torch.rand(len(splats), generator=random).to(splats.means.device)


SCORES["random"] = Score(_random)
