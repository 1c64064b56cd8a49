"""Gaussians of a scene: rows of means, rotations, scales, opacities and colours.

Notation: N Gaussians, K = (degree + 1)^2 SH coefficients; row i of every tensor belongs to Gaussian i.
"""

import torch
from torch import Tensor

from splatexp.gaussians.edit import Edit as Edit
from splatexp.gaussians.edit import Overwrite as Overwrite
from splatexp.gaussians.edit import gather_leaf
from splatexp.gaussians.geometry import MIN_OPACITY_LOGIT as MIN_OPACITY_LOGIT
from splatexp.gaussians.geometry import scale_opacity
from splatexp.gaussians.rows import Rows

PARAMS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
ROW_NAMES = ("uid", "born", "generation", "smoothing")


class Splats(Rows):
    """The Gaussians of a scene.

    Args:
        params: the six parameters by name; `log_scales` [N,1] makes them isotropic.
        extent: size of the scene, world units, to which learning rates and thresholds are relative.
    """

    PARAM_NAMES = PARAMS
    ROW_NAMES = ROW_NAMES

    means: Tensor  # [N,3] world units
    quats: Tensor  # [N,4] (w,x,y,z), of any length but 0; not trained where isotropic
    log_scales: Tensor  # [N,3] or [N,1]
    opacity_logits: Tensor  # [N]
    sh0: Tensor  # [N,1,3]
    shN: Tensor  # [N,K-1,3]
    smoothing: Tensor  # [N] float32, world units, width of the 3D smoothing filter; 0: none
    importance: Tensor | None  # [N] in [0,1], a leaf that multiplies opacities; None: not learned

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        super().__init__(params, extent)
        self.smoothing = torch.zeros(len(self), device=self.means.device)
        self._smoothed_cache: tuple[Tensor, int, bool] = self.smoothing, self.smoothing._version, False
        self.importance = None

    @classmethod
    def _is_trainable(cls, name: str, params: dict[str, Tensor]) -> bool:
        return name != "quats" or params["log_scales"].shape[1] == 3

    @property
    def isotropic(self) -> bool:
        """Return whether one scale serves all three axes."""
        return self.log_scales.shape[1] == 1

    @property
    def scales(self) -> Tensor:
        """Return the activated standard deviations [N,3], world units."""
        scales = self.log_scales.exp()
        return scales.expand(-1, 3).contiguous() if self.isotropic else scales

    @property
    def opacities(self) -> Tensor:
        """Return the activated opacities [N] in (0,1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh_degree(self) -> int:
        """Return the SH degree that `shN` has coefficients for."""
        return int((self.shN.shape[1] + 1) ** 0.5 + 0.5) - 1

    @property
    def is_smoothed(self) -> bool:
        """Return whether any row is smoothed.

        The answer is cached until `smoothing` changes, since to look waits for the device.
        """
        tensor, version, found = self._smoothed_cache
        if tensor is not self.smoothing or version != tensor._version:
            found = bool(self.smoothing.any())
            self._smoothed_cache = self.smoothing, self.smoothing._version, found
        return found

    def render_params(self) -> tuple[Tensor, Tensor]:
        """Return the scales [N,3] and opacities [N] that are rendered, in the autograd graph.

        They include the 3D smoothing filter and the learned importance. A Gaussian with the filter width f
        is convolved with a Gaussian of standard deviation f, and keeps its integral:
        s' = sqrt(s^2 + f^2), o' = o prod(s / s').

        Source: Yu et al. 2024, "Mip-Splatting", eq. 9.
        """
        scales, opacities = self.scales, self.opacities
        if self.is_smoothed:
            filtered = torch.hypot(scales, self.smoothing[:, None])
            x, y, z = (scales / filtered).unbind(1)
            scales, opacities = filtered, opacities * (x * y * z)
        return scales, opacities if self.importance is None else opacities * self.importance

    @torch.no_grad()
    def contribution(self) -> Tensor:
        """Return the opacities [N] that are rendered."""
        return self.render_params()[1]

    @torch.no_grad()
    def baked(self) -> "Splats":
        """Return plain Gaussians that render the same: smoothing and importance are folded into them.

        They keep their identity. Moments and statistics restart, and extra parameters are left out.
        """
        width = self.smoothing[:, None]
        filtered = torch.hypot(self.log_scales.exp(), width).log()
        log_scales = torch.where(width > 0, filtered, self.log_scales)
        factor = ((self.log_scales - log_scales).sum(1) * (3 / log_scales.shape[1])).exp()
        if self.importance is not None:
            factor = factor * self.importance
        logits = scale_opacity(self.opacity_logits, factor)
        params = {name: getattr(self, name) for name in PARAMS}
        baked = Splats(params | {"log_scales": log_scales, "opacity_logits": logits}, self.extent)
        baked.uid = self.uid.clone()
        baked.born = self.born.clone()
        baked.generation = self.generation.clone()
        baked.next_uid = self.next_uid
        baked.initial_count = self.initial_count
        return baked

    @torch.no_grad()
    def apply(self, edit: Edit | Overwrite) -> int:
        """Apply an edit; see `Rows.apply`."""
        was_smoothed = self.is_smoothed
        grown = super().apply(edit)
        if isinstance(edit, Edit):
            self._smoothed_cache = (
                self.smoothing,
                self.smoothing._version,
                was_smoothed and bool(self.smoothing.any()),
            )
        return grown

    def _move_rows(self, parents: Tensor, fresh: Tensor) -> None:
        if self.importance is not None:
            self.importance = gather_leaf(self.importance, parents, fresh)

    def _allocate(self, key: str, tensor: Tensor, device: torch.device | None) -> None:
        super()._allocate(key, tensor, device)
        if key == "importance":
            self.importance = tensor.to(device, copy=True).requires_grad_()

    def _unchecked_rows(self) -> list[Tensor]:
        return super()._unchecked_rows() + ([] if self.importance is None else [self.importance])

    def leaves(self) -> dict[str, Tensor]:
        """Return all leaves by their names in the state."""
        return super().leaves() | ({} if self.importance is None else {"importance": self.importance})

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        count = len(params["means"])
        scales = params["log_scales"].shape[-1]
        bands = params["shN"].shape[1]
        if scales not in (1, 3):
            got = tuple(params["log_scales"].shape)
            raise ValueError(f"log_scales: expected [N, 3] or [N, 1], got {got}")
        if bands not in (0, 3, 8, 15, 24):
            raise ValueError(f"shN: expected 0, 3, 8, 15 or 24 coefficients, got {bands}")
        shapes = ((3,), (4,), (scales,), (), (1, 3), (bands, 3))  # of a row of each parameter
        for name, shape in zip(PARAMS, shapes, strict=True):
            if tuple(params[name].shape) != (count, *shape):
                raise ValueError(f"{name}: expected {[count, *shape]}, got {tuple(params[name].shape)}")
