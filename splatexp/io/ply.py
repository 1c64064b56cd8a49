"""Gaussians as .ply and .splat files, which viewers read. The names in the files occur here and nowhere else.

`.ply`    binary little-endian, one `vertex` element, float32: x y z nx ny nz f_dc_0..2 f_rest_0..3(K-1)-1
          opacity scale_0..2 rot_0..3. Stored values are the raw parameters: log scales, logit opacities,
          quaternions (w, x, y, z) of any length. `f_rest` is channel-major: all K-1 coefficients of red, then
          green, then blue, so f_rest_{c(K-1)+k} = shN[:, k, c].
          Source: the reference code of 3DGS (Kerbl et al. 2023).
`.splat`  32 bytes per Gaussian: position 3 float32, scale 3 float32 (activated), RGBA 4 uint8, quaternion
          4 uint8 (128 + 128 q); rows in descending order of volume times opacity; the colour is that of
          degree 0 alone.
          Source: antimatter15/splat.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splatexp.io.atomic import atomic_write

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

SH_C0 = 0.28209479177387814  # the constant basis function, 1 / (2 sqrt(pi))
SH_REST = {0: 0, 9: 1, 24: 2, 45: 3, 72: 4}  # number of f_rest properties -> SH degree
BEFORE_REST = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2")
AFTER_REST = ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")
REQUIRED = tuple(name for name in BEFORE_REST + AFTER_REST if name not in ("nx", "ny", "nz"))


def save_ply(path: str | PathLike[str], splats: Any) -> None:
    """Write all parameters of `splats` to a .ply, atomically; isotropic Gaussians get three equal scales.

    `splats` has `means` [N,3], `quats` [N,4], `log_scales` [N,3] or [N,1], `opacity_logits` [N], `sh0`
    [N,1,3] and `shN` [N,K-1,3]. Values are written bit for bit.

    Raises: OSError when the file cannot be written completely.
    """
    from plyfile import PlyData, PlyElement

    n = len(splats.means)
    rest = _array(splats.shN).transpose(0, 2, 1).reshape(n, 3 * splats.shN.shape[1])  # channel-major
    means = _array(splats.means)
    rows = np.concatenate(
        [
            means,
            np.zeros_like(means),  # normals, which some viewers expect and Gaussians do not have
            _array(splats.sh0).reshape(n, 3),
            rest,
            _array(splats.opacity_logits).reshape(n, 1),
            np.broadcast_to(_array(splats.log_scales), (n, 3)),
            _array(splats.quats),
        ],
        axis=1,
    ).astype("<f4", copy=False)
    names = [*BEFORE_REST, *(f"f_rest_{i}" for i in range(rest.shape[1])), *AFTER_REST]
    vertices = rows.view([(name, "<f4") for name in names]).reshape(n)
    with atomic_write(path) as temp, open(temp, "wb") as file:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(file)


def load_ply(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read the Gaussians of a .ply: means, quats, log_scales [N,3], opacity_logits, sh0, shN, all float32.

    The properties may be in any order and type, in ASCII or either byte order. Normals, colours and anything
    else are ignored. Without `f_rest` the model has SH degree 0.

    Raises: FileNotFoundError; ValueError (one line) for a file that is damaged, lacks a property that a
    Gaussian needs, has a number of `f_rest` that is not one of `SH_REST`, or values that are not finite.
    """
    import torch

    path = Path(path)
    vertices = _read_vertices(path)
    present = set(vertices.dtype.names or ())
    if missing := [name for name in REQUIRED if name not in present]:
        raise ValueError(f"{path}: expected the properties of Gaussians, got none named {', '.join(missing)}")
    count = sum(name.startswith("f_rest_") for name in present)
    rest = [f"f_rest_{i}" for i in range(count)]
    if count not in SH_REST or not present.issuperset(rest):
        counts = ", ".join(map(str, SH_REST))
        raise ValueError(f"{path}: expected {counts} properties f_rest_*, got {count}")

    def columns(*names: str) -> np.ndarray:
        values = np.empty((len(vertices), len(names)), np.float32)
        for i, name in enumerate(names):
            values[:, i] = vertices[name]
            if bad := int((~np.isfinite(values[:, i])).sum()):
                raise ValueError(f"{path}: {bad} of {len(values)} values of {name} are not finite")
        return values

    sh_rest = columns(*rest).reshape(len(vertices), 3, count // 3).transpose(0, 2, 1)
    arrays = {
        "means": columns("x", "y", "z"),
        "quats": columns("rot_0", "rot_1", "rot_2", "rot_3"),
        "log_scales": columns("scale_0", "scale_1", "scale_2"),
        "opacity_logits": columns("opacity")[:, 0],
        "sh0": columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None, :],
        "shN": sh_rest,
    }
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def save_splat(path: str | PathLike[str], splats: Any) -> None:
    """Write a .splat, atomically: 32 bytes per Gaussian, largest contribution (volume times opacity)
    first.
    """
    n = len(splats.means)
    scales = np.exp(np.broadcast_to(_array(splats.log_scales), (n, 3)))
    opacities = 1.0 / (1.0 + np.exp(-_array(splats.opacity_logits).reshape(n).astype(np.float64)))
    quats = _array(splats.quats)
    quats = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    rows = np.empty(n, [("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
    rows["means"] = _array(splats.means)
    rows["scales"] = scales
    rows["rgba"][:, :3] = _bytes(255.0 * (0.5 + SH_C0 * _array(splats.sh0).reshape(n, 3)))
    rows["rgba"][:, 3] = _bytes(255.0 * opacities)
    rows["quats"] = _bytes(128.0 + 128.0 * quats)
    order = np.argsort(-scales.astype(np.float64).prod(axis=1) * opacities, kind="stable")
    with atomic_write(path) as temp:
        temp.write_bytes(rows[order].tobytes())


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _read_vertices(path: Path) -> np.ndarray:
    """Return the `vertex` element as a structured array; damage of any kind raises a ValueError of one
    line.
    """
    from plyfile import PlyData, PlyParseError

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return PlyData.read(str(path), mmap="c")["vertex"].data
    except (PlyParseError, ValueError, KeyError, MemoryError) as error:
        raise ValueError(f"{path}: not a readable .ply ({' '.join(str(error).split())})") from error
