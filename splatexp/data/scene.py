"""What every loader returns: views (picture, camera, mask) in a training and a held-out half, and points.

Pictures stay uint8 in memory, [H,W,3], sRGB.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from splatexp.cameras.pinhole import Camera
from splatexp.system.devices import sent

Colour = tuple[float, float, float]


@dataclass(eq=False)
class View:
    """One photograph with its camera (C = 1).

    image: uint8 [H,W,3], the ground truth as it is evaluated. mask: bool [H,W], True = use, or None = all of
    it. alpha: uint8 [H,W] where the source had one and other backgrounds are wanted; `image` is then composed
    on `background`.
    """

    name: str
    camera: Camera
    image: Tensor
    mask: Tensor | None = None
    alpha: Tensor | None = None
    background: Colour = (0.0, 0.0, 0.0)
    _coarse: tuple[int, Tensor, Tensor | None, Tensor | None, Camera] | None = field(default=None, repr=False)

    FULL: ClassVar[int] = 255  # what `image` has for 1

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.image.dtype != torch.uint8 or tuple(self.image.shape) != (*size, 3):
            got = f"{self.image.dtype} {tuple(self.image.shape)}"
            raise ValueError(f"{self.name}: image: expected uint8 {(*size, 3)} as its camera says, got {got}")
        for label, plane in (("mask", self.mask), ("alpha", self.alpha)):
            if plane is not None and tuple(plane.shape) != size:
                raise ValueError(f"{self.name}: {label}: expected {size}, got {tuple(plane.shape)}")

    @property
    def stem(self) -> str:
        """The name as a file name without suffix: 'test/r_7.png' -> 'test_r_7'."""
        head, _, tail = self.name.rpartition("/")
        return f"{head}/{tail.rsplit('.', 1)[0] or tail}".strip("/").replace("/", "_")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the ground truth's bytes (uint8, rows of RGB)."""
        return hashlib.sha256(self.image.cpu().numpy().tobytes()).hexdigest()

    @property
    def values(self) -> Tensor:
        """The picture [H,W,3] in [0,1]."""
        return self.image / self.FULL

    @property
    def planes(self) -> dict[str, Tensor]:
        """What there is of its image, mask and alpha, by name."""
        planes = {"image": self.image, "mask": self.mask, "alpha": self.alpha}
        return {name: plane for name, plane in planes.items() if plane is not None}

    def to(self, device: torch.device) -> View:
        """The same view on a device: itself where it is there."""
        if self.image.device == device:
            return self
        planes: dict[str, Any] = {name: sent(plane, device) for name, plane in self.planes.items()}
        return replace(self, camera=self.camera.to(device), _coarse=None, **planes)

    def at(self, camera: Camera) -> View:
        """The same picture seen by another camera of its size; what is kept of the picture is kept."""
        moved = copy.copy(self)
        moved.camera = camera
        if self._coarse is not None:
            moved._coarse = (*self._coarse[:-1], camera.reduced(self._coarse[0]))
        return moved

    def pin(self) -> None:
        """Keep its planes in pinned memory from now on, from which a device copies in its own time."""
        for name, plane in self.planes.items():
            setattr(self, name, plane.pin_memory())

    def target(
        self, factor: int = 1, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Camera]:
        """What a render of this view is compared with.

        factor: blocks of factor x factor pixels become one, by their mean; a coarse pixel is used if all its
        pixels are. background: [3] on the CPU, replaces the one that an image with alpha was composed on;
        ignored without alpha. Returns image float [1,h,w,3] in [0,1], mask float [1,h,w,1] of 0 and 1 or
        None, and the camera of that size.
        """
        if factor == 1:
            image, mask, alpha, camera = self.values, self.mask, self.alpha, self.camera
        else:
            image, mask, alpha, camera = self._reduced(factor)
        if alpha is not None and background is not None and tuple(background.tolist()) != self.background:
            through = torch.rsub(alpha / 255, 1.0)[..., None]
            change = background - background.new_tensor(self.background)
            image = torch.addcmul(image, through, sent(change, image.device))
        return image[None], None if mask is None else mask[None, ..., None].float(), camera

    def _reduced(self, factor: int) -> tuple[Tensor, Tensor | None, Tensor | None, Camera]:
        """Image in [0,1], mask, alpha (float, 0-255), camera at 1/factor; the CPU keeps the last factor."""
        if self._coarse is None or self._coarse[0] != factor:
            if not 1 <= factor <= min(self.camera.height, self.camera.width):
                size = f"{self.camera.width} x {self.camera.height}"
                raise ValueError(f"factor: expected 1 to the shorter side of {size}, got {factor}")
            height, width = self.camera.height // factor, self.camera.width // factor

            def mean(plane: Tensor) -> Tensor:
                blocks = plane[: height * factor, : width * factor].float()
                return blocks.reshape(height, factor, width, factor, -1).mean((1, 3))

            image = mean(self.image) / self.FULL
            mask = None if self.mask is None else mean(self.mask)[..., 0] == 1
            alpha = None if self.alpha is None else mean(self.alpha)[..., 0]
            coarse = (factor, image, mask, alpha, self.camera.reduced(factor))
            if not image.is_cpu:  # it is made anew in no time, and memory is dear
                return coarse[1:]
            self._coarse = coarse
        return self._coarse[1:]


@dataclass(eq=False)
class Scene:
    """A data set, ready for training: the same for every loader.

    points: float32 [P,3] world units, colors: uint8 [P,3], or None where the source has none.
    extent: 1.1 times the largest distance of a training camera to the mean of them, world units; 0 = compute
    it. background: the colour in [0,1] that lies behind the images, None = black. random_background: train on
    random colours behind the alpha (held-out views keep `background`). fingerprint: SHA-256 over images,
    masks, cameras and points; "" = compute it. truth: the true cameras of `train`, where others are given.
    given: the cameras that the data gave, where those of `train` have been learned. fitted: what is trained
    on is what is measured, as of a picture that is coded. Raises ValueError, one line, for an empty or
    overlapping split, for NaN and for points at a camera's centre. Source of the extent: 3DGS (Kerbl et al.
    2023), getNerfppNorm in the authors' code.
    """

    name: str
    train: list[View]
    test: list[View]
    points: Tensor | None = None
    colors: Tensor | None = None
    extent: float = 0.0
    background: Colour | None = None
    random_background: bool = False
    fingerprint: str = ""
    truth: list[Camera] | None = None
    given: list[Camera] | None = None
    fitted: bool = False

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(f"{self.name}: expected at least one training image, got 0")
        self._check_views()
        self._check_points()
        self.extent = self.extent or self._extent()
        self.fingerprint = self.fingerprint or self._fingerprint()

    def sample(self, step: int, seed: int) -> int:
        """Index of the training view of `step`: every epoch in a new order, from (seed, step) alone."""
        epoch, place = divmod(step, len(self.train))
        return int(_order(len(self.train), seed, epoch)[place])

    @property
    def first_cameras(self) -> list[Camera]:
        """The cameras of `train` as the data gave them."""
        return self.given or [view.camera for view in self.train]

    def moved(self, cameras: Sequence[Camera]) -> Scene:
        """The same scene, its training views with other cameras; extent and fingerprint stay."""
        other = copy.copy(self)
        other.given = self.first_cameras
        other.train = [view.at(camera) for view, camera in zip(self.train, cameras, strict=True)]
        return other

    def _check_views(self) -> None:
        for view in self.train + self.test:
            if not (view.camera.viewmats.isfinite().all() and view.camera.Ks.isfinite().all()):
                raise ValueError(f"{self.name}: the pose of {view.name} is not finite")
        trained = {view.name for view in self.train}
        if len(trained) < len(self.train) or len({view.name for view in self.test}) < len(self.test):
            raise ValueError(f"{self.name}: two views have one name")
        if self.fitted:
            return
        pictures = {view.sha256: view.name for view in self.train}
        for view in self.test:
            twin = view.name if view.name in trained else pictures.get(view.sha256)
            if twin is not None and (twin == view.name or view.image.amin() != view.image.amax()):
                raise ValueError(f"{self.name}: held-out view {view.name} is also trained on (as {twin})")

    def _check_points(self) -> None:
        points, colors = self.points, self.colors
        if points is None:
            return
        if points.ndim != 2 or points.shape[1] != 3 or colors is None or colors.shape != points.shape:
            got = f"{tuple(points.shape)} and {None if colors is None else tuple(colors.shape)}"
            raise ValueError(f"{self.name}: points, colors: expected [P, 3] both, got {got}")
        bad = (~points.isfinite().all(1)).nonzero()
        if len(bad):
            first = int(bad[0])
            raise ValueError(
                f"{self.name}: {len(bad)} of {len(points)} points are not finite; "
                f"the first is number {first}: {points[first].tolist()}"
            )
        from scipy.spatial import KDTree

        centers = self._centers()
        gap, nearest = map(np.asarray, KDTree(centers.numpy()).query(points.numpy()))
        size = float(points.abs().max() if len(points) else 0) + float(centers.abs().max())
        near = np.flatnonzero(gap <= 1e-6 * size)
        if len(near):
            name = (self.train + self.test)[int(nearest[near[0]])].name
            raise ValueError(
                f"{self.name}: {len(near)} of {len(points)} points lie at the centre of a camera; "
                f"the first is number {int(near[0])}, at {name}"
            )

    def _centers(self) -> Tensor:
        return torch.cat([view.camera.centers for view in self.train + self.test])

    def _extent(self) -> float:
        centers = self._centers()[: len(self.train)]
        radius = float((centers - centers.mean(0)).norm(dim=1).max())
        if radius > 1e-6 * float(centers.abs().max()):
            return 1.1 * radius
        if self.points is None or not len(self.points):  # cameras in one place
            return 1.0
        return float((self.points - centers.mean(0)).norm(dim=1).median())

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for half, views in (("train", self.train), ("test", self.test)):
            for view in views:
                digest.update(
                    f"{half} {view.name} {view.camera.width} {view.camera.height} {view.sha256}".encode()
                )
                for part in (view.camera.viewmats, view.camera.Ks, view.mask, view.alpha):
                    digest.update(b"-" if part is None else part.numpy().tobytes())
        for part in (self.points, self.colors):
            digest.update(b"-" if part is None else part.numpy().tobytes())
        return digest.hexdigest()


def hold_out(names: Sequence[str], every: int) -> list[bool]:
    """Which of `names` are held out: in the order of names every `every`-th, from the first; 0 = none."""
    if every < 0:
        raise ValueError(f"test_every: expected 0 (hold out nothing) or more, got {every}")
    place = {name: index for index, name in enumerate(sorted(names))}
    return [every > 0 and place[name] % every == 0 for name in names]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
