"""The data sets that training reads. Each layout on disk has one loader: a dataclass of its settings whose
`load()` returns a `Scene`.
"""

from __future__ import annotations


def detect_loader(path: str) -> str:
    """Return the name of the loader that reads a path: `image` for a file; for a folder `colmap`, else
    `transforms`, else `photos`.

    Raises: FileNotFoundError for a missing folder, and for a folder that no loader can read.
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
            f"{folder}: expected a COLMAP model (sparse/0), a transforms.json or photographs, "
            "found none of them"
        ) from None
