"""Relocation: rows that nobody sees become copies of rows that are seen."""

import torch
from torch import Tensor

from splatexp.densify.opacity_split import shared
from splatexp.densify.operator import Shape, operator, others, replacing
from splatexp.densify.selectors import running
from splatexp.gaussians.splats import Edit, Splats


@operator(births=0, opacity="mcmc", dim=0.6)
def relocate(
    splats: Splats, rows: Tensor, shape: Shape, step: int, generator: torch.Generator
) -> Edit | None:
    """Move each row to one of the others, drawn with a probability in proportion to its opacity.

    The row that is copied and its copies are all fresh, with equal opacities and scales; the optimizer and
    the noise part them. None where no other row has any opacity.

    Source: Kheradmand et al. 2024, section 3.4. Differs: the moments of the moved rows restart too.
    """
    dead, live = rows.unique(), others(splats, rows)
    mass = running(splats.opacities[live].double())
    if not len(live) or not mass[-1] > 0:
        return None
    draws = torch.rand(len(dead), generator=generator, dtype=torch.float64).to(mass.device) * mass[-1]
    # right=True: a row of no opacity is an empty interval and is never drawn
    drawn = live[torch.searchsorted(mass, draws, right=True).clamp_max(len(live) - 1)]
    sources, copies = drawn.unique(return_counts=True)
    logits, stretch = shared(shape.opacity, shape.dim, splats.opacity_logits[sources], copies + 1)
    kept = sources[:0] if shape.opacity == "copy" else sources
    index = torch.arange(len(sources), device=sources.device)
    index = index.repeat_interleave(copies + (shape.opacity != "copy"))
    values = {
        "opacity_logits": logits[index],
        "log_scales": splats.log_scales[sources[index]] + stretch[index, None],
    }
    return replacing(splats, torch.cat([dead, kept]), sources[index], values, step)
