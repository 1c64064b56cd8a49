"""Codecs over a folder of pictures: real files, decoded in a fresh process, every row kept as it comes.

A row is one picture at one setting of one codec. It stands in `rows/` under a key of the picture's bytes, the
codec, its setting and its version; so an interrupted bench goes on, and what has changed is done again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from splatexp.image.bench import codecs, isolated_decode
from splatexp.image.bench.settings import Order, Row
from splatexp.image.files import Pair, one_line
from splatexp.io import image_file
from splatexp.io.atomic import replaced, write_text

COLD = 3  # decodings of which the median is told
BATCH = 24  # files to a fresh process
Say = Callable[[str, bool], None]


def bench(order: Order, say: Say) -> tuple[list[Path], int]:
    """Make what is missing, measure it, write the report.

    Returns: the files written, and how many rows failed.
    Raises: OSError, ValueError with one line.
    """
    from splatexp.image.bench import report

    rows: list[Row] = []
    failed = 0
    order.images()
    if "gsi" in order.codecs.split(","):
        from splatexp.image.encode import check

        for setting in order.settings("gsi"):
            check([setting, *order.extra])
    order.place.mkdir(parents=True, exist_ok=True)
    for codec in order.codecs.split(","):
        for row in _rows_of(order, codec, say):
            failed += "error" in row
            rows.append(row)
    cold = _cold(order, rows)
    return report.write(order, rows, cold), failed


def _rows_of(order: Order, codec: str, say: Say) -> Iterator[Row]:
    """All rows of a codec: those there are, then those made now, measured setting by setting."""
    version = _version(codec)
    words = list(order.extra) if codec == "gsi" else []
    for setting in order.settings(codec):
        rows = []
        for image in order.images():
            row = {"codec": codec, "setting": setting, "extra": words, "image": image.stem}
            row |= {"picture": str(image), "sha256": _hash(image), "version": version}
            rows.append(_kept(order, row) or row)
        wanted, began = [row for row in rows if "psnr" not in row], time.perf_counter()
        rows = [row for row in rows if "psnr" in row]
        for at in range(0, len(wanted), BATCH):
            rows += _made(order, wanted[at : at + BATCH])
        rows.sort(key=lambda row: row["image"])
        for row in rows:
            if "error" in row:
                say(f"{row['picture']}: {codec} {setting}: {row['error']}", True)
        good = [row for row in rows if "error" not in row]
        if wanted and good:
            rate, db = (sum(row[key] for row in good) / len(good) for key in ("bpp", "psnr"))
            took = time.perf_counter() - began
            say(f"{codec} {setting}: {rate:.4f} bpp, {db:.2f} dB, mean of {len(good)}, {took:.0f} s", False)
        yield from rows


def _made(order: Order, rows: Sequence[Row]) -> list[Row]:
    """Encode where there is no file yet, then measure in a fresh process; each is kept as it comes."""
    ready = [row for row in rows if "file" in row]
    missing = [row for row in rows if "file" not in row]
    if missing and missing[0]["codec"] == "gsi":
        ready += _encoded_gsi(order, missing)
    else:
        ready += [_encoded(order, row) for row in missing]
    good = [row for row in ready if "error" not in row]
    files = [(order.place / row["file"], Path(row["picture"])) for row in good]
    for row, answer in zip(good, isolated_decode.judged(files), strict=True):
        row |= answer
        if "error" not in row:
            _keep(order, row)
    return ready


def _keep(order: Order, row: Row) -> None:
    write_text(_path(order, row), json.dumps(row, indent=1) + "\n")


def _encoded(order: Order, row: Row) -> Row:
    """A row with its file, by Pillow; or with its error."""
    coder = codecs.CODERS[row["codec"]]
    try:
        picture = image_file.read(row["picture"])
        began = time.perf_counter()
        data = coder.encode(picture, int(row["setting"].partition("=")[2]))
        seconds = time.perf_counter() - began
    except (OSError, ValueError) as error:
        return row | {"error": one_line(error)}
    with replaced(_file(order, row)) as temp:
        temp.write_bytes(data)
    return _sized(order, row, seconds)


def _encoded_gsi(order: Order, rows: Sequence[Row]) -> list[Row]:
    """Rows with their files, each by the command line in a process of its own; or with its error."""
    from splatexp.image import tasks
    from splatexp.image.files import each

    apart = tasks.Apart()
    found = [Pair(Path(row["picture"]), _file(order, row)) for row in rows]
    ready: dict[Path, Row] = {pair.source: row for pair, row in zip(found, rows, strict=True)}

    def act(pair: Pair) -> str:
        row, began = ready[pair.source], time.perf_counter()
        try:
            apart.encode(pair, [row["setting"], *row["extra"]])
            ready[pair.source] = _sized(order, row, time.perf_counter() - began)
        except (OSError, ValueError) as error:
            ready[pair.source] = row | {"error": one_line(error).removeprefix(f"{pair.source}: ")}
        return ""

    each(found, act, order.jobs, lambda line, bad: None, rows[0]["setting"], apart.end)
    return list(ready.values())


def _sized(order: Order, row: Row, seconds: float) -> Row:
    """The row with what is known of its file, kept."""
    picture, file = image_file.read(row["picture"]), _file(order, row)
    size, (height, width) = file.stat().st_size, picture.pixels.shape[:2]
    row = row | {"file": str(file.relative_to(order.place)), "bytes": size, "encode_seconds": seconds}
    row |= {"width": width, "height": height, "bpp": 8 * size / (width * height)}
    _keep(order, row)
    return row


def _cold(order: Order, rows: Sequence[Row]) -> dict[str, float]:
    """Seconds of the whole command that decodes, interpreter included, for the first file of each setting."""
    found = {}
    firsts = {row["setting"]: row for row in reversed(rows) if row["codec"] == "gsi" and "error" not in row}
    with tempfile.TemporaryDirectory() as folder:
        for setting, row in firsts.items():
            command = [sys.executable, "-m", "splatexp.image", "decode", str(order.place / row["file"])]
            seconds = []
            for _ in range(COLD):
                began = time.perf_counter()
                subprocess.run([*command, str(Path(folder, "a.png"))], check=True, capture_output=True)
                seconds.append(time.perf_counter() - began)
            found[setting] = sorted(seconds)[COLD // 2]
    return found


def _kept(order: Order, row: Row) -> Row | None:
    """The row as it was made before, where its file is still the one that it tells of."""
    keyed = [_path(order, row)]
    if order.reuse and row["codec"] == "gsi":
        keyed += sorted(_path(order, row).parent.glob(f"{_stem(row)}.*.json"))
    for path in keyed:
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            file = order.place / there["file"]
            if file.is_file() and file.stat().st_size == there["bytes"]:
                return there
    return None


def _stem(row: Row) -> str:
    """What a row is called, but for the version of its codec."""
    parts = [row[key] for key in ("sha256", "codec", "setting", "extra")]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return f"{row['image']}.{row['codec']}.{row['setting']}.{digest}"


def _path(order: Order, row: Row) -> Path:
    version = hashlib.sha256(row["version"].encode()).hexdigest()[:8]
    return order.place / "rows" / f"{_stem(row)}.{version}.json"


def _file(order: Order, row: Row) -> Path:
    suffix = ".gsi" if row["codec"] == "gsi" else codecs.CODERS[row["codec"]].suffix
    key = "-".join(_path(order, row).stem.rsplit(".", 2)[1:])
    return (
        order.place
        / "files"
        / row["codec"]
        / row["setting"].replace("=", "-")
        / f"{row['image']}-{key}{suffix}"
    )


def _version(codec: str) -> str:
    """What the bytes of a codec depend on beside its settings."""
    if codec != "gsi":
        coder = codecs.CODERS[codec]
        return f"{coder.version()} {dict(coder.settings)}"
    from splatexp.provenance.environment import code_hash

    return code_hash()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
