"""A folder of photographs and nothing else: cameras on an orbit, from approximate angles and a guessed
lens.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from splatexp.cameras.pinhole import Camera
from splatexp.cameras.similarity import fit_similarity
from splatexp.data.colmap import data_folder
from splatexp.data.lens import Lens
from splatexp.data.perturb import Perturb
from splatexp.data.scene import Scene, View
from splatexp.data.transforms import read_cameras
from splatexp.data.view_loader import (
    BACKGROUNDS,
    ImageSource,
    find_masks,
    image_errors,
    mask_by_alpha,
    read_views,
)
from splatexp.settings.checks import check_choice, check_range

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FOCAL = 1.2  # in longer sides: 43 mm on 35 mm film, usual for phones and portraits
FILM = math.hypot(36, 24)  # mm, the diagonal of 35 mm film, to which EXIF's focal length refers


@dataclass
class Photos:
    """Loads the photographs in `path`/images, or in `path`, in the order of the numbers in their names.

    The cameras look at the origin from `distance`, upright; +y is down, as in COLMAP's worlds, and a positive
    pitch looks from above. They are guesses, which `camera=orbit` refines.
    """

    path: str = field(metadata={"unit": "path"})  # folder of the photographs
    # degrees, one for each photograph in order, held-out ones included; []: spaced evenly over `yaw_range`
    yaw: list[float] = field(default_factory=list)
    pitch: list[float] = field(default_factory=list)  # degrees, likewise; []: 0
    # degrees from the first photograph to the last: positive where the camera went to the right, negative to
    # the left; 360: all the way round
    yaw_range: float = 90.0
    focal: float = 0.0  # focal length over the longer side of the image; 0: from EXIF, or 1.2 without it
    distance: float = 5.0  # world units from the cameras to the origin
    test_names: list[str] = field(default_factory=list)  # names of the photographs that are held out
    # a transforms.json with the true cameras, to measure errors; held-out views get theirs from it
    true_cameras: str = field(default="", metadata={"unit": "path"})
    masks: bool = True  # use the folder masks/ where there is one (same stems, white = object)
    masks_as_alpha: bool = True  # pixels outside the masks are transparent; false: they are ignored
    # white, black or random, behind transparent images; also the colour of the backdrop where the photographs
    # show it; none: there is no such colour
    background: str = "white"
    max_side: int = 1024  # px, longer sides are reduced to this; 0: never
    downscale: int = 1  # images are then reduced by this factor
    perturb: Perturb = field(default_factory=Perturb)  # makes the cameras worse

    @property
    def cameras_guessed(self) -> bool:
        """Return whether no angles are given, so that the cameras are only a guess."""
        return not (self.yaw or self.pitch)

    def __post_init__(self) -> None:
        check_range("data.yaw_range", self.yaw_range, -360, 360)
        check_range("data.focal", self.focal, 0)
        check_range("data.distance", self.distance, 1e-6)
        check_range("data.max_side", self.max_side, 0)
        check_choice("data.background", self.background, (*BACKGROUNDS, "none"))

    def load(self) -> Scene:
        """Read all photographs.

        Raises: FileNotFoundError, ValueError, with one line that names the file.
        """
        root = data_folder(self.path)
        paths = photographs(root)
        if len(paths) < 2:
            got = f"1 ({paths[0].name}), which shows no depth" if paths else f"0 in {root}"
            raise ValueError(
                f"data.path: expected two photographs or more ({', '.join(SUFFIXES)}), got {got}"
            )
        names = [path.name for path in paths]
        if lost := [name for name in self.test_names if name not in names]:
            expected = f"expected names of photographs such as {names[0]}"
            raise ValueError(f"data.test_names: {expected}, got {lost[0]}")
        masks = find_masks(root / "masks", names) if self.masks else {}
        lenses = self._lenses(paths)
        poses = [orbit(yaw, pitch, self.distance) for yaw, pitch in self._angles(names)]
        sources = [
            ImageSource(
                path.name, path, pose, lens, masks.get(path.name), self.masks_as_alpha, True, self.max_side
            )
            for path, pose, lens in zip(paths, poses, lenses, strict=True)
        ]
        on = "black" if self.background == "none" else self.background
        views, clear = read_views(sources, self.downscale, on)
        train = [view for view in views if view.name not in self.test_names]
        held = [view for view in views if view.name in self.test_names]
        scene = Scene(
            name=root.resolve().name,
            train=train,
            test=mask_by_alpha(held) if self.masks_as_alpha else held,
            background=None if self.background == "none" and not clear else BACKGROUNDS[on],
            random_background=clear and self.background == "random",
        )
        return self.perturb(self._with_truth(scene) if self.true_cameras else scene)

    def _angles(self, names: list[str]) -> list[tuple[float, float]]:
        """Return yaw and pitch of every photograph, degrees."""
        count = len(names)
        for name in ("yaw", "pitch"):
            given = getattr(self, name)
            if given and len(given) != count:
                files = f"{names[0]} to {names[-1]}"
                raise ValueError(f"data.{name}: expected {count} angles, of {files}, got {len(given)}")
        gap = self.yaw_range / (count if abs(self.yaw_range) == 360 else max(1, count - 1))
        yaw = self.yaw or [index * gap - self.yaw_range / 2 for index in range(count)]
        return list(zip(yaw, self.pitch or [0.0] * count, strict=True))

    def _lenses(self, paths: list[Path]) -> list[Lens]:
        """Return each photograph's lens; all have the same focal length relative to the longer side."""
        facts = [_measured(path) for path in paths]
        told = [longer for _, _, longer in facts]
        focal = self.focal or (float(np.median(told)) if all(told) else FOCAL)
        lenses = [
            Lens(width, height, focal * max(width, height), focal * max(width, height), width / 2, height / 2)
            for width, height, _ in facts
        ]
        sizes = sorted({(lens.width, lens.height) for lens in lenses})
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for width, height in sizes[:3])
            warnings.warn(
                f"{self.path}: photographs of {len(sizes)} sizes ({shown}); each is used as it is, its focal "
                "length in proportion to its longer side",
                stacklevel=2,
            )
        return lenses

    def _with_truth(self, scene: Scene) -> Scene:
        """Return the scene with its true cameras, aligned to the world of the guessed ones."""
        known = read_cameras(Path(self.true_cameras))
        views = scene.train + scene.test
        if lost := [view.name for view in views if Path(view.name).stem not in known]:
            raise ValueError(
                f"{self.true_cameras}: expected a frame for every photograph, got none for {lost[0]}"
            )
        cameras = [_resized(known[Path(view.name).stem], view) for view in views]
        across = fit_similarity(cameras[: len(scene.train)], [view.camera for view in scene.train])
        cameras = [across.camera(camera) for camera in cameras]
        held = [
            view.with_camera(camera)
            for view, camera in zip(scene.test, cameras[len(scene.train) :], strict=True)
        ]
        return replace(scene, test=held, true_cameras=cameras[: len(scene.train)], fingerprint="")


def photographs(root: Path) -> list[Path]:
    """Return the image files in `root`/images, or in `root`, sorted so that 2.jpg comes before 10.jpg."""
    folder = root / "images" if (root / "images").is_dir() else root
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: _natural_key(path.name))


def orbit(yaw: float, pitch: float, distance: float) -> np.ndarray:
    """Return world -> camera [4,4] of an upright camera that looks at the origin; y is down in both.

    Args:
        yaw: degrees; at a positive yaw the camera has moved to the right and sees the object's left side.
        pitch: degrees; at a positive pitch it looks from above.
    """
    a, b = math.radians(yaw), math.radians(pitch)
    turn = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    viewmat = np.eye(4)
    viewmat[:3, :3] = tilt @ turn
    viewmat[2, 3] = distance
    return viewmat


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return the sort key of a name: its runs of digits as numbers, which come before other characters."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _measured(path: Path) -> tuple[int, int, float]:
    """Return upright width and height of a photograph, and its focal length over the longer side, 0 where
    EXIF has none.
    """
    with image_errors(path), Image.open(path) as image:
        exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
        film = float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it is stored on its side
            width, height = height, width
    return width, height, film / FILM * math.hypot(width, height) / max(width, height)


def _resized(camera: Camera, view: View) -> Camera:
    """Return a true camera at the size of its view.

    Raises: ValueError for a different aspect.
    """
    width, height = view.camera.width, view.camera.height
    if abs(camera.width * height - camera.height * width) > max(width, height, camera.width, camera.height):
        size = f"{camera.width} x {camera.height}"
        raise ValueError(
            f"data.true_cameras: expected the aspect of {view.name}, {width} x {height}, got {size}"
        )
    return camera.resized(width, height)
