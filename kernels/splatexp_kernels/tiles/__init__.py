"""Depth order of projected Gaussians, and their binning into screen tiles."""

from torch import Tensor

from splatexp_kernels import dispatch
from splatexp_kernels.constants import TILE_SIZES
from splatexp_kernels.tiles.reference import Tiles

__all__ = ["Tiles", "tiles"]


def tiles(
    means2d: Tensor,
    radii: Tensor,
    depths: Tensor,
    width: int,
    height: int,
    *,
    tile_size: int = 16,
    per_tile_max: int = 0,
    backend: str = "cpu",
) -> Tiles:
    """Sort Gaussians by depth and list, for every tile, those whose box reaches it; no gradients.

    Args:
        means2d: [C,N,2] px.
        radii: [C,N,2] px, half extents; 0 = culled.
        depths: [C,N] world units; Gaussians of equal depth are ordered by index.
        width, height: size of the image, px.
        tile_size: 8, 16 or 32; a tile has tile_size^2 pixels, its shape is the backend's choice.
        per_tile_max: where above 0, a tile keeps only that many nearest Gaussians.

    Returns: Tiles, meant for `blend` and `attribute` of the same backend (the reference takes any).
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Kerbl et al. 2023, section 6.
    """
    tensors = {"means2d": (means2d, "C N 2"), "radii": (radii, "C N 2"), "depths": (depths, "C N")}
    dispatch.check_tensors(backend, tensors)
    dispatch.check_range("width", width, 1)
    dispatch.check_range("height", height, 1)
    dispatch.check_range("per_tile_max", per_tile_max, 0)
    if tile_size not in TILE_SIZES:
        raise ValueError(f"tile_size: expected one of {', '.join(map(str, TILE_SIZES))}, got {tile_size}")
    return dispatch.backend_module("tiles", backend).tiles(
        means2d.detach(), radii.detach(), depths.detach(), width, height,
        tile_size=tile_size, per_tile_max=per_tile_max,
    )  # fmt: skip
