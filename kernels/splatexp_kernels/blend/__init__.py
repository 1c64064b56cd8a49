"""Front-to-back alpha blending of projected Gaussians, and the attribution of pixels to Gaussians."""

from collections.abc import Collection

import torch
from torch import Tensor

from splatexp_kernels import dispatch
from splatexp_kernels.blend.reference import DEFAULT_FIELDS, LEAVE_ONE_OUT_FIELDS, Attribution
from splatexp_kernels.tiles.reference import Tiles

__all__ = ["DEFAULT_FIELDS", "LEAVE_ONE_OUT_FIELDS", "Attribution", "attribute", "blend", "check_tiles"]


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
        colors: [C,N,D] with any D from 1 on; depths or features may be among the channels.
        opacities: [C,N] in [0,1], compensated already.
        tiles: result of `tiles` for the same Gaussians and image size. Its `radii` must be those of these
            opacities, as `project` returns them; otherwise backend `cpu` loses parts of Gaussians.
        width, height: size of the image, px.
        background: [C,D] shown through what remains transparent; None: 0.
        max_splats_per_pixel: where above 0, a pixel stops after that many contributions.
        absgrad: [C,N,2] px^-1, overwritten by the backward pass with the sum over pixels of |d loss / d
            means2d|; backend `cpu` offers it for D up to 8, `gpu` up to 4.

    Returns: image [C,H,W,D] and alpha [C,H,W,1] = 1 - remaining transmittance.
    Gradients: means2d, conics, colors, opacities, background.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Kerbl et al. 2023, eq. 2-3; absgrad: Ye et al. 2024, "AbsGS", eq. 7.
    """
    tensors = {
        "means2d": (means2d, "C N 2"), "conics": (conics, "C N 3"), "colors": (colors, "C N D"),
        "opacities": (opacities, "C N"), "background": (background, "C D"), "absgrad": (absgrad, "C N 2"),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    dispatch.check_range("colors.shape[2]", sizes["D"], 1)
    dispatch.check_range("max_splats_per_pixel", max_splats_per_pixel, 0)
    check_tiles(tiles, sizes["C"], width, height)
    return dispatch.backend_module("blend", backend).blend(
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
    want: Collection[str] = (),
    colors: Tensor | None = None,
    image: Tensor | None = None,
    target: Tensor | None = None,
    backend: str = "cpu",
) -> Attribution:
    """Return the share of N Gaussians in M pixel maps per image, with the exact weights of `blend`; no
    gradients.

    Args:
        means2d, conics, opacities, tiles, width, height, max_splats_per_pixel: as for `blend`.
        maps: [C,H,W,M] pixel values, such as errors or edges; M may be 0.
        threshold: a map's pixel above it counts as a hit.
        want: names of further fields of `Attribution`; DEFAULT_FIELDS are always computed, each other one
            costs time.
        colors: [C,N,3] as blended.
        image: [C,H,W,3] that `blend` made of them, with its background.
        target: [C,H,W,3] the image to be reached. These three are needed for LEAVE_ONE_OUT_FIELDS.

    Returns: Attribution.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Rota Bulo et al. 2024, "Revising Densification", eq. 5 (sum of weight times error); covered,
        distance: Mallick et al. 2024, "Taming 3DGS"; dominant: Fang and Wang 2024, "Mini-Splatting"; removal:
        "GaussianPOP" 2026; sensitivity: Hanson et al. 2025, "Speedy-Splat".
    Differs: sensitivity is 0 where alpha is clamped, as its derivative is.
    """
    tensors = {
        "means2d": (means2d, "C N 2"), "conics": (conics, "C N 3"), "opacities": (opacities, "C N"),
        "maps": (maps, "C H W M"), "colors": (colors, "C N 3"), "image": (image, "C H W 3"),
        "target": (target, "C H W 3"),
    }  # fmt: skip
    sizes = dispatch.check_tensors(backend, tensors)
    if (sizes["H"], sizes["W"]) != (height, width):
        raise ValueError(f"maps: expected [C, {height}, {width}, M], got {tuple(maps.shape)}")
    dispatch.check_range("threshold", threshold, -torch.inf)
    dispatch.check_range("max_splats_per_pixel", max_splats_per_pixel, 0)
    check_tiles(tiles, sizes["C"], width, height)
    left_out = _left_out(want, {"colors": colors, "image": image, "target": target})
    return dispatch.backend_module("blend", backend).attribute(
        means2d.detach(), conics.detach(), opacities.detach(), tiles, width, height, maps.detach(),
        threshold=threshold, max_splats_per_pixel=max_splats_per_pixel, want=want, **left_out,
    )  # fmt: skip


def _left_out(want: Collection[str], inputs: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Return the inputs of LEAVE_ONE_OUT_FIELDS, detached; None where those are not wanted."""
    for name in want:
        if name not in Attribution._fields:
            raise ValueError(f"want: expected names among {', '.join(Attribution._fields)}, got {name!r}")
    names = [name for name in LEAVE_ONE_OUT_FIELDS if name in want]
    if not names:
        return dict.fromkeys(inputs)
    for name, tensor in inputs.items():
        if tensor is None:
            raise ValueError(f"{name}: expected a tensor where want has {', '.join(names)}, got None")
    return {name: tensor if tensor is None else tensor.detach() for name, tensor in inputs.items()}


def check_tiles(tiles: Tiles, cameras: int, width: int, height: int) -> None:
    """Check tile lists against the number and the size of the images.

    Raises: ValueError where they do not fit.
    """
    covered = -(-width // tiles.tile_width), -(-height // tiles.tile_height)
    made_for = len(tiles.starts) // max(tiles.tiles_x * tiles.tiles_y, 1)
    if covered != (tiles.tiles_x, tiles.tiles_y) or made_for != cameras:
        raise ValueError(
            f"tiles: expected lists for {cameras} images of {width}x{height}, got lists for "
            f"{made_for} images in"
            f" {tiles.tiles_x}x{tiles.tiles_y} tiles of {tiles.tile_width}x{tiles.tile_height} px"
        )
