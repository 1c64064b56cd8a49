"""Measures of how close a decoded image is to the original: PSNR and MS-SSIM, by numpy and scipy alone.

Notation: `image` and `reference` are integers [H,W,D] of the same bits, as files hold them.
"""

from __future__ import annotations

import math

import numpy as np

MSE_MIN = 1e-10  # equal images have 100 dB, not infinity
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales of MS-SSIM, finest first
TAPS, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
SIDE_MIN = TAPS * 2 ** (len(WEIGHTS) - 1)  # px: the window has to fit into the coarsest scale


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels, alpha included; at most 100.

    Raises: ValueError for images of different sizes or bits.
    """
    mse = float(np.square(_both(image, reference, "psnr")).mean())
    return -10 * math.log10(max(mse, MSE_MIN))


def ms_ssim(image: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the multi-scale structural similarity, the mean over channels; None for a side below `SIDE_MIN`.

    There are five scales, each the mean of 2x2 pixels of the one before, and a Gaussian window of 11x11 that
    stays inside.

    Source: Wang, Simoncelli and Bovik 2003, "Multi-scale structural similarity for image quality assessment".
    """
    _both(image, reference, "ms_ssim")
    if min(image.shape[:2]) < SIDE_MIN:
        return None
    top = np.iinfo(image.dtype).max
    a, b = image / np.float64(top), reference / np.float64(top)
    product = np.ones(image.shape[2])
    for scale, weight in enumerate(WEIGHTS):
        luminance, contrast = _similarity(a, b)
        last = scale == len(WEIGHTS) - 1
        value = (luminance * contrast if last else contrast).mean((0, 1))
        product *= np.maximum(value, 0) ** weight
        if not last:
            a, b = _halved(a), _halved(b)
    return float(product.mean())


def _both(image: np.ndarray, reference: np.ndarray, name: str) -> np.ndarray:
    """Return the differences in [-1,1].

    Raises: ValueError.
    """
    if image.shape != reference.shape or image.dtype != reference.dtype:
        got = f"{image.shape} {image.dtype} and {reference.shape} {reference.dtype}"
        raise ValueError(f"{name}: expected images of the same size and bits, got {got}")
    return (image.astype(np.float64) - reference) / np.iinfo(image.dtype).max


def _similarity(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the map of luminance and that of contrast and structure."""
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    both = _blurred(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    return luminance, (2 * both + K2**2) / (var_a + var_b + K2**2)


def _blurred(values: np.ndarray) -> np.ndarray:
    """Return the means under the window, where all of it lies inside."""
    from scipy.ndimage import correlate1d

    taps = np.exp(-0.5 * ((np.arange(TAPS) - TAPS // 2) / SIGMA) ** 2)
    edge = TAPS // 2
    for axis in (0, 1):
        values = correlate1d(values, taps / taps.sum(), axis=axis)
    return values[edge:-edge, edge:-edge]


def _halved(values: np.ndarray) -> np.ndarray:
    """Return the means of 2x2 pixels; an odd last row or column is left out."""
    height, width = (side // 2 * 2 for side in values.shape[:2])
    values = values[:height, :width]
    return (values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]) / 4
