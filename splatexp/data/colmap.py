"""A COLMAP data set: images, and a sparse model with cameras, poses and points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from splatexp.data.colmap_model import read_model
from splatexp.data.perturb import Perturb
from splatexp.data.scene import Scene, hold_out
from splatexp.data.view_loader import BACKGROUNDS, Source, count_inside, find_masks, read_views


@dataclass
class Colmap:
    """Loads `path`/`images` with the model in sparse/0, sparse, colmap/sparse/0, colmap/sparse or `path`.

    path: folder of the data set. images: folder of the pictures in it; pictures of another size than their
    camera's are taken when they are the whole picture, resized (images_4). downscale: reduce by this factor
    on loading. masks: use the folder masks/ beside the images (same stems, white = use) when it exists.
    test_every: hold out every n-th image by name, from the first; 0 = none; a file test.txt (names, one a
    line) in the folder or beside the model wins over it. background: black, white or random, behind images
    with alpha. cutout: what masks leave out is transparent, and shows the background: silhouettes count in
    the loss, and held-out views are measured inside their masks. perturb: makes the poses worse.
    """

    path: str = field(metadata={"unit": "path"})
    images: str = "images"
    downscale: int = 1
    masks: bool = True
    test_every: int = 8
    background: str = "black"
    cutout: bool = False
    perturb: Perturb = field(default_factory=Perturb)

    def load(self) -> Scene:
        """Reads everything. Raises FileNotFoundError and ValueError, one line that names the file."""
        root = data_folder(self.path)
        folder = model_folder(root)
        pictures = root / self.images
        if not pictures.is_dir():
            raise FileNotFoundError(f"{pictures}: no such folder of images")
        model = read_model(folder)
        images = sorted(model.images, key=lambda image: image.name)
        if not images:
            raise ValueError(f"{folder}: expected a model with images, got 0 images")
        names = [image.name for image in images]
        lost = [name for name in names if not (pictures / name).is_file()]
        if lost:
            raise FileNotFoundError(
                f"{pictures}: {len(lost)} of {len(names)} images of the model are missing, first {lost[0]}"
            )
        masks = find_masks(pictures.parent / "masks", names) if self.masks else {}
        sources = [
            Source(
                image.name,
                pictures / image.name,
                image.viewmat,
                model.cameras[image.camera],
                masks.get(image.name),
                cut=self.cutout,
            )
            for image in images
        ]
        train, test = _split(root, folder, names, self.test_every)
        views, clear = read_views(sources, self.downscale, self.background)
        by_name = {view.name: view for view in views}
        held = [by_name[name] for name in test]
        scene = Scene(
            name=root.resolve().name,
            train=[by_name[name] for name in train],
            test=count_inside(held) if self.cutout else held,
            points=torch.tensor(model.points, dtype=torch.float32) if len(model.points) else None,
            colors=torch.tensor(model.colors) if len(model.points) else None,
            background=BACKGROUNDS[self.background] if clear else None,
            random_background=clear and self.background == "random",
        )
        return self.perturb(scene)


def data_folder(path: str) -> Path:
    """The data set's folder. Raises FileNotFoundError when there is none."""
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise FileNotFoundError(f"data.path: expected the folder of a data set, got {path!r}: no such folder")
    return folder


def model_folder(root: Path) -> Path:
    """The first usual place below `root` that holds a sparse model."""
    places = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".")
    for place in places:
        for suffix in (".bin", ".txt"):
            if all((root / place / f"{part}{suffix}").is_file() for part in ("cameras", "images")):
                return root / place
    raise FileNotFoundError(
        f"{root}: no COLMAP model (cameras and images, .bin or .txt) in {', '.join(places)}"
    )


def _split(root: Path, model: Path, names: Sequence[str], every: int) -> tuple[list[str], list[str]]:
    """Names of the training and the held-out half, sorted: from test.txt and train.txt, or every n-th."""
    folder = next((place for place in (root, model) if (place / "test.txt").is_file()), None)
    if folder is None:
        held = hold_out(names, every)
        halves = [[n for n, out in zip(names, held, strict=True) if out is half] for half in (False, True)]
        return halves[0], halves[1]
    test = _listed(folder / "test.txt", names)
    file = folder / "train.txt"
    return _listed(file, names) if file.is_file() else [name for name in names if name not in test], test


def _listed(file: Path, names: Sequence[str]) -> list[str]:
    listed = sorted(filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())))
    unknown = [name for name in listed if name not in names]
    if unknown:
        raise ValueError(f"{file}: {unknown[0]} is not an image of the model")
    return listed
