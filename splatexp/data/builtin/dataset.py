"""The data set that needs no download: a still life that is ray traced on first use and kept in the user's
cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from splatexp.cameras.pinhole import Camera, look_at
from splatexp.data.builtin import primitives, raytracer, still_life
from splatexp.data.scene import Scene, View
from splatexp.data.view_loader import map_parallel, resize_area
from splatexp.io.atomic import atomic_write

BLOCK = 64  # px: rays are traced in square blocks, which fit the CPU's cache and can skip most primitives
FIELD_OF_VIEW = math.radians(42)  # across the image


@dataclass
class Builtin:
    """The built-in scene: `train_views` + `test_views` images of `size` x `size` pixels, with initial points
    on its surfaces.

    The scene is kept under $XDG_CACHE_HOME/splatexp (default ~/.cache/splatexp), about 11 MB.
    """

    size: int = 256  # px, width and height of the images
    train_views: int = 48  # number of training views
    test_views: int = 8  # number of held-out views
    points: int = 5000  # initial points, on the surfaces that the training cameras see
    noise: float = 0.01  # standard deviation of the points' positions, world units (the table is 4.2 across)
    samples: int = 3  # rays per pixel along each axis
    downscale: int = 1  # images are reduced by this factor
    cache: bool = True  # keep the scene on disk, so that it is made once

    def load(self) -> Scene:
        """Return the scene: from the cache, or made again where the cache lacks it or is broken.

        Raises: ValueError for a setting that is too small.
        """
        smallest = {
            "size": 8,
            "train_views": 1,
            "test_views": 0,
            "points": 0,
            "noise": 0,
            "samples": 1,
            "downscale": 1,
        }
        for name, least in smallest.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        file = self.cache_file()
        made = _read_cache(file, self) if self.cache and file.exists() else None
        if made is None:
            made = self._make()
            if self.cache:
                _write_cache(file, made)
        cameras = self._cameras()
        views = [self._view(index, made["images"][index], cameras[index]) for index in range(len(cameras))]
        return Scene(
            name="builtin",
            train=views[: self.train_views],
            test=views[self.train_views :],
            points=torch.from_numpy(made["points"]) if self.points else None,
            colors=torch.from_numpy(made["colors"]) if self.points else None,
            background=still_life.BACKDROP,
        )

    def cache_file(self) -> Path:
        """Return the file that caches the scene. Its name holds a hash of the settings and of the code that
        makes it.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in ("downscale", "cache")}
        code = b"".join(
            Path(module).read_bytes()
            for module in (primitives.__file__, still_life.__file__, raytracer.__file__, __file__)
        )
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + code).hexdigest()[:16]
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(root) / "splatexp" / f"builtin-{key}.npz"

    def _view(self, index: int, image: np.ndarray, camera: Camera) -> View:
        if self.downscale > 1:
            size = max(1, int(self.size / self.downscale + 0.5))
            image = np.floor(resize_area(image, size, size) + 0.5).astype(np.uint8)
            camera = camera.resized(size, size)
        test = index - self.train_views
        name = f"train_{index:03d}" if test < 0 else f"test_{test:03d}"
        return View(name, camera, torch.from_numpy(np.ascontiguousarray(image)))

    def _cameras(self) -> Camera:
        """Place the training cameras on a band of the upper hemisphere, and the held-out ones on a wave
        inside that band.
        """
        spread = np.arange(self.train_views) + 0.5
        wave = np.arange(self.test_views) + 0.5
        golden = math.pi * (3 - math.sqrt(5))
        azimuth = np.concatenate([golden * spread, 2 * math.pi * wave / max(1, self.test_views) + 0.2])
        low, high = math.sin(math.radians(14)), math.sin(math.radians(58))
        sine = low + (high - low) * np.concatenate(
            [spread / self.train_views, 0.5 + 0.32 * np.sin(2.4 * wave + 0.5)]
        )
        distance = 5.2 + 0.35 * np.sin(1.3 * azimuth + 5 * sine)
        flat = np.sqrt(1 - sine * sine)
        eyes = distance * np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), sine])
        target, up = torch.tensor([0.0, 0.0, 0.25]), torch.tensor([0.0, 0.0, 1.0])
        viewmats = look_at(torch.tensor(eyes.T, dtype=torch.float32) + target, target, up)
        focal = 0.5 * self.size / math.tan(FIELD_OF_VIEW / 2)
        K = torch.tensor([[focal, 0, self.size / 2], [0, focal, self.size / 2], [0, 0, 1]])
        return Camera(viewmats, K.repeat(len(viewmats), 1, 1), self.size, self.size)

    def _make(self) -> dict[str, np.ndarray]:
        cameras = self._cameras()
        order = list(range(len(cameras)))
        images = np.stack(
            map_parallel(lambda i: self._render(cameras[i]), order, "making the built-in scene")
        )
        points, colors = self._points(cameras[: self.train_views], images)
        return {"images": images, "points": points, "colors": colors}

    def _render(self, camera: Camera) -> np.ndarray:
        """Render one view as uint8 [size,size,3]: each pixel is the mean of samples^2 rays, each with its own
        point of the lamp.
        """
        n, image = self.samples, np.empty((self.size, self.size, 3), np.uint8)
        turned = np.arange(n * n) * 2.399963
        spots = np.sqrt((np.arange(n * n) + 0.5) / (n * n)) * np.stack([np.cos(turned), np.sin(turned)])
        # the order is shuffled, so that a point of the lamp has no relation to the place in the pixel
        spots = spots[:, np.argsort(np.sin(np.arange(n * n) * 12.9898))]
        for top in range(0, self.size, BLOCK):
            for left in range(0, self.size, BLOCK):
                rows, columns = (np.arange(start, min(start + BLOCK, self.size)) for start in (top, left))
                inside = (np.arange(n) + 0.5) / n
                v, u, y, x = np.meshgrid(rows, columns, inside, inside, indexing="ij")
                origin, directions = _rays(camera, (u + x).ravel(), (v + y).ravel())
                lamps = raytracer.lamp_directions(np.tile(spots, (1, len(rows) * len(columns))))
                colours, _ = raytracer.trace(origin, directions, lamps)
                pixels = colours.reshape(3, len(rows), len(columns), n * n).mean(-1)
                block = np.floor(pixels * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
                image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = block
        return image

    def _points(self, cameras: Camera, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return points [P,3] float32 and colours [P,3] uint8 where rays of random pixels hit a surface, as
        image features would lie.
        """
        random = np.random.default_rng(7)
        points, colors, kept = [], [], 0
        share = math.ceil(self.points / len(cameras))
        for index in range(len(cameras)):
            u, v = random.uniform(0, self.size, (2, 4 * share + 64))
            origin, directions = _rays(cameras[index], u, v)
            _, distance = raytracer.trace(
                origin, directions, raytracer.lamp_directions(np.zeros((2, len(u))))
            )
            hit = np.flatnonzero(np.isfinite(distance))[: min(share, self.points - kept)]
            place = origin[:, None] + directions[:, hit] * distance[hit]
            points.append(place.T + random.normal(0, self.noise, (len(hit), 3)))
            colors.append(images[index][v[hit].astype(int), u[hit].astype(int)])
            kept += len(hit)
        return np.concatenate(points).astype(np.float32), np.concatenate(colors)


def _rays(camera: Camera, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the origin [3] and the unit directions [3,R], in the world, of the pixels (u, v) of one camera
    (C = 1).
    """
    K, viewmat = camera.Ks[0].numpy(), camera.viewmats[0].numpy()
    flat = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)]).astype(np.float32)
    directions = viewmat[:3, :3].T @ flat
    return camera.centers[0].numpy(), directions / np.sqrt((directions * directions).sum(0))


def _read_cache(file: Path, settings: Builtin) -> dict[str, np.ndarray] | None:
    """Read the cached scene; return None, with a warning, where the file is broken."""
    expected = (settings.train_views + settings.test_views, settings.size, settings.size, 3)
    try:
        with file.open("rb") as stream, np.load(stream) as stored:
            made = {name: stored[name] for name in ("images", "points", "colors")}
        dtypes = [made[name].dtype for name in made] == [np.uint8, np.float32, np.uint8]
        shapes = made["images"].shape == expected and made["points"].shape == made["colors"].shape
        if not (dtypes and shapes):
            raise ValueError(f"unexpected contents: {[(kept.dtype, kept.shape) for kept in made.values()]}")
        return made
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{file}: the cached scene is broken ({error}); it is made again", stacklevel=3)
        return None


def _write_cache(file: Path, made: dict[str, np.ndarray]) -> None:
    """Write the scene to the cache, whole or not at all; a failure is only a warning."""
    try:
        with atomic_write(file) as part:
            np.savez(part, images=made["images"], points=made["points"], colors=made["colors"])
    except OSError as error:
        warnings.warn(f"the built-in scene could not be cached: {error}", stacklevel=3)
