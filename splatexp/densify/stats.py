"""What is remembered of every Gaussian between two events: sums over the training views, one float a row.

A view that does not see a Gaussian adds 0 to it, so no row is ever picked out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.raster import Render


@dataclass(frozen=True)
class Statistic:
    """`add(row [N], render)` adds a view in place; `channel` names what it takes of the rasterizer."""

    add: Callable[[Tensor, Render], None]
    channel: str = ""


def _views(row: Tensor, render: Render) -> None:
    """Views that see the Gaussian."""
    row += render.visible[0] if len(render.visible) == 1 else render.visible.sum(0)


def _grad2d(row: Tensor, render: Render) -> None:
    """Length of d loss / d means2d, in NDC."""
    if render.means2d.grad is not None:
        _add_length(row, render.means2d.grad, render)


def _absgrad(row: Tensor, render: Render) -> None:
    """The same with absolute values summed over the pixels. Source: Ye et al. 2024, "AbsGS", eq. 7."""
    if render.absgrad is not None:
        _add_length(row, render.absgrad, render)


def _add_length(row: Tensor, grad: Tensor, render: Render) -> None:
    """Add the lengths of gradients [C,N,2], px^-1 to NDC^-1; each view as if it alone were the loss."""
    cameras, (x, y) = len(grad), grad.unbind(-1)
    length = torch.hypot(x * (0.5 * render.width * cameras), y * (0.5 * render.height * cameras))
    row += length[0] if cameras == 1 else length.sum(0)


STATISTICS: dict[str, Statistic] = {
    "views": Statistic(_views),
    "grad2d": Statistic(_grad2d),
    "absgrad": Statistic(_absgrad, channel="absgrad"),
}
