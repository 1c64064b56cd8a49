"""Constants that every backend of every op shares; `kernels/cpp/constants.h` repeats them for C++, and a test
keeps both equal.

Source: Kerbl et al. 2023 and the code of its authors.
"""

ALPHA_MIN = 1.0 / 255.0  # a Gaussian fainter than this at a pixel is skipped there
ALPHA_MAX = 0.99  # alpha is clamped here, so 1/(1 - alpha) stays finite in the backward pass
NORMALIZER_EPS = 1e-4  # added to the sum of weights that a normalised pixel is divided by (Zhang et al. 2025)
T_MIN = 1e-4  # a pixel stops before the Gaussian that would take its transmittance to this or below
COMPENSATION_MIN2 = 2.5e-5  # floor of det(cov) / det(cov + eps2d I) under the square root
FRUSTUM_MARGIN = 0.3  # the projection Jacobian is evaluated at most this share of the half frame outside it
TILE_SIZES = (8, 16, 32)
