"""The settings of a comparison of image codecs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splatexp.image.bench import codecs
from splatexp.image.files import PICTURES

POINTS = (0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # bpp


KNOWN = {"out": str, "codecs": str, "bpp": str, "quality": str, "bytes": str, "only": str}


KNOWN |= {"jobs": int, "quick": bool, "reuse": bool}


Row = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What is to be compared.

    Attributes:
        folder: of pictures; only: names of some, with commas between, without their suffix.
        out: where it lands; multirun/bench/<name of the folder>.
        codecs: with commas between; bpp, quality, bytes: points of .gsi, of one of these kinds.
        quick: every third point of the other codecs. jobs: encodings of .gsi at once.
        reuse: also take rows of .gsi that another state of the code made; the report says so.
        extra: words for encode.
    """

    folder: str
    out: str = ""
    codecs: str = "gsi,jpeg,webp,avif"
    bpp: str = ""
    quality: str = ""
    bytes: str = ""
    only: str = ""
    quick: bool = False
    jobs: int = 1
    reuse: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.codecs.split(",")
        for name in names:
            if name != "gsi" and name not in codecs.CODERS:
                raise ValueError(f"codecs: expected some of gsi, {', '.join(codecs.CODERS)}, got {name!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"codecs: expected each once, got {self.codecs}")
        if sum(map(bool, (self.bpp, self.quality, self.bytes))) > 1:
            raise ValueError("bpp, quality, bytes: expected points of one kind, got several")
        idle = [key for key in ("bpp", "quality", "bytes", "reuse") if getattr(self, key)]
        idle += [word.partition("=")[0] for word in self.extra]
        if idle and "gsi" not in names:
            raise ValueError(f"{idle[0]}: is for .gsi, expected gsi among codecs, got {self.codecs}")
        if self.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {self.jobs}")

    @property
    def place(self) -> Path:
        """Where it lands."""
        return Path(self.out or Path("multirun", "bench", Path(self.folder).resolve().name))

    def images(self) -> list[Path]:
        """The pictures.  Raises: FileNotFoundError, ValueError."""
        folder, wanted = Path(self.folder), [name for name in self.only.split(",") if name]
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder of pictures")
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
        if missing := set(wanted) - {path.stem for path in found}:
            raise ValueError(f"only: expected pictures of {folder}, got {sorted(missing)[0]!r}")
        found = [path for path in found if not wanted or path.stem in wanted]
        if not found:
            raise FileNotFoundError(f"{folder}: expected pictures, found none")
        if len({path.stem for path in found}) < len(found):
            raise ValueError(f"{folder}: expected pictures whose names differ before the suffix")
        return found

    def settings(self, codec: str) -> list[str]:
        """The points of a codec, as words."""
        if codec != "gsi":
            every = codecs.CODERS[codec].qualities
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
        raise ValueError(f"{kind}: expected numbers above 0 with commas between, got {text!r}")
    return text.strip()
