"""A data set from COLMAP: images, and a sparse model with their cameras, poses and points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from splatexp.data.colmap_model import read_model
from splatexp.data.perturb import Perturb
from splatexp.data.scene import Scene, hold_out
from splatexp.data.view_loader import BACKGROUNDS, ImageSource, find_masks, mask_by_alpha, read_views


@dataclass
class Colmap:
    """Loads `path`/`images` with the model in sparse/0, sparse, colmap/sparse/0, colmap/sparse or `path`
    itself.

    Images whose size differs from their camera's are used where they are the whole image, resized, such as
    images_4. A file test.txt (names, one a line) in the folder or beside the model decides what is held out;
    it wins over `test_every`.
    """

    path: str = field(metadata={"unit": "path"})  # folder of the data set
    images: str = "images"  # folder of the images, inside `path`
    downscale: int = 1  # images are reduced by this factor on loading
    masks: bool = True  # use the folder masks/ beside the images where there is one (same stems, white = use)
    test_every: int = 8  # hold out every n-th image by name, from the first; 0: none
    background: str = "black"  # black, white or random: the colour behind images with alpha
    # pixels outside the masks are transparent instead of unused: silhouettes count in the loss, and held-out
    # views are measured inside their masks
    masks_as_alpha: bool = False
    perturb: Perturb = field(default_factory=Perturb)  # makes the poses of training cameras worse

    def load(self) -> Scene:
        """Read the images and the model.

        Raises: FileNotFoundError, ValueError, with one line that names the file.
        """
        root = data_folder(self.path)
        folder = model_folder(root)
        image_folder = root / self.images
        if not image_folder.is_dir():
            raise FileNotFoundError(f"{image_folder}: no such folder of images")
        model = read_model(folder)
        images = sorted(model.images, key=lambda image: image.name)
        if not images:
            raise ValueError(f"{folder}: expected a model with images, got 0 images")
        names = [image.name for image in images]
        lost = [name for name in names if not (image_folder / name).is_file()]
        if lost:
            raise FileNotFoundError(
                f"{image_folder}: {len(lost)} of {len(names)} images of the model are missing, "
                f"the first is {lost[0]}"
            )
        masks = find_masks(image_folder.parent / "masks", names) if self.masks else {}
        sources = [
            ImageSource(
                image.name,
                image_folder / image.name,
                image.viewmat,
                model.cameras[image.camera],
                masks.get(image.name),
                mask_as_alpha=self.masks_as_alpha,
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
            test=mask_by_alpha(held) if self.masks_as_alpha else held,
            points=torch.tensor(model.points, dtype=torch.float32) if len(model.points) else None,
            colors=torch.tensor(model.colors) if len(model.points) else None,
            background=BACKGROUNDS[self.background] if clear else None,
            random_background=clear and self.background == "random",
        )
        return self.perturb(scene)


def data_folder(path: str) -> Path:
    """Return the data set's folder.

    Raises: FileNotFoundError where there is none.
    """
    folder = Path(path).expanduser()
    if not path or not folder.is_dir():
        raise FileNotFoundError(
            f"data.path: expected the folder of a data set, got {path!r}, which does not exist"
        )
    return folder


def model_folder(root: Path) -> Path:
    """Return the first of the usual places below `root` that holds a sparse model.

    Raises: FileNotFoundError where none of them does.
    """
    places = ("sparse/0", "sparse", "colmap/sparse/0", "colmap/sparse", ".")
    for place in places:
        for suffix in (".bin", ".txt"):
            if all((root / place / f"{part}{suffix}").is_file() for part in ("cameras", "images")):
                return root / place
    raise FileNotFoundError(
        f"{root}: no COLMAP model (cameras and images, .bin or .txt) in {', '.join(places)}"
    )


def _split(root: Path, model: Path, names: Sequence[str], every: int) -> tuple[list[str], list[str]]:
    """Return the names of the training and of the held-out views, sorted: from test.txt and train.txt, or
    every n-th.
    """
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
        raise ValueError(f"{file}: expected names of images of the model, got {unknown[0]}")
    return listed
