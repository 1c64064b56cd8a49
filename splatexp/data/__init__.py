"""Data sets as scenes: one loader per layout on disk, a dataclass of its settings with `load() -> Scene`."""

from __future__ import annotations


def detect(path: str) -> str:
    """The name of the loader for a folder: colmap, else transforms, else photos; of one file: image.

    Raises FileNotFoundError for a missing folder and for one that no loader knows.
    """
    from pathlib import Path

    if Path(path).expanduser().is_file():
        return "image"
    from splatexp.data.colmap import data_folder, model_folder

    folder = data_folder(path)
    try:
        model_folder(folder)
        return "colmap"
    except FileNotFoundError:
        if any(folder.glob("transforms*.json")):
            return "transforms"
        from splatexp.data.photos import photographs

        if photographs(folder):
            return "photos"
        raise FileNotFoundError(
            f"{folder}: expected a COLMAP model (sparse/0), a transforms.json or photographs, found none"
        ) from None
