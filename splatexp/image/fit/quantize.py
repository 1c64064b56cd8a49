"""Rows of a picture as a .gsi file holds them: symbols, what they stand for, and about what they cost.

Notation: N Gaussians with colours c and Sigma = L L^T, L = [[l1, 0], [l2, l3]]; e a Gaussian's precision
class. Every parameter has the step at which its rounding costs the picture about the same squared error: that
of a colour goes with 1 / sqrt(l1 l3), those of shape and place, in standard deviations, with 2^-e.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.gaussians.covariance import FORMS
from splatexp.gaussians.plane import LAYER, Drawn, Plane
from splatexp.image.codec.symbols import PRECISION_MAX, UNIT, Header, Quantizer, Symbols, place_counts

FORM = "log_cholesky"
STEPS_OF = "rate_steps"  # a shared leaf of rows: natural logarithms of the steps
NAMES = ("luma", "chroma", "scale", "shear", "place")  # of steps
LONGEST, SHORTEST, MOST_SHEAR = 15.0, -4.0, 64.0  # log2 px, log2 px, and the shear: what a file may tell
LN2 = math.log(2)
YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))  # to RGB: BT.601, full range


@dataclass
class Size:
    """What the steps cannot tell: the picture's own size, and how fine its cells are."""

    width: int
    height: int
    channels: int
    cell_shift: int


def cell_shift(width: int, height: int, count: int) -> int:
    """The cell, as log2 px, in which there are about 0.4 Gaussians: then telling how many is cheapest."""
    side = math.sqrt(0.4 * width * height / max(count, 1))
    return min(8, max(0, round(math.log2(max(side, 1)))))


def coded_colors(colors: Tensor) -> Tensor:
    """Colours [...,D] of a picture as a file has them: Y Cb Cr for R G B; grey and alpha as they are."""
    if colors.shape[-1] < 3:
        return colors
    back = torch.tensor(YCC, dtype=torch.float64).inverse().to(colors)
    return torch.cat([colors[..., :3] @ back.T, colors[..., 3:]], -1)


def picture_colors(colors: Tensor) -> Tensor:
    """The way back from `coded_colors`."""
    if colors.shape[-1] < 3:
        return colors
    return torch.cat([colors[..., :3] @ torch.tensor(YCC).to(colors).T, colors[..., 3:]], -1)


def color_steps(steps: Tensor, channels: int) -> Tensor:
    """The step of each channel [D], from the natural logarithms [5] of NAMES."""
    luma, chroma = steps[:2].exp()
    planes = [luma] if channels < 3 else [luma, chroma, chroma]
    return torch.stack(planes + [luma] * (channels in (2, 4)))


def quantizer(steps: Tensor, size: Size) -> Quantizer:
    """The steps as a file tells them, from the natural logarithms [5] of NAMES."""
    _, _, scale, shear, place = steps.detach().double().tolist()
    return Quantizer(
        size.cell_shift,
        _whole(math.exp(scale) / LN2 * UNIT),
        _whole(math.exp(shear) * UNIT),
        round(-4 * place / LN2),
        tuple(color_steps(steps.detach(), size.channels).tolist()),
    )


def _whole(step: float) -> int:
    return min(65535, max(1, round(step)))


@dataclass
class Coded:
    """Rows as symbols, in torch: `symbols` makes a file's of them."""

    e: Tensor  # [N]
    shape: Tensor  # [N,3]
    cell: Tensor  # [N,2]
    place: Tensor  # [N,2]
    color: Tensor  # [N,D]
    steps: Quantizer


def coded(
    rows: Plane, steps: Tensor, size: Size, random: torch.Generator | None = None
) -> tuple[Coded, Drawn]:
    """Rows as symbols, and what those stand for as it is drawn, in the graph.

    Rounding lets the gradient through as it is, to the rows, and as rounding errors to the steps.

    Args:
        steps: natural logarithms [5] of NAMES; the last are taken as the file will tell them.
        random: instead of being rounded, what is drawn is moved by up to half a step, evenly; None: rounded.

    Source: rounding Esser et al. 2020, "Learned step size quantization"; noise Balle et al. 2017, "End-to-end
    optimized image compression", section 3.
    """
    told = quantizer(steps, size)
    with torch.no_grad():
        exact = steps.new_tensor([told.scale_step / UNIT * LN2, told.shear_step / UNIT]).log()
    scale_step, shear_step = _through(steps[2:4], exact).exp()
    lengths, shear = _lengths(rows)
    colors, unit = coded_colors(rows.colors), color_steps(steps, size.channels)
    with torch.no_grad():
        amplitude = (colors.abs() / unit).amax(1) * (lengths.sum(1) / 2).exp()
        e = amplitude.clamp_min(1).log2().round().clamp(0, PRECISION_MAX)
    fine = torch.exp2(-e)
    scaled, i = _rounded(lengths / (scale_step * fine)[:, None], random)
    sheared, s = _rounded(shear / (shear_step * fine), random)
    lengths, shear = scaled * (scale_step * fine)[:, None], sheared * (shear_step * fine)
    shape = torch.cat([i, s[:, None]], 1).to(torch.int32)
    cell, place, at = _placed(rows.means, e, shape, told, size, random)
    toned, k = _rounded(colors / unit * (lengths.sum(1, keepdim=True) / 2).exp(), random)
    colors = picture_colors(toned * unit * (lengths.sum(1, keepdim=True) / -2).exp())
    shapes = torch.stack([lengths[:, 0], shear, lengths[:, 1]], 1)
    # a rounding error is as long as its step
    moved = rows.means + (at - rows.means).detach() * (steps[4] - steps[4].detach()).exp()
    found = Coded(e.to(torch.int32), shape, cell, place, k.to(torch.int32), told)
    return found, Drawn(moved, shapes, colors, rows.weights, FORM)


def _lengths(rows: Plane) -> tuple[Tensor, Tensor]:
    """ln l1 and ln l3 [N,2] and shears [N], within what a file may tell."""
    shapes = rows.shapes if rows.form == FORM else FORMS[FORM].shapes(rows.covariance)
    lengths, shear = shapes[:, [0, 2]], shapes[:, 1]
    inside = lengths.clamp(SHORTEST * LN2, LONGEST * LN2)
    return _through(lengths, inside), _through(shear, shear.clamp(-MOST_SHEAR, MOST_SHEAR))


@torch.no_grad()
def _placed(
    means: Tensor, e: Tensor, shape: Tensor, told: Quantizer, size: Size, random: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells [N,2], places [N,2] in them and where these are, px; with `random`, where else it might be."""
    counts = torch.from_numpy(place_counts(told, e.to(torch.int32).cpu().numpy(), shape.cpu().numpy()))
    counts = counts.to(means.device)
    side = 1 << size.cell_shift
    limits = means.new_tensor([-(-size.width // side) + 1, -(-size.height // side) + 1])
    where = (means / side + 1).clamp(min=0)
    cell = torch.minimum(where.floor(), limits)
    place = torch.minimum(((where - cell) * counts).floor().clamp_min(0).long(), counts - 1)
    at = ((cell - 1) + (place + 0.5) / counts) * side
    if random is not None:
        at = means + _noise(means, random) / counts * side
    return cell.to(torch.int32), place.to(torch.int32), at


def _rounded(values: Tensor, random: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Values rounded, or with noise, in the graph as if they were as before; and the whole numbers."""
    whole = values.detach().round()
    return _through(values, whole) if random is None else values + _noise(values, random), whole


def _noise(values: Tensor, random: torch.Generator) -> Tensor:
    return (torch.rand(values.shape, generator=random) - 0.5).to(values)


def _through(values: Tensor, other: Tensor) -> Tensor:
    """`other`, with the gradient of `values`."""
    return values + (other - values).detach()


def symbols(found: Coded, rows: Plane) -> list[Symbols]:
    """A file's layers, each with the rows that are of it; colours that are all 0 are left out."""
    layers = rows.carried[LAYER].cpu()
    lit = (found.color != 0).any(1).cpu()
    parts = (found.e, found.shape, found.cell, found.place, found.color)
    made = []
    for layer in range(int(layers.max()) + 1 if len(layers) else 1):
        here = lit & (layers == layer)
        made.append(Symbols(*(part.cpu()[here].numpy() for part in parts)))
    return made


def header(
    size: Size, told: Quantizer, background: tuple[float, ...], bits: int, mode: str, top_k: int
) -> Header:
    """What a file says before its layers."""
    behind = tuple(round(65535 * value) for value in background)
    return Header(size.width, size.height, size.channels, bits, mode, top_k, behind, told)


def price_of(rows: Plane, steps: Tensor, size: Size) -> Tensor:
    """About how many bits each row costs [N], smooth in its parameters and in the steps, but for a constant.

    With K the colour in steps and e about log2 |K|: log2 of the number of places, of steps of scale and of
    shear under Laplacians and normals as wide as the rows' own, and the logarithm of a heavy-tailed prior of
    colours.
    """
    if not len(rows):
        return rows.weights
    lengths, shear = _lengths(rows)
    k = coded_colors(rows.colors) / color_steps(steps, size.channels)
    k = k * (lengths.sum(1, keepdim=True) / 2).exp()
    e = 0.5 * (k.square().sum(1) + 1).log2()
    places = -lengths.sum(1) / LN2 + 0.5 * (1 + shear.square()).log2() - 2 * steps[4] / LN2
    fixed = -(2 * steps[2] + steps[3]) / LN2
    with torch.no_grad():
        mean, spread = lengths.mean(0), lengths.std(0, correction=0).clamp_min(0.1)
        lean = shear.abs().mean().clamp_min(0.1)
        usual = k.abs().mean(0) + 0.3
    away = ((lengths - mean) / spread).square().sum(1) / (2 * LN2) + shear.abs() / (lean * LN2)
    tones = (1.5 * (1 + k.abs() / usual).log2()).sum(1)
    return 5 * e + places + fixed + away + tones


@dataclass
class Whole:
    """Draws the first layers alone, as they are."""

    upto: int

    def __call__(self, rows: Plane) -> Drawn:
        """As `Plane.drawn` says."""
        return _within(Drawn(rows.means, rows.shapes, rows.colors, rows.weights, rows.form), rows, self.upto)


@dataclass
class Quantized:
    """Draws rows as they would be coded; of the first layers alone, or all where there is no limit."""

    size: Size
    upto: int = 0
    random: torch.Generator | None = None  # for noise in place of rounding

    def __call__(self, rows: Plane) -> Drawn:
        """As `Plane.drawn` says."""
        return _within(coded(rows, rows.shared[STEPS_OF], self.size, self.random)[1], rows, self.upto)


def _within(drawn: Drawn, rows: Plane, upto: int) -> Drawn:
    """Rows of later layers weigh nothing."""
    return drawn._replace(weights=drawn.weights * (rows.carried[LAYER] < upto)) if upto else drawn
