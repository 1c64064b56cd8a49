"""Codecs over a folder of images: real files, decoded in a separate process, with every result stored as it
comes.

A row is the result of one image at one setting of one codec. It is stored in `rows/` under a key of the
image's bytes, the codec, its setting and its version; so an interrupted bench continues, and what has changed
is computed again.
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
from splatexp.image.bench.settings import BenchSettings, Row
from splatexp.image.files import FilePair, one_line
from splatexp.io import image_file
from splatexp.io.atomic import atomic_write, write_text

COLD_STARTS = 3  # decodings of which the median is reported
BATCH = 24  # files that one process decodes
Say = Callable[[str, bool], None]


def run_bench(settings: BenchSettings, say: Say) -> tuple[list[Path], int]:
    """Make the missing results, measure them, and write the report.

    Returns: the files written, and the number of rows that failed.
    Raises: OSError, ValueError, with one line.
    """
    from splatexp.image.bench import report

    rows: list[Row] = []
    failed = 0
    settings.image_paths()
    if "gsi" in settings.codecs.split(","):
        from splatexp.image.encode import check_settings

        for setting in settings.points("gsi"):
            check_settings([setting, *settings.extra])
    settings.output.mkdir(parents=True, exist_ok=True)
    for codec in settings.codecs.split(","):
        for row in _rows_of(settings, codec, say):
            failed += "error" in row
            rows.append(row)
    cold = _decode_seconds(settings, rows)
    return report.write_report(settings, rows, cold), failed


def _rows_of(settings: BenchSettings, codec: str, say: Say) -> Iterator[Row]:
    """Yield all rows of a codec: those that are stored, then those made now, setting by setting."""
    version = _version(codec)
    words = list(settings.extra) if codec == "gsi" else []
    for setting in settings.points(codec):
        rows = []
        for image in settings.image_paths():
            row = {"codec": codec, "setting": setting, "extra": words, "image": image.stem}
            row |= {"path": str(image), "sha256": _hash(image), "version": version}
            rows.append(_stored(settings, row) or row)
        wanted, began = [row for row in rows if "psnr" not in row], time.perf_counter()
        rows = [row for row in rows if "psnr" in row]
        for at in range(0, len(wanted), BATCH):
            rows += _made(settings, wanted[at : at + BATCH])
        rows.sort(key=lambda row: row["image"])
        for row in rows:
            if "error" in row:
                say(f"{row['path']}: {codec} {setting}: {row['error']}", True)
        good = [row for row in rows if "error" not in row]
        if wanted and good:
            rate, db = (sum(row[key] for row in good) / len(good) for key in ("bpp", "psnr"))
            took = time.perf_counter() - began
            say(f"{codec} {setting}: {rate:.4f} bpp, {db:.2f} dB, mean of {len(good)}, {took:.0f} s", False)
        yield from rows


def _made(settings: BenchSettings, rows: Sequence[Row]) -> list[Row]:
    """Encode where there is no file yet, then measure in a separate process; every row is stored as it
    comes.
    """
    ready = [row for row in rows if "file" in row]
    missing = [row for row in rows if "file" not in row]
    if missing and missing[0]["codec"] == "gsi":
        ready += _encoded_gsi(settings, missing)
    else:
        ready += [_encoded(settings, row) for row in missing]
    good = [row for row in ready if "error" not in row]
    files = [(settings.output / row["file"], Path(row["path"])) for row in good]
    for row, answer in zip(good, isolated_decode.measure_all(files), strict=True):
        row |= answer
        if "error" not in row:
            _store(settings, row)
    return ready


def _store(settings: BenchSettings, row: Row) -> None:
    write_text(_path(settings, row), json.dumps(row, indent=1) + "\n")


def _encoded(settings: BenchSettings, row: Row) -> Row:
    """Return a row with its file, encoded by Pillow; or with its error."""
    coder = codecs.CODECS[row["codec"]]
    try:
        image = image_file.read_image(row["path"])
        began = time.perf_counter()
        data = coder.encode(image, int(row["setting"].partition("=")[2]))
        seconds = time.perf_counter() - began
    except (OSError, ValueError) as error:
        return row | {"error": one_line(error)}
    with atomic_write(_file(settings, row)) as temp:
        temp.write_bytes(data)
    return _with_size(settings, row, seconds)


def _encoded_gsi(settings: BenchSettings, rows: Sequence[Row]) -> list[Row]:
    """Return rows with their files, each encoded by the command line in a process of its own; or with its
    error.
    """
    from splatexp.image import tasks
    from splatexp.image.files import run_each

    processes = tasks.EncoderProcesses()
    found = [FilePair(Path(row["path"]), _file(settings, row)) for row in rows]
    ready: dict[Path, Row] = {pair.source: row for pair, row in zip(found, rows, strict=True)}

    def act(pair: FilePair) -> str:
        row, began = ready[pair.source], time.perf_counter()
        try:
            processes.encode(pair, [row["setting"], *row["extra"]])
            ready[pair.source] = _with_size(settings, row, time.perf_counter() - began)
        except (OSError, ValueError) as error:
            ready[pair.source] = row | {"error": one_line(error).removeprefix(f"{pair.source}: ")}
        return ""

    run_each(found, act, settings.jobs, lambda line, bad: None, rows[0]["setting"], processes.stop)
    return list(ready.values())


def _with_size(settings: BenchSettings, row: Row, seconds: float) -> Row:
    """Return the row with the facts about its file, and store it."""
    image, file = image_file.read_image(row["path"]), _file(settings, row)
    size, (height, width) = file.stat().st_size, image.pixels.shape[:2]
    row = row | {"file": str(file.relative_to(settings.output)), "bytes": size, "encode_seconds": seconds}
    row |= {"width": width, "height": height, "bpp": 8 * size / (width * height)}
    _store(settings, row)
    return row


def _decode_seconds(settings: BenchSettings, rows: Sequence[Row]) -> dict[str, float]:
    """Return the seconds of the whole decode command, interpreter included, for the first file of each
    setting.
    """
    found = {}
    firsts = {row["setting"]: row for row in reversed(rows) if row["codec"] == "gsi" and "error" not in row}
    with tempfile.TemporaryDirectory() as folder:
        for setting, row in firsts.items():
            command = [sys.executable, "-m", "splatexp.image", "decode", str(settings.output / row["file"])]
            seconds = []
            for _ in range(COLD_STARTS):
                began = time.perf_counter()
                subprocess.run([*command, str(Path(folder, "a.png"))], check=True, capture_output=True)
                seconds.append(time.perf_counter() - began)
            found[setting] = sorted(seconds)[COLD_STARTS // 2]
    return found


def _stored(settings: BenchSettings, row: Row) -> Row | None:
    """Return the stored row where its file is still the one that it describes."""
    keyed = [_path(settings, row)]
    if settings.reuse_results and row["codec"] == "gsi":
        keyed += sorted(_path(settings, row).parent.glob(f"{_stem(row)}.*.json"))
    for path in keyed:
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            file = settings.output / there["file"]
            if file.is_file() and file.stat().st_size == there["bytes"]:
                return there
    return None


def _stem(row: Row) -> str:
    """Return the name of a row, without the version of its codec."""
    parts = [row[key] for key in ("sha256", "codec", "setting", "extra")]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return f"{row['image']}.{row['codec']}.{row['setting']}.{digest}"


def _path(settings: BenchSettings, row: Row) -> Path:
    version = hashlib.sha256(row["version"].encode()).hexdigest()[:8]
    return settings.output / "rows" / f"{_stem(row)}.{version}.json"


def _file(settings: BenchSettings, row: Row) -> Path:
    suffix = ".gsi" if row["codec"] == "gsi" else codecs.CODECS[row["codec"]].suffix
    key = "-".join(_path(settings, row).stem.rsplit(".", 2)[1:])
    return (
        settings.output
        / "files"
        / row["codec"]
        / row["setting"].replace("=", "-")
        / f"{row['image']}-{key}{suffix}"
    )


def _version(codec: str) -> str:
    """Return what the bytes of a codec depend on besides its settings."""
    if codec != "gsi":
        coder = codecs.CODECS[codec]
        return f"{coder.version()} {dict(coder.settings)}"
    from splatexp.provenance.environment import code_hash

    return code_hash()


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
