"""Relocation: rows without effect become copies of rows that have one."""

import torch
from torch import Tensor

from splatexp.densify.opacity_split import child_opacities
from splatexp.densify.operator import OperatorSettings, operator, remaining_rows, replace_rows
from splatexp.densify.selectors import ordered_cumsum
from splatexp.gaussians.splats import Edit, Splats


@operator(births=0, opacity="mcmc", opacity_factor=0.6)
def relocate(
    splats: Splats, rows: Tensor, settings: OperatorSettings, step: int, generator: torch.Generator
) -> Edit | None:
    """Move each row to the place of another one, drawn with a probability proportional to its opacity.

    The copied row and its copies are all new rows with equal opacities and scales; the optimizer and the
    noise move them apart. Return None where no other row has any opacity.

    Source: Kheradmand et al. 2024, "3DGS as MCMC", section 3.4. Differs: the Adam moments of the moved rows
    are reset too.
    """
    dead, live = rows.unique(), remaining_rows(splats, rows)
    total = ordered_cumsum(splats.opacities[live].double())
    if not len(live) or not total[-1] > 0:
        return None
    draws = torch.rand(len(dead), generator=generator, dtype=torch.float64).to(total.device) * total[-1]
    # right=True: a row of opacity 0 is an empty interval and is never drawn
    drawn = live[torch.searchsorted(total, draws, right=True).clamp_max(len(live) - 1)]
    sources, copies = drawn.unique(return_counts=True)
    logits, log_scale_change = child_opacities(
        settings.opacity, settings.opacity_factor, splats.opacity_logits[sources], copies + 1
    )
    source_changes = settings.opacity != "copy"
    replaced = sources if source_changes else sources[:0]
    index = torch.arange(len(sources), device=sources.device)
    index = index.repeat_interleave(copies + source_changes)
    values = {
        "opacity_logits": logits[index],
        "log_scales": splats.log_scales[sources[index]] + log_scale_change[index, None],
    }
    return replace_rows(splats, torch.cat([dead, replaced]), sources[index], values, step)
