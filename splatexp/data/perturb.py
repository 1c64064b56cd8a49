"""Deliberate errors in known training cameras, to measure how well learning the cameras removes them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera, focus_point
from splatexp.cameras.rigid import exp_map, move_camera, move_world
from splatexp.cameras.turntable import estimate_up
from splatexp.settings.checks import check_range

if TYPE_CHECKING:
    from splatexp.data.scene import Scene


@dataclass
class Perturb:
    """Settings that move the training cameras away from where they are.

    The true cameras are kept with the scene; held-out cameras do not change.
    """

    orbit: float = 0.0  # degrees: yaw and pitch about the common focus are off by up to this, uniformly
    rotation: float = 0.0  # degrees: each camera is turned by this about a random axis of its own
    # fraction of the scene's extent: each camera is shifted by this, in any direction
    translation: float = 0.0
    focal: float = 0.0  # percent by which all focal lengths are too long
    seed: int = 0  # of the random directions

    def __post_init__(self) -> None:
        for name in ("orbit", "rotation", "translation"):
            check_range(f"data.perturb.{name}", getattr(self, name), 0)
        check_range("data.perturb.focal", self.focal, -99)

    def __call__(self, scene: Scene) -> Scene:
        """Return the scene with perturbed training cameras, or the scene itself where every setting is 0."""
        if not (self.orbit or self.rotation or self.translation or self.focal):
            return scene
        truth = [view.camera for view in scene.train]
        random = torch.Generator().manual_seed(self.seed)
        viewmats = torch.cat([camera.viewmats for camera in truth]).double()
        viewmats = self._turned(viewmats, truth, random)
        count, still = len(truth), torch.zeros(len(truth), 3, dtype=torch.float64)
        axes = _directions(count, random) * math.radians(self.rotation)
        along = _directions(count, random) * (self.translation * scene.extent)
        viewmats = move_camera(exp_map(torch.cat([axes, still], 1))[0], along, viewmats)
        zoom = torch.tensor([1 + self.focal / 100] * 2 + [1.0])
        views = []
        for view, matrix in zip(scene.train, viewmats, strict=True):
            K = view.camera.Ks * zoom[:, None]
            K[:, :2, 2] = view.camera.Ks[:, :2, 2]
            views.append(
                view.with_camera(Camera(matrix[None].float(), K, view.camera.width, view.camera.height))
            )
        return replace(
            scene, train=views, true_cameras=scene.true_cameras or truth, extent=0.0, fingerprint=""
        )

    def _turned(self, viewmats: Tensor, truth: list[Camera], random: torch.Generator) -> Tensor:
        """Turn cameras in yaw about the scene's up vector, and in pitch about each camera's right vector."""
        turns = torch.rand(len(truth), 2, generator=random, dtype=torch.float64) * 2 - 1
        turns *= math.radians(self.orbit)
        up, still = estimate_up(truth).double(), torch.zeros(len(truth), 3, dtype=torch.float64)
        right = viewmats[:, 0, :3] - (viewmats[:, 0, :3] @ up)[:, None] * up
        right = torch.nn.functional.normalize(right, dim=1)
        yaw = exp_map(torch.cat([turns[:, :1] * up, still], 1))[0]
        pitch = exp_map(torch.cat([turns[:, 1:] * right, still], 1))[0]
        return move_world(viewmats, pitch @ yaw, still, focus_point(truth).double())


def _directions(count: int, random: torch.Generator) -> Tensor:
    """Return unit vectors [count,3], uniformly distributed."""
    vectors = torch.randn(count, 3, generator=random, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)
