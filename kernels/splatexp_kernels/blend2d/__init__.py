"""Blending of 2D Gaussians in the image plane: summed or normalized, without an order, or composited."""

from torch import Tensor

from splatexp_kernels import dispatch
from splatexp_kernels.blend import check_tiles
from splatexp_kernels.tiles.reference import Tiles

__all__ = ["MODES", "blend2d"]

MODES = ("sum", "normalized", "alpha")


def blend2d(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    weights: Tensor,
    tiles: Tiles,
    width: int,
    height: int,
    *,
    mode: str = "sum",
    top_k: int = 0,
    background: Tensor | None = None,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Blend N Gaussians into C images of D channels: summed, normalized or composited.

    At distance d from its mean a Gaussian has the weight w = weight exp(-d.conic.d/2), and 0 where that is
    below 1/255. With W the sum of w over the Gaussians of a pixel, a pixel is

        sum         sum of w color + background
        normalized  (sum of w color + eps background) / (W + eps), eps = NORMALIZER_EPS
        alpha       as `blend` composites it, front to back by the depths of `tiles`, weights being opacities

    The first two do not depend on an order: the depths given to `tiles` change only the rounding of sums.

    Args:
        means2d: [C,N,2] px, pixel centres at +0.5.
        conics: [C,N,3] px^-2, the inverse covariance [[a, b], [b, c]], positive definite.
        colors: [C,N,D] with any D from 1 on, of any sign.
        weights: [C,N], at least 0; a weight of 0 contributes nothing.
        tiles: result of `tiles` for the same Gaussians and image size; its `radii` are the boxes in which w
            can reach 1/255. Backend `cpu` loses parts of Gaussians where they are smaller.
        width, height: size of the image, px.
        mode: sum, normalized or alpha.
        top_k: where above 0, a pixel uses only its top_k largest w, of equals those first in `tiles`; not
            with alpha; backend `cpu` offers it up to 32.
        background: [C,D]; None: 0.

    Returns: image [C,H,W,D] and total [C,H,W,1], the W of what each pixel uses; with alpha, 1 -
        transmittance.
    Gradients: means2d, conics, colors, weights, background. The choice of Gaussians per pixel is held fixed.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: sum: Zhang et al. 2024, "GaussianImage", section 3.2; normalized: Zhang et al. 2025, "Image-GS".
    Differs: "GaussianImage" clamps w at 1, "Image-GS" has neither a background nor the cut at 1/255.
    """
    tensors = {
        "means2d": (means2d, "C N 2"), "conics": (conics, "C N 3"), "colors": (colors, "C N D"),
        "weights": (weights, "C N"), "background": (background, "C D"),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    dispatch.check_range("colors.shape[2]", sizes["D"], 1)
    dispatch.check_range("top_k", top_k, 0)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "alpha" and top_k:
        raise ValueError(f"top_k: expected 0 with mode 'alpha', got {top_k}")
    check_tiles(tiles, sizes["C"], width, height)
    return dispatch.backend_module("blend2d", backend).blend2d(
        means2d, conics, colors, weights, tiles, width, height,
        mode=mode, top_k=top_k, background=background,
    )  # fmt: skip
