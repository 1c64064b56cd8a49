"""A folder of photographs and nothing else: cameras on an orbit, from rough angles and a guessed lens."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from splatexp.cameras.pinhole import Camera
from splatexp.cameras.similarity import similarity
from splatexp.data.colmap import data_folder
from splatexp.data.lens import Lens
from splatexp.data.perturb import Perturb
from splatexp.data.scene import Scene, View
from splatexp.data.transforms import true_cameras
from splatexp.data.view_loader import BACKGROUNDS, Source, count_inside, find_masks, read_views, reading
from splatexp.settings.checks import check_choice, check_range

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FOCAL = 1.2  # longer sides: 43 mm on 35 mm film across the longer side, what telephones and portraits have
FILM = math.hypot(36, 24)  # mm, the diagonal of 35 mm film, in which EXIF tells focal lengths


@dataclass
class Photos:
    """Loads the photographs in `path`/images, or in `path`, in the order of the numbers in their names.

    The cameras look at the origin from `distance`, upright; +y is down, as in COLMAP's worlds, and a positive
    pitch looks from above. They are guesses: `camera=orbit` learns what they are.

    path: folder of the photographs. yaw, pitch: degrees, one for each photograph in their order, held-out
    ones included; none: yaws evenly over `spread`, pitches 0. spread: degrees from the first photograph to
    the last, positive where the camera went to the right, negative to the left; 360: all the way round.
    focal: focal length in longer sides of the picture; 0: from the EXIF data where they tell it, else 1.2.
    distance: world units. test: names of the photographs that are held out. truth: a transforms.json with
    the true cameras, for measuring; held-out views get theirs from it.
    masks: use the folder masks/ beside the photographs (same stems, white = object) when there is one.
    cutout: what masks leave out is transparent, and shows the background; false: it counts for nothing.
    background: white, black or random, behind transparent pictures; also the colour of the backdrop where
    the photographs themselves show it; none: there is no such colour. side_max: longer sides are reduced to
    so many pixels; 0: never. downscale: then by this factor. perturb: makes the cameras worse.
    """

    path: str = field(metadata={"unit": "path"})
    yaw: list[float] = field(default_factory=list)
    pitch: list[float] = field(default_factory=list)
    spread: float = 90.0
    focal: float = 0.0
    distance: float = 5.0
    test: list[str] = field(default_factory=list)
    truth: str = field(default="", metadata={"unit": "path"})
    masks: bool = True
    cutout: bool = True
    background: str = "white"
    side_max: int = 1024
    downscale: int = 1
    perturb: Perturb = field(default_factory=Perturb)

    @property
    def guessed(self) -> bool:
        """Whether the cameras are nobody's word: no angles are given."""
        return not (self.yaw or self.pitch)

    def __post_init__(self) -> None:
        check_range("data.spread", self.spread, -360, 360)
        check_range("data.focal", self.focal, 0)
        check_range("data.distance", self.distance, 1e-6)
        check_range("data.side_max", self.side_max, 0)
        check_choice("data.background", self.background, (*BACKGROUNDS, "none"))

    def load(self) -> Scene:
        """Reads everything. Raises FileNotFoundError and ValueError, one line that names the file."""
        root = data_folder(self.path)
        paths = photographs(root)
        if len(paths) < 2:
            got = f"1 ({paths[0].name}); one view has no depth" if paths else f"0 in {root}"
            raise ValueError(
                f"data.path: expected two photographs or more ({', '.join(SUFFIXES)}), got {got}"
            )
        names = [path.name for path in paths]
        if lost := [name for name in self.test if name not in names]:
            raise ValueError(f"data.test: expected names of photographs such as {names[0]}, got {lost[0]}")
        masks = find_masks(root / "masks", names) if self.masks else {}
        lenses = self._lenses(paths)
        poses = [orbit(yaw, pitch, self.distance) for yaw, pitch in self._angles(names)]
        sources = [
            Source(path.name, path, pose, lens, masks.get(path.name), self.cutout, True, self.side_max)
            for path, pose, lens in zip(paths, poses, lenses, strict=True)
        ]
        on = "black" if self.background == "none" else self.background
        views, clear = read_views(sources, self.downscale, on)
        train = [view for view in views if view.name not in self.test]
        held = [view for view in views if view.name in self.test]
        scene = Scene(
            name=root.resolve().name,
            train=train,
            test=count_inside(held) if self.cutout else held,
            background=None if self.background == "none" and not clear else BACKGROUNDS[on],
            random_background=clear and self.background == "random",
        )
        return self.perturb(self._with_truth(scene) if self.truth else scene)

    def _angles(self, names: list[str]) -> list[tuple[float, float]]:
        """Degrees of yaw and pitch of every photograph."""
        count = len(names)
        for name in ("yaw", "pitch"):
            given = getattr(self, name)
            if given and len(given) != count:
                files = f"{names[0]} to {names[-1]}"
                raise ValueError(f"data.{name}: expected {count} angles, of {files}, got {len(given)}")
        gap = self.spread / (count if abs(self.spread) == 360 else max(1, count - 1))
        yaw = self.yaw or [index * gap - self.spread / 2 for index in range(count)]
        return list(zip(yaw, self.pitch or [0.0] * count, strict=True))

    def _lenses(self, paths: list[Path]) -> list[Lens]:
        """Each photograph's lens: one focal length for all, in longer sides of the picture."""
        facts = [_facts(path) for path in paths]
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
        """The scene with its true cameras, brought into the world of the guessed ones."""
        known = true_cameras(Path(self.truth))
        views = scene.train + scene.test
        if lost := [view.name for view in views if Path(view.name).stem not in known]:
            raise ValueError(f"{self.truth}: expected a frame of every photograph, got none of {lost[0]}")
        cameras = [_fitted(known[Path(view.name).stem], view) for view in views]
        across = similarity(cameras[: len(scene.train)], [view.camera for view in scene.train])
        cameras = [across.camera(camera) for camera in cameras]
        held = [view.at(camera) for view, camera in zip(scene.test, cameras[len(scene.train) :], strict=True)]
        return replace(scene, test=held, truth=cameras[: len(scene.train)], fingerprint="")


def photographs(root: Path) -> list[Path]:
    """The pictures in `root`/images, or in `root`, 2.jpg before 10.jpg."""
    folder = root / "images" if (root / "images").is_dir() else root
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: _counted(path.name))


def orbit(yaw: float, pitch: float, distance: float) -> np.ndarray:
    """World -> camera [4,4] of an upright camera that looks at the origin; y is down in both.

    yaw: degrees, positive: the camera has gone to the right, and sees the object's left side. pitch: degrees,
    positive: it looks from above.
    """
    a, b = math.radians(yaw), math.radians(pitch)
    turn = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    viewmat = np.eye(4)
    viewmat[:3, :3] = tilt @ turn
    viewmat[2, 3] = distance
    return viewmat


def _counted(name: str) -> list[tuple[int, int, str]]:
    """What a name is sorted by: its runs of digits as numbers, which come before other characters."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _facts(path: Path) -> tuple[int, int, float]:
    """Upright width and height of a photograph; its focal length in longer sides, 0 where it is not told."""
    with reading(path), Image.open(path) as picture:
        exif = picture.getexif().get_ifd(ExifTags.IFD.Exif)
        film = float(exif.get(ExifTags.Base.FocalLengthIn35mmFilm) or 0)
        width, height = picture.size
        if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it lies on its side
            width, height = height, width
    return width, height, film / FILM * math.hypot(width, height) / max(width, height)


def _fitted(camera: Camera, view: View) -> Camera:
    """A true camera at the size of its view.  Raises: ValueError for another aspect."""
    width, height = view.camera.width, view.camera.height
    if abs(camera.width * height - camera.height * width) > max(width, height, camera.width, camera.height):
        size = f"{camera.width} x {camera.height}"
        raise ValueError(f"data.truth: expected the aspect of {view.name}, {width} x {height}, got {size}")
    return camera.resized(width, height)
