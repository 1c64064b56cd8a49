"""The scene that every loader returns: views (image, camera, mask) in a training and a held-out set, and points.

Images stay uint8 in memory, [H,W,3], sRGB.
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
from splatexp.system.devices import to_device

Colour = tuple[float, float, float]


@dataclass(eq=False)
class View:
    """One image with its camera (C = 1)."""

    name: str
    camera: Camera
    image: Tensor  # uint8 [H,W,3], the ground truth; where there is alpha, composited on `background`
    mask: Tensor | None = None  # bool [H,W], True = use; None: the whole image
    alpha: Tensor | None = None  # uint8 [H,W], where the source has one and other backgrounds are wanted
    background: Colour = (0.0, 0.0, 0.0)
    _coarse: tuple[int, Tensor, Tensor | None, Tensor | None, Camera] | None = field(default=None, repr=False)

    WHITE_LEVEL: ClassVar[int] = 255  # the value of `image` that stands for 1

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.image.dtype != torch.uint8 or tuple(self.image.shape) != (*size, 3):
            got = f"{self.image.dtype} {tuple(self.image.shape)}"
            raise ValueError(f"{self.name}: image: expected uint8 {(*size, 3)} as its camera says, got {got}")
        for label, tensor in (("mask", self.mask), ("alpha", self.alpha)):
            if tensor is not None and tuple(tensor.shape) != size:
                raise ValueError(f"{self.name}: {label}: expected {size}, got {tuple(tensor.shape)}")

    @property
    def stem(self) -> str:
        """Return the name as a file name without suffix: 'test/r_7.png' -> 'test_r_7'."""
        head, _, tail = self.name.rpartition("/")
        return f"{head}/{tail.rsplit('.', 1)[0] or tail}".strip("/").replace("/", "_")

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the ground truth's bytes (uint8, rows of RGB)."""
        return hashlib.sha256(self.image.cpu().numpy().tobytes()).hexdigest()

    @property
    def float_image(self) -> Tensor:
        """Return the image [H,W,3] in [0,1]."""
        return self.image / self.WHITE_LEVEL

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return image, mask and alpha by name, as far as the view has them."""
        tensors = {"image": self.image, "mask": self.mask, "alpha": self.alpha}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def to(self, device: torch.device) -> View:
        """Return the view on a device; itself where it is there already."""
        if self.image.device == device:
            return self
        tensors: dict[str, Any] = {name: to_device(tensor, device) for name, tensor in self.tensors.items()}
        return replace(self, camera=self.camera.to(device), _coarse=None, **tensors)

    def with_camera(self, camera: Camera) -> View:
        """Return the same image seen by another camera of its size; cached data of the image are kept."""
        moved = copy.copy(self)
        moved.camera = camera
        if self._coarse is not None:
            moved._coarse = (*self._coarse[:-1], camera.downscaled(self._coarse[0]))
        return moved

    def pin(self) -> None:
        """Keep the tensors in pinned memory from now on, from which a GPU copies asynchronously."""
        for name, tensor in self.tensors.items():
            setattr(self, name, tensor.pin_memory())

    def target(
        self, factor: int = 1, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Camera]:
        """Return what a render of this view is compared with.

        Args:
            factor: blocks of factor x factor pixels are averaged to one; a coarse pixel is used if all its
                pixels are.
            background: [3] on the CPU, replaces the colour that an image with alpha was composited on;
                ignored without alpha.

        Returns: the image, float [1,h,w,3] in [0,1]; the mask, float [1,h,w,1] of 0 and 1, or None; the
            camera of that size.
        """
        if factor == 1:
            image, mask, alpha, camera = self.float_image, self.mask, self.alpha, self.camera
        else:
            image, mask, alpha, camera = self._reduced(factor)
        if alpha is not None and background is not None and tuple(background.tolist()) != self.background:
            through = torch.rsub(alpha / 255, 1.0)[..., None]
            change = background - background.new_tensor(self.background)
            image = torch.addcmul(image, through, to_device(change, image.device))
        return image[None], None if mask is None else mask[None, ..., None].float(), camera

    def _reduced(self, factor: int) -> tuple[Tensor, Tensor | None, Tensor | None, Camera]:
        """Return image in [0,1], mask, alpha (float, 0-255) and camera at 1/factor; on the CPU the last
        factor is cached.
        """
        if self._coarse is None or self._coarse[0] != factor:
            if not 1 <= factor <= min(self.camera.height, self.camera.width):
                size = f"{self.camera.width} x {self.camera.height}"
                raise ValueError(f"factor: expected 1 to the shorter side of {size}, got {factor}")
            height, width = self.camera.height // factor, self.camera.width // factor

            def mean(tensor: Tensor) -> Tensor:
                blocks = tensor[: height * factor, : width * factor].float()
                return blocks.reshape(height, factor, width, factor, -1).mean((1, 3))

            image = mean(self.image) / self.WHITE_LEVEL
            mask = None if self.mask is None else mean(self.mask)[..., 0] == 1
            alpha = None if self.alpha is None else mean(self.alpha)[..., 0]
            coarse = (factor, image, mask, alpha, self.camera.downscaled(factor))
            if not image.is_cpu:  # a GPU computes it again in no time, and its memory is scarce
                return coarse[1:]
            self._coarse = coarse
        return self._coarse[1:]


@dataclass(eq=False)
class Scene:
    """A data set that is ready for training, the same for every loader.

    Raises: ValueError, one line, for an empty or overlapping split, for NaN, and for points at a camera's
        centre.
    Source: the extent follows 3DGS (Kerbl et al. 2023), getNerfppNorm in the authors' code.
    """

    name: str
    train: list[View]
    test: list[View]  # held-out views
    points: Tensor | None = None  # float32 [P,3], world units; None where the source has none
    colors: Tensor | None = None  # uint8 [P,3], of the points
    # world units, 1.1 times the largest distance of a training camera to their mean; 0: it is computed
    extent: float = 0.0
    background: Colour | None = None  # in [0,1], the colour behind the images; None: black
    # train on random colours behind the alpha; held-out views keep `background`
    random_background: bool = False
    fingerprint: str = ""  # SHA-256 over images, masks, cameras and points; "": it is computed
    # the true cameras of `train`, where those were changed or guessed
    true_cameras: list[Camera] | None = None
    given_cameras: list[Camera] | None = None  # the data's cameras of `train`, where those have been learned
    test_is_train: bool = False  # training and evaluation use the same image, as for an image that is coded

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError(f"{self.name}: expected at least one training image, got 0")
        self._check_views()
        self._check_points()
        self.extent = self.extent or self._extent()
        self.fingerprint = self.fingerprint or self._fingerprint()

    def sample(self, step: int, seed: int) -> int:
        """Return the index of the training view of `step`: every epoch has a new order, from (seed, step)
        alone.
        """
        epoch, place = divmod(step, len(self.train))
        return int(_order(len(self.train), seed, epoch)[place])

    @property
    def initial_cameras(self) -> list[Camera]:
        """Return the cameras of `train` as the data gave them."""
        return self.given_cameras or [view.camera for view in self.train]

    def with_cameras(self, cameras: Sequence[Camera]) -> Scene:
        """Return the same scene with other cameras for its training views; extent and fingerprint stay."""
        other = copy.copy(self)
        other.given_cameras = self.initial_cameras
        other.train = [view.with_camera(camera) for view, camera in zip(self.train, cameras, strict=True)]
        return other

    def _check_views(self) -> None:
        for view in self.train + self.test:
            if not (view.camera.viewmats.isfinite().all() and view.camera.Ks.isfinite().all()):
                raise ValueError(f"{self.name}: the pose of {view.name} is not finite")
        for views in (self.train, self.test):
            names = [view.name for view in views]
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(
                    f"{self.name}: expected a different name for every view, got {repeated[0]} twice"
                )
        trained = {view.name for view in self.train}
        if self.test_is_train:
            return
        image_names = {view.sha256: view.name for view in self.train}
        for view in self.test:
            twin = view.name if view.name in trained else image_names.get(view.sha256)
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
    """Return which of `names` are held out: in the order of names every `every`-th, from the first; 0:
    none.
    """
    if every < 0:
        raise ValueError(f"test_every: expected 0 (hold out nothing) or more, got {every}")
    place = {name: index for index, name in enumerate(sorted(names))}
    return [every > 0 and place[name] % every == 0 for name in names]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
