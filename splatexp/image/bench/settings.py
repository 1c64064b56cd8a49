"""The settings of a comparison of image codecs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatexp.image.bench import codecs
from splatexp.image.files import IMAGE_SUFFIXES

POINTS = (0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # bpp
OPTIONS = {  # on the command line
    "out": str,
    "codecs": str,
    "bpp": str,
    "quality": str,
    "bytes": str,
    "only": str,
    "jobs": int,
    "quick": bool,
    "reuse_results": bool,
}
Row = dict[str, Any]


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a comparison.

    Raises: ValueError for settings that are not known or contradict each other.
    """

    folder: str  # of the images
    out: str = ""  # folder of the results; "": multirun/bench/<name of the folder>
    codecs: str = "gsi,jpeg,webp,avif"  # separated by commas
    bpp: str = ""  # bits per pixel of .gsi, separated by commas; one of bpp, quality and bytes may be given
    quality: str = ""  # dB
    bytes: str = ""  # of a file
    only: str = ""  # names of some images, without suffix, separated by commas; "": all
    quick: bool = False  # every third point of the other codecs
    jobs: int = 1  # encodings of .gsi at a time
    reuse_results: bool = False  # keep results of .gsi by other versions of the code; the report says so
    extra: tuple[str, ...] = ()  # further settings, for encode

    def __post_init__(self) -> None:
        names = self.codecs.split(",")
        for name in names:
            if name != "gsi" and name not in codecs.CODECS:
                raise ValueError(f"codecs: expected some of gsi, {', '.join(codecs.CODECS)}, got {name!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"codecs: expected each once, got {self.codecs}")
        if sum(map(bool, (self.bpp, self.quality, self.bytes))) > 1:
            raise ValueError("bpp, quality, bytes: expected points of one kind, got several")
        for_gsi = [key for key in ("bpp", "quality", "bytes", "reuse_results") if getattr(self, key)]
        for_gsi += [word.partition("=")[0] for word in self.extra]
        if for_gsi and "gsi" not in names:
            raise ValueError(f"{for_gsi[0]}: expected gsi among the codecs, got codecs={self.codecs}")
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")

    @property
    def output(self) -> Path:
        """Return the folder of the results."""
        return Path(self.out or Path("multirun", "bench", Path(self.folder).resolve().name))

    def image_paths(self) -> list[Path]:
        """Return the images.

        Raises: FileNotFoundError, ValueError.
        """
        folder, wanted = Path(self.folder), [name for name in self.only.split(",") if name]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of images")
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if missing := set(wanted) - {path.stem for path in found}:
            raise ValueError(f"only: expected images of {folder}, got {sorted(missing)[0]!r}")
        found = [path for path in found if not wanted or path.stem in wanted]
        if not found:
            raise FileNotFoundError(f"{folder}: expected images, found none")
        if len({path.stem for path in found}) < len(found):
            raise ValueError(f"{folder}: expected images whose names differ before the suffix")
        return found

    def points(self, codec: str) -> list[str]:
        """Return the points of a codec, as settings."""
        if codec != "gsi":
            every = codecs.CODECS[codec].qualities
            kept = every[:: 3 if self.quick else 1]
            return [f"quality={number}" for number in kept]
        for kind in ("bpp", "quality", "bytes"):
            if text := getattr(self, kind):
                return [f"{kind}={_number(kind, part)}" for part in text.split(",")]
        return [f"bpp={number:g}" for number in POINTS]


def _number(kind: str, text: str) -> str:
    try:
        good = float(text) > 0
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{kind}: expected positive numbers, separated by commas, got {text!r}")
    return text.strip()
