"""Front-to-back alpha blending of projected Gaussians, and their share in the pixels."""

import torch
from torch import Tensor

from splatexp_kernels import door
from splatexp_kernels.blend.reference import Attribution
from splatexp_kernels.tiles.reference import Tiles

__all__ = ["Attribution", "attribute", "blend"]


def blend(
    means2d: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    tiles: Tiles,
    width: int,
    height: int,
    *,
    background: Tensor | None = None,
    max_splats_per_pixel: int = 0,
    absgrad: Tensor | None = None,
    backend: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Blend N Gaussians into C images of D channels.

    Args:
        means2d: [C,N,2] px, pixel centres at +0.5.
        conics: [C,N,3] px^-2, the inverse 2D covariance [[a, b], [b, c]].
        colors: [C,N,D] any D from 1 on; depths or features may stand among them.
        opacities: [C,N] in [0,1], compensated already.
        tiles: from `tiles` for the same Gaussians and image size; outside its box of `radii` a Gaussian may
            be missing, so `project` must have seen opacities no smaller than these.
        width, height: the image, px.
        background: [C,D] shown through what remains transparent; None: 0.
        max_splats_per_pixel: where above 0, a pixel stops after that many contributions.
        absgrad: [C,N,2] px^-1, overwritten by backward with the sum over pixels of |d loss / d means2d|;
            backend `cpu` offers it for D up to 8.

    Returns: image [C,H,W,D] and alpha [C,H,W,1] = 1 - remaining transmittance.
    Gradients: means2d, conics, colors, opacities, background.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Kerbl et al. 2023, eq. 2-3; absgrad: Ye et al. 2024, "AbsGS", eq. 7.
    """
    tensors = {
        "means2d": (means2d, "C N 2"), "conics": (conics, "C N 3"), "colors": (colors, "C N D"),
        "opacities": (opacities, "C N"), "background": (background, "C D"), "absgrad": (absgrad, "C N 2"),
    }  # fmt: skip
    sizes = door.check(backend, tensors)
    door.check_range("colors.shape[2]", sizes["D"], 1)
    door.check_range("max_splats_per_pixel", max_splats_per_pixel, 0)
    _check_tiles(tiles, sizes["C"], width, height)
    return door.implementation("blend", backend).blend(
        means2d, conics, colors, opacities, tiles, width, height,
        background=background, max_splats_per_pixel=max_splats_per_pixel, absgrad=absgrad,
    )  # fmt: skip


def attribute(
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    tiles: Tiles,
    width: int,
    height: int,
    maps: Tensor,
    *,
    threshold: float = 0.0,
    max_splats_per_pixel: int = 0,
    backend: str = "cpu",
) -> Attribution:
    """Share of N Gaussians in M pixel maps per image, with the exact weights of `blend`. No gradients.

    Args:
        means2d, conics, opacities, tiles, width, height, max_splats_per_pixel: as for `blend`.
        maps: [C,H,W,M] pixel values, such as errors or edges; M may be 0.
        threshold: a map's pixel above it counts as a hit.

    Returns: Attribution.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Rota Bulo et al. 2024, "Revising Densification", eq. 5 (sum of weight times error).
    """
    tensors = {
        "means2d": (means2d, "C N 2"), "conics": (conics, "C N 3"), "opacities": (opacities, "C N"),
        "maps": (maps, "C H W M"),
    }  # fmt: skip
    sizes = door.check(backend, tensors)
    if (sizes["H"], sizes["W"]) != (height, width):
        raise ValueError(f"maps: expected [C, {height}, {width}, M], got {tuple(maps.shape)}")
    door.check_range("threshold", threshold, -torch.inf)
    door.check_range("max_splats_per_pixel", max_splats_per_pixel, 0)
    _check_tiles(tiles, sizes["C"], width, height)
    return door.implementation("blend", backend).attribute(
        means2d.detach(), conics.detach(), opacities.detach(), tiles, width, height, maps.detach(),
        threshold=threshold, max_splats_per_pixel=max_splats_per_pixel,
    )  # fmt: skip


def _check_tiles(tiles: Tiles, cameras: int, width: int, height: int) -> None:
    covered = -(-width // tiles.tile_width), -(-height // tiles.tile_height)
    made_for = len(tiles.starts) // max(tiles.tiles_x * tiles.tiles_y, 1)
    if covered != (tiles.tiles_x, tiles.tiles_y) or made_for != cameras:
        raise ValueError(
            f"tiles: expected those of {cameras} images of {width}x{height}, got {made_for} images in"
            f" {tiles.tiles_x}x{tiles.tiles_y} tiles of {tiles.tile_width}x{tiles.tile_height} px"
        )
