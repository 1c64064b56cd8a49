"""Pinhole cameras: a batch of views of one size, and the point that cameras look at.

Notation: `viewmats` [C,4,4] world -> camera with OpenCV axes (x right, y down, z forward); `Ks` [C,3,3] in
pixels, the centre of the first pixel at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Camera:
    """A batch of C pinhole views of one size.

    Raises: ValueError for other shapes, and for sizes below one pixel.
    """

    viewmats: Tensor  # [C,4,4] world -> camera
    Ks: Tensor  # [C,3,3] px
    width: int  # px
    height: int  # px

    def __post_init__(self) -> None:
        for name, tail in (("viewmats", (4, 4)), ("Ks", (3, 3))):
            shape = tuple(getattr(self, name).shape)
            if len(shape) != 3 or shape[1:] != tail:
                raise ValueError(f"{name}: expected [C, {tail[0]}, {tail[1]}], got {shape}")
        if len(self.viewmats) != len(self.Ks):
            raise ValueError(
                f"Ks: expected {len(self.viewmats)} matrices, as many as viewmats, got {len(self.Ks)}"
            )
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width, height: expected at least 1 pixel, got {self.width} x {self.height}")

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, index: int | slice) -> Camera:
        """Return the view (C = 1) or the views at `index`."""
        if isinstance(index, int):
            index = slice(index, None) if index == -1 else slice(index, index + 1)
        return Camera(self.viewmats[index], self.Ks[index], self.width, self.height)

    @property
    def centers(self) -> Tensor:
        """Return the camera centres in the world, [C,3]."""
        return -torch.einsum("cji,cj->ci", self.viewmats[:, :3, :3], self.viewmats[:, :3, 3])

    @property
    def forwards(self) -> Tensor:
        """Return the unit viewing directions in the world, [C,3]."""
        return self.viewmats[:, 2, :3]

    def resized(self, width: int, height: int) -> Camera:
        """Return the same views at another size, with Ks scaled per axis by the exact ratio of the sizes."""
        return self._scaled(width / self.width, height / self.height, width, height)

    def downscaled(self, factor: int) -> Camera:
        """Return the same views with each complete `factor` x `factor` block of pixels as one pixel."""
        return self._scaled(1 / factor, 1 / factor, self.width // factor, self.height // factor)

    def to(self, device: torch.device | str) -> Camera:
        """Return the same views on a device."""
        return Camera(self.viewmats.to(device), self.Ks.to(device), self.width, self.height)

    def _scaled(self, x: float, y: float, width: int, height: int) -> Camera:
        across, down, last = self.Ks.unbind(1)
        return Camera(self.viewmats, torch.stack([across * x, down * y, last], 1), width, height)


def look_at(eyes: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Return world -> camera matrices [C,4,4] of cameras that look at a point.

    Args:
        eyes: [C,3] centres of the cameras.
        target: [3] the point.
        up: [3] the direction that is up in the images.
    """
    z = torch.nn.functional.normalize(target - eyes, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, up.expand_as(z)), dim=-1)
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], dim=1)
    viewmats = torch.eye(4, dtype=eyes.dtype, device=eyes.device).repeat(len(eyes), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -torch.einsum("cij,cj->ci", rotation, eyes)
    return viewmats


def focus_point(cameras: Sequence[Camera]) -> Tensor:
    """Return the point [3] nearest to all optical axes.

    Where the axes do not meet in front of the cameras, it is a point in front of their mean.
    """
    centers = torch.cat([camera.centers for camera in cameras]).double()
    forwards = torch.cat([camera.forwards for camera in cameras]).double()
    across = torch.eye(3, dtype=centers.dtype) - forwards[:, :, None] * forwards[:, None, :]
    spread = float((centers - centers.mean(0)).norm(dim=1).max())
    system, value = across.sum(0), torch.einsum("cij,cj->i", across, centers)
    if float(torch.linalg.eigvalsh(system)[0]) > 1e-4 * len(centers):  # else the axes are parallel
        point = torch.linalg.solve(system, value)
        if float(((point - centers) * forwards).sum(1).median()) > 0:
            return point.to(cameras[0].viewmats.dtype)
    ahead = centers.mean(0) + forwards.mean(0) * (spread or 1.0)
    return ahead.to(cameras[0].viewmats.dtype)


def route_intrinsics_gradient(viewmats: Tensor, Ks: Tensor) -> Tensor:
    """Return the same matrices [C,4,4], to the bit, with a gradient of the projection to `Ks` as well.

    To project with [M R, M t] and the constant K0 is to project with K where K0 M = K. As K0 is the value of
    K, M = K0^-1 K is the identity, but it has a gradient. The gradient is exact for means and covariances,
    also where the Jacobian's direction is clamped at the frame's margin, since the clamp bounds K0 M x as it
    bounds K x. Depths do not depend on K. The kernels ignore skew, so it gets no gradient.

    Args:
        viewmats: [C,4,4] world -> camera. Use the result for projection alone, and not for camera centres.
        Ks: [C,3,3] px. Where they need no gradient, `viewmats` is returned as it is.
    """
    if not Ks.requires_grad:
        return viewmats
    K0 = Ks.detach()
    fx, fy = Ks[:, 0, 0] / K0[:, 0, 0], Ks[:, 1, 1] / K0[:, 1, 1]
    cx, cy = (Ks[:, 0, 2] - K0[:, 0, 2]) / K0[:, 0, 0], (Ks[:, 1, 2] - K0[:, 1, 2]) / K0[:, 1, 1]
    x, y, z, last = viewmats.unbind(1)
    return torch.stack([fx[:, None] * x + cx[:, None] * z, fy[:, None] * y + cy[:, None] * z, z, last], 1)
