"""Comparison of two rate-distortion curves: the Bjontegaard difference in rate (per cent) or in quality (dB).

A curve is points (rate, quality), in any order; between them the logarithm of the rate is a piecewise cubic
Hermite polynomial of the quality that is as monotone as its points (PCHIP).
Source: Bjontegaard 2001, "Calculation of average PSNR differences between RD-curves" (VCEG-M33), with PCHIP
    as in JCT-VC's common test conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]


def bd_rate(anchor: Curve, test: Curve, low: float = 0.0, high: float = math.inf) -> float | None:
    """Return the mean change of the rate at equal quality, %, negative where `test` needs less; None without
    overlap.

    Args:
        low, high: rates outside of this range are ignored, on both curves. Nothing is extrapolated.
    """
    return _difference(anchor, test, low, high, by=1)


def bd_psnr(anchor: Curve, test: Curve, low: float = 0.0, high: float = math.inf) -> float | None:
    """Return the mean change of the quality at equal rate, in its unit (dB), on a logarithmic scale of rates.

    Returns: None without overlap; low, high: as for `bd_rate`.
    """
    return _difference(anchor, test, low, high, by=0)


def at_rate(curve: Curve, rate: float) -> float | None:
    """Return the quality at a rate, linear in the rate's logarithm between the points; None outside of
    them.
    """
    rates, values = _rising(curve, 0)
    if not len(rates) or not rates[0] <= math.log(rate) <= rates[-1]:
        return None
    return float(np.interp(math.log(rate), rates, values))


def _difference(anchor: Curve, test: Curve, low: float, high: float, by: int) -> float | None:
    """Return the mean distance of two curves along the other axis; by: 0 over rates, 1 over qualities."""
    from scipy.interpolate import PchipInterpolator

    shapes, starts, ends = [], [], []
    for curve in (anchor, test):
        rates, values = _rising(curve, 0)
        if len(rates) < 2:
            return None
        bounds = [float(np.clip(math.log(max(rate, 1e-300)), rates[0], rates[-1])) for rate in (low, high)]
        if by == 1:
            quality = PchipInterpolator(rates, values)
            bounds = [float(quality(rate)) for rate in bounds]
        shapes.append(PchipInterpolator(*_rising(curve, by)))
        starts.append(bounds[0])
        ends.append(bounds[1])
    start, end = max(starts), min(ends)
    if end - start <= 1e-9:
        return None
    areas = [float(shape.integrate(start, end)) for shape in shapes]
    mean = (areas[1] - areas[0]) / float(end - start)
    return 100 * math.expm1(mean) if by == 1 else mean


def _rising(curve: Curve, by: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one axis and the other, sorted by the first, which rises strictly; by: 0 log rate, 1 quality.

    A point that costs more than another and is not better is left out, since codecs have such settings.
    """
    kept: list[tuple[float, float]] = []
    for rate, value in sorted(curve, key=lambda point: (point[0], -point[1])):
        if not kept or (rate > kept[-1][0] and value > kept[-1][1]):
            kept.append((rate, value))
    pairs = np.array([(math.log(rate), value) for rate, value in kept]).reshape(-1, 2)
    return pairs[:, by], pairs[:, 1 - by]
