"""Gaussians of a scene: rows of means, rotations, scales, opacities and colours.

Notation: N Gaussians, K = (degree + 1)^2 SH coefficients; row i of every tensor belongs to Gaussian i.
"""

import torch
from torch import Tensor

from splatexp.gaussians.edit import Edit as Edit
from splatexp.gaussians.edit import Overwrite as Overwrite
from splatexp.gaussians.edit import moved
from splatexp.gaussians.geometry import FAINTEST as FAINTEST
from splatexp.gaussians.geometry import dimmed
from splatexp.gaussians.rows import Rows

PARAMS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
ROWS = ("uid", "born", "generation", "smoothing")


class Splats(Rows):
    """The Gaussians of a scene.

    Args:
        params: the six parameters by name; `log_scales` [N,1] makes them isotropic.
        extent: size of the scene, world units; learning rates and density control measure in it.
    """

    NAMES = PARAMS
    ROWS = ROWS

    means: Tensor  # [N,3] world units
    quats: Tensor  # [N,4] (w,x,y,z), any length but 0; no gradient where isotropic
    log_scales: Tensor  # [N,3] or [N,1]
    opacity_logits: Tensor  # [N]
    sh0: Tensor  # [N,1,3]
    shN: Tensor  # [N,K-1,3]
    smoothing: Tensor  # [N] float32, world units, at least so wide is it drawn; 0: as it is
    importance: Tensor | None  # [N] in [0,1], a leaf that opacities are multiplied by; None: not learned

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        super().__init__(params, extent)
        self.smoothing = torch.zeros(len(self), device=self.means.device)
        self._smooths: tuple[Tensor, int, bool] = self.smoothing, self.smoothing._version, False
        self.importance = None

    @classmethod
    def _learns(cls, name: str, params: dict[str, Tensor]) -> bool:
        return name != "quats" or params["log_scales"].shape[1] == 3

    @property
    def isotropic(self) -> bool:
        """Whether one scale serves all three axes."""
        return self.log_scales.shape[1] == 1

    @property
    def scales(self) -> Tensor:
        """Activated standard deviations [N,3], world units."""
        scales = self.log_scales.exp()
        return scales.expand(-1, 3).contiguous() if self.isotropic else scales

    @property
    def opacities(self) -> Tensor:
        """Activated opacities [N] in (0,1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh_degree(self) -> int:
        """The degree that `shN` has room for."""
        return int((self.shN.shape[1] + 1) ** 0.5 + 0.5) - 1

    @property
    def smooths(self) -> bool:
        """Whether any row is smoothed; looked up where `smoothing` has changed, as a device is waited for."""
        of, version, found = self._smooths
        if of is not self.smoothing or version != of._version:
            found = bool(self.smoothing.any())
            self._smooths = self.smoothing, self.smoothing._version, found
        return found

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Scales [N,3] and opacities [N] as they are blended, in the graph: smoothed, by their importance.

        A smoothed Gaussian is the convolution with one of standard deviation f, its integral kept:
        s' = sqrt(s^2 + f^2), o' = o prod(s / s').  Source: Yu et al. 2024, "Mip-Splatting", eq. 9.
        """
        scales, opacities = self.scales, self.opacities
        if self.smooths:
            wide = torch.hypot(scales, self.smoothing[:, None])
            x, y, z = (scales / wide).unbind(1)
            scales, opacities = wide, opacities * (x * y * z)
        return scales, opacities if self.importance is None else opacities * self.importance

    @torch.no_grad()
    def strength(self) -> Tensor:
        """Opacities [N] as they are blended."""
        return self.drawn()[1]

    @torch.no_grad()
    def baked(self) -> "Splats":
        """Plain Gaussians that are drawn as these are: smoothing and importance folded in, nothing extra.

        They keep their identity; moments and statistics start anew.
        """
        smooth = self.smoothing[:, None]
        wide = torch.where(smooth > 0, torch.hypot(self.log_scales.exp(), smooth).log(), self.log_scales)
        share = ((self.log_scales - wide).sum(1) * (3 / wide.shape[1])).exp()
        if self.importance is not None:
            share = share * self.importance
        logits = dimmed(self.opacity_logits, share)
        plain = {name: getattr(self, name) for name in PARAMS}
        other = Splats(plain | {"log_scales": wide, "opacity_logits": logits}, self.extent)
        other.uid, other.born, other.generation = self.uid.clone(), self.born.clone(), self.generation.clone()
        other.next_uid, other.initial = self.next_uid, self.initial
        return other

    @torch.no_grad()
    def apply(self, edit: Edit | Overwrite) -> int:
        """As `Rows` says."""
        smooths = self.smooths
        grown = super().apply(edit)
        if isinstance(edit, Edit):
            self._smooths = self.smoothing, self.smoothing._version, smooths and bool(self.smoothing.any())
        return grown

    def _moved(self, parents: Tensor, fresh: Tensor) -> None:
        if self.importance is not None:
            self.importance = moved(self.importance, parents, fresh)

    def _make_room(self, key: str, tensor: Tensor, device: torch.device | None) -> None:
        super()._make_room(key, tensor, device)
        if key == "importance":
            self.importance = tensor.to(device, copy=True).requires_grad_()

    def _further_rows(self) -> list[Tensor]:
        return super()._further_rows() + ([] if self.importance is None else [self.importance])

    def leaves(self) -> dict[str, Tensor]:
        """All leaves by their names in the state."""
        return super().leaves() | ({} if self.importance is None else {"importance": self.importance})

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        count, scales, bands = (
            len(params["means"]),
            params["log_scales"].shape[-1],
            params["shN"].shape[1],
        )
        if scales not in (1, 3):
            got = tuple(params["log_scales"].shape)
            raise ValueError(f"log_scales: expected [N, 3] or [N, 1], got {got}")
        if bands not in (0, 3, 8, 15, 24):
            raise ValueError(f"shN: expected 0, 3, 8, 15 or 24 coefficients, got {bands}")
        tails = ((3,), (4,), (scales,), (), (1, 3), (bands, 3))
        for name, shape in zip(PARAMS, tails, strict=True):
            if tuple(params[name].shape) != (count, *shape):
                raise ValueError(f"{name}: expected {[count, *shape]}, got {tuple(params[name].shape)}")
