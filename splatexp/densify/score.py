"""Scores [N] that rules select by, and the statistics that each of them needs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from splatexp.splats import Splats


@dataclass(frozen=True)
class Score:
    """`value(splats, step)` gives [N]; `needs` names statistics."""

    value: Callable[[Splats, int], Tensor]
    needs: tuple[str, ...] = ()


SCORES: dict[str, Score] = {}


def score(*needs: str) -> Callable[[Callable[[Splats, int], Tensor]], Callable[[Splats, int], Tensor]]:
    """Make a function a score of its name; `needs` are statistics that it reads with `splats.row_stat`."""

    def register(function: Callable[[Splats, int], Tensor]) -> Callable[[Splats, int], Tensor]:
        SCORES[function.__name__] = Score(function, needs)
        return function

    return register


@score("grad2d", "views")
def grad2d(splats: Splats, step: int) -> Tensor:
    """Length of the gradient on screen, NDC, mean over views that saw it. Source: Kerbl et al. 2023, 5.2."""
    return splats.row_stat("grad2d") / splats.row_stat("views").clamp_min(1)


@score("absgrad", "views")
def absgrad(splats: Splats, step: int) -> Tensor:
    """The same of absolute values summed over pixels, which cannot cancel. Source: Ye et al. 2024, eq. 7."""
    return splats.row_stat("absgrad") / splats.row_stat("views").clamp_min(1)


@score("views")
def views(splats: Splats, step: int) -> Tensor:
    """Views that saw it since the last event."""
    return splats.row_stat("views")


@score()
def opacity(splats: Splats, step: int) -> Tensor:
    """Activated opacity."""
    return splats.opacities.detach()


@score()
def size(splats: Splats, step: int) -> Tensor:
    """Largest scale, in extents of the scene."""
    return splats.log_scales.detach().amax(1).exp() / splats.extent


@score()
def age(splats: Splats, step: int) -> Tensor:
    """Steps since it was born."""
    return (step - splats.born).float()
