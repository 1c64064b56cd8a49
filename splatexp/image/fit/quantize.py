"""Quantization of an image's Gaussians to the symbols of a .gsi file, and an estimate of the bits they take.

Notation: N Gaussians with colours c and Sigma = L L^T, L = [[l1, 0], [l2, l3]]; e is a Gaussian's precision
    class. Every parameter has the step size at which its rounding costs the image about the same squared
    error: that of a colour is proportional to 1 / sqrt(l1 l3), those of shape and position, in standard
    deviations, to 2^-e.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from splatexp.gaussians.covariance import PARAMETRIZATIONS
from splatexp.gaussians.splats2d import LAYER, RenderParams, Splats2D
from splatexp.image.codec.symbols import PRECISION_MAX, UNIT, Header, Quantizer, Symbols, place_counts

PARAMETRIZATION = "log_cholesky"
STEP_SIZES = "rate_steps"  # name of a tensor that all rows share: natural logarithms of the step sizes
NAMES = ("luma", "chroma", "scale", "shear", "position")  # of the step sizes, in their order
MAX_LOG2, MIN_LOG2, MAX_SHEAR = 15.0, -4.0, 64.0  # of lengths in px, and of the shear, that a file may hold
LN2 = math.log(2)
YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))  # to RGB: BT.601, full range


@dataclass
class CodingGrid:
    """The grid that symbols refer to, besides their step sizes: the size of the image, and the size of the grid's
    cells.
    """

    width: int
    height: int
    channels: int
    cell_shift: int  # cells have 2^cell_shift px


def cell_shift(width: int, height: int, count: int) -> int:
    """Return the cell size, as log2 px, at which a cell has about 0.4 Gaussians: then their counts are
    cheapest to code.
    """
    side = math.sqrt(0.4 * width * height / max(count, 1))
    return min(8, max(0, round(math.log2(max(side, 1)))))


def rgb_to_ycc(colors: Tensor) -> Tensor:
    """Convert colours [...,D] of an image to those of a file: Y Cb Cr for R G B; grey and alpha stay."""
    if colors.shape[-1] < 3:
        return colors
    back = torch.tensor(YCC, dtype=torch.float64).inverse().to(colors)
    return torch.cat([colors[..., :3] @ back.T, colors[..., 3:]], -1)


def ycc_to_rgb(colors: Tensor) -> Tensor:
    """Invert `rgb_to_ycc`."""
    if colors.shape[-1] < 3:
        return colors
    return torch.cat([colors[..., :3] @ torch.tensor(YCC).to(colors).T, colors[..., 3:]], -1)


def color_steps(steps: Tensor, channels: int) -> Tensor:
    """Return the step size of each channel [D], from the natural logarithms [5] of NAMES."""
    luma, chroma = steps[:2].exp()
    planes = [luma] if channels < 3 else [luma, chroma, chroma]
    return torch.stack(planes + [luma] * (channels in (2, 4)))


def quantizer(steps: Tensor, size: CodingGrid) -> Quantizer:
    """Return the step sizes as a file stores them, from the natural logarithms [5] of NAMES."""
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
class QuantizedRows:
    """Quantized rows in torch; `to_symbols` turns them into the symbols of a file."""

    e: Tensor  # [N]
    shape: Tensor  # [N,3]
    cell: Tensor  # [N,2]
    place: Tensor  # [N,2]
    color: Tensor  # [N,D]
    steps: Quantizer


def quantize(
    rows: Splats2D, steps: Tensor, size: CodingGrid, random: torch.Generator | None = None
) -> tuple[QuantizedRows, RenderParams]:
    """Quantize rows; return the symbols, and what they stand for as it is rendered, in the autograd graph.

    The gradient passes rounding unchanged to the rows, and as the rounding error to the step sizes.

    Args:
        steps: natural logarithms [5] of the step sizes NAMES; the last three are used as the file will store
            them.
        random: instead of being rounded, the rendered values are shifted by up to half a step, uniformly;
            None: rounded.

    Source: rounding: Esser et al. 2020, "Learned step size quantization"; noise: Balle et al. 2017,
        "End-to-end optimized image compression", section 3.
    """
    stored = quantizer(steps, size)
    with torch.no_grad():
        exact = steps.new_tensor([stored.scale_step / UNIT * LN2, stored.shear_step / UNIT]).log()
    scale_step, shear_step = _straight_through(steps[2:4], exact).exp()
    lengths, shear = _lengths(rows)
    colors, unit = rgb_to_ycc(rows.colors), color_steps(steps, size.channels)
    with torch.no_grad():
        amplitude = (colors.abs() / unit).amax(1) * (lengths.sum(1) / 2).exp()
        e = amplitude.clamp_min(1).log2().round().clamp(0, PRECISION_MAX)
    fine = torch.exp2(-e)
    scaled, i = _rounded(lengths / (scale_step * fine)[:, None], random)
    sheared, s = _rounded(shear / (shear_step * fine), random)
    lengths, shear = scaled * (scale_step * fine)[:, None], sheared * (shear_step * fine)
    shape = torch.cat([i, s[:, None]], 1).to(torch.int32)
    cell, place, at = _positions(rows.means, e, shape, stored, size, random)
    toned, k = _rounded(colors / unit * (lengths.sum(1, keepdim=True) / 2).exp(), random)
    colors = ycc_to_rgb(toned * unit * (lengths.sum(1, keepdim=True) / -2).exp())
    shapes = torch.stack([lengths[:, 0], shear, lengths[:, 1]], 1)
    # a rounding error is proportional to its step size, which gives the step size its gradient
    moved = rows.means + (at - rows.means).detach() * (steps[4] - steps[4].detach()).exp()
    found = QuantizedRows(e.to(torch.int32), shape, cell, place, k.to(torch.int32), stored)
    return found, RenderParams(moved, shapes, colors, rows.weights, PARAMETRIZATION)


def _lengths(rows: Splats2D) -> tuple[Tensor, Tensor]:
    """Return ln l1 and ln l3 [N,2] and the shears [N], clamped to what a file may hold."""
    shapes = (
        rows.shapes
        if rows.parametrization == PARAMETRIZATION
        else PARAMETRIZATIONS[PARAMETRIZATION].shapes(rows.covariance)
    )
    lengths, shear = shapes[:, [0, 2]], shapes[:, 1]
    inside = lengths.clamp(MIN_LOG2 * LN2, MAX_LOG2 * LN2)
    return _straight_through(lengths, inside), _straight_through(shear, shear.clamp(-MAX_SHEAR, MAX_SHEAR))


@torch.no_grad()
def _positions(
    means: Tensor,
    e: Tensor,
    shape: Tensor,
    stored: Quantizer,
    size: CodingGrid,
    random: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells [N,2], the positions [N,2] inside them, and where these are, px; with `random`,
    shifted by noise.
    """
    counts = torch.from_numpy(place_counts(stored, e.to(torch.int32).cpu().numpy(), shape.cpu().numpy()))
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
    """Return values rounded (or with noise) with the gradient of the values themselves, and the whole
    numbers.
    """
    whole = values.detach().round()
    return _straight_through(values, whole) if random is None else values + _noise(values, random), whole


def _noise(values: Tensor, random: torch.Generator) -> Tensor:
    return (torch.rand(values.shape, generator=random) - 0.5).to(values)


def _straight_through(values: Tensor, other: Tensor) -> Tensor:
    """Return `other` with the gradient of `values`."""
    return values + (other - values).detach()


def to_symbols(found: QuantizedRows, rows: Splats2D) -> list[Symbols]:
    """Return the layers of a file, each with its rows; rows whose colours are all 0 are left out."""
    layers = rows.carried[LAYER].cpu()
    lit = (found.color != 0).any(1).cpu()
    parts = (found.e, found.shape, found.cell, found.place, found.color)
    made = []
    for layer in range(int(layers.max()) + 1 if len(layers) else 1):
        here = lit & (layers == layer)
        made.append(Symbols(*(part.cpu()[here].numpy() for part in parts)))
    return made


def make_header(
    size: CodingGrid, stored: Quantizer, background: tuple[float, ...], bits: int, mode: str, top_k: int
) -> Header:
    """Return the header of a file."""
    behind = tuple(round(65535 * value) for value in background)
    return Header(size.width, size.height, size.channels, bits, mode, top_k, behind, stored)


def estimate_bits(rows: Splats2D, steps: Tensor, size: CodingGrid) -> Tensor:
    """Estimate the bits of each row [N], up to a constant, smoothly in its parameters and in the step sizes.

    With K the colour in steps and e about log2 |K|, it adds log2 of the number of positions, of the steps of
    scale and of shear under normal and Laplacian distributions as wide as the rows' own, and the logarithm of
    a heavy-tailed prior of the colours.
    """
    if not len(rows):
        return rows.weights
    lengths, shear = _lengths(rows)
    k = rgb_to_ycc(rows.colors) / color_steps(steps, size.channels)
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
class DrawLayers:
    """Renders the first `upto` layers alone, without quantization."""

    upto: int

    def __call__(self, rows: Splats2D) -> RenderParams:
        """Return the parameters to render, as `Splats2D.quantizer` should."""
        return _within(
            RenderParams(rows.means, rows.shapes, rows.colors, rows.weights, rows.parametrization),
            rows,
            self.upto,
        )


@dataclass
class DrawQuantized:
    """Renders rows as they would be coded: the first `upto` layers alone, or all where `upto` is 0."""

    size: CodingGrid
    upto: int = 0
    random: torch.Generator | None = None  # for noise in place of rounding

    def __call__(self, rows: Splats2D) -> RenderParams:
        """Return the parameters to render, as `Splats2D.quantizer` should."""
        return _within(quantize(rows, rows.shared[STEP_SIZES], self.size, self.random)[1], rows, self.upto)


def _within(drawn: RenderParams, rows: Splats2D, upto: int) -> RenderParams:
    """Set the weights of rows of later layers to 0."""
    return drawn._replace(weights=drawn.weights * (rows.carried[LAYER] < upto)) if upto else drawn
