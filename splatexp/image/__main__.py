"""Pictures as files of Gaussians.

  python -m splatexp.image encode photo.png [photo.gsi] [quality=33 | bpp=0.2 | bytes=5000] [levels=3]
  python -m splatexp.image encode photos/ encoded/ bpp=0.2 jobs=2
  python -m splatexp.image decode photo.gsi photo.png [layers=1] [scale=2] [crop=100,50,200,150]
  python -m splatexp.image decode encoded/ decoded/
  python -m splatexp.image info photo.gsi
  python -m splatexp.image view photo.gsi [truth=photo.png]
  python -m splatexp.image bench kodak/ [bpp=0.1,0.2,0.5] [out=<folder>]

encode   quality= (dB), bpp= or bytes= say how good or how large; any setting of a run is taken too, see
         python -m splatexp preset=image_codec --cfg job
         jobs=N  so many files at once, one thread each; all processors    missing=true  only what is not
         there yet    overwrite=true  also what lies beside a source, where no target is named
decode   layers=K    the first K layers    scale=S  times as large    crop=x,y,w,h  of the picture so scaled
         suffix=.png of what comes out of a folder    jobs=N    overwrite=true  as above
info     header, sections, layers, bits; json=true for programs
view     host=127.0.0.1 port=8090: a page with zoom, until Ctrl-C; truth= to compare with
bench    beside JPEG, WebP and AVIF: codecs=gsi,jpeg,webp,avif; bpp=, quality= or bytes= are the points of
         .gsi, quick=true takes fewer of the others; jobs=N, reuse=true keeps rows of another state of the
         code; other words go to encode. An interrupted bench goes on
"""

from __future__ import annotations

import sys

try:
    import os
    import re
    import signal
    import warnings
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from splatexp.image.files import PICTURES, Pair, each, guard, one_line, pairs
    from splatexp.settings.arguments import arguments
except KeyboardInterrupt:  # as early as that
    print("stopped", file=sys.stderr)
    sys.exit(130)

Words = list[str]


def main() -> int:
    """The command.  Returns: the exit status; 1 where a file failed, 2 for input that is refused."""
    words = sys.argv[1:]
    if not words or {"-h", "--help", "help"} & set(words):
        print((__doc__ or "").strip())
        return 0 if words else 2
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        if words[0] not in COMMANDS:
            raise ValueError(f"expected one of {', '.join(COMMANDS)}, got {words[0]!r} (see --help)")
        return COMMANDS[words[0]](*_sorted(words[1:]))
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, ArithmeticError, MemoryError, ImportError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


def _encode(names: Words, words: Words) -> int:
    """Encode files; several each in a process of its own, so that where one is killed the rest goes on."""
    own, rest = _split(words, {"jobs": int, "missing": bool, "overwrite": bool})
    found = pairs(names, PICTURES, ".gsi")
    for pair in found:
        if pair.target.suffix != ".gsi":
            raise ValueError(f"{pair.target}: expected a name that ends in .gsi")
    if own.get("missing"):
        found = [pair for pair in found if not pair.target.exists()]
    if not own.get("overwrite"):
        guard(found)
    from splatexp.image import tasks
    from splatexp.system.cgroups import processors

    jobs = _jobs(own, processors())
    if len(found) == 1:
        return min(1, each(found, lambda pair: tasks.encode(pair, rest), 1, _say, "encoding"))
    if found:
        from splatexp.image.encode import check

        check(rest)
    apart = tasks.Apart()
    return min(1, each(found, lambda pair: apart.encode(pair, rest), jobs, _say, "encoding", apart.end))


def _decode(names: Words, words: Words) -> int:
    """Decode files."""
    known = {"layers": int, "scale": str, "crop": str, "suffix": str, "jobs": int, "overwrite": bool}
    own = arguments(words, known)
    suffix, jobs, overwrite = own.pop("suffix", ""), _jobs(own, 1), own.pop("overwrite", False)
    if not re.fullmatch(r"(\.\w+)?", suffix):
        raise ValueError(f"suffix: expected one such as .png, got {suffix!r}")
    if "scale" in own:
        own["scale"] = _numbers("scale", own["scale"], float, 1)[0]
    if "crop" in own:
        own["crop"] = _numbers("crop", own["crop"], int, 4)
    from splatexp.image import tasks

    found = pairs(names, (".gsi",), suffix or ".png")
    if suffix and len(found) == 1 and found[0].target == Path(names[-1]):
        raise ValueError(f"suffix: expected none where the target is named, {names[-1]}, got {suffix}")
    if not overwrite:
        guard(found)
    return min(1, each(found, lambda pair: tasks.decode(pair, **own), jobs, _say, "decoding"))


def _info(names: Words, words: Words) -> int:
    """Say what is in files."""
    own = arguments(words, {"json": bool})
    from splatexp.image.codec import describe

    if not names:
        raise ValueError("expected a file")

    def told(pair: Pair) -> str:
        found = describe.described(pair.source)
        return describe.as_json(found) if own.get("json") else describe.as_text(found)

    files = [Pair(Path(name), Path(name)) for name in names]
    return min(1, sum(each([pair], told, 1, _say, "") for pair in files))


def _view(names: Words, words: Words) -> int:
    """Serve the page."""
    own = arguments(words, {"host": str, "port": int, "truth": str})
    if len(names) != 1:
        raise ValueError(f"expected one file, got {len(names)}")
    from splatexp.image import viewer

    with viewer.serving(Path(names[0]), **own) as address:
        print(f"{names[0]}: {address}, until Ctrl-C", flush=True)
        viewer.wait()
    return 0


def _bench(names: Words, words: Words) -> int:
    """Compare codecs."""
    from splatexp.image.bench import bench
    from splatexp.image.bench.settings import KNOWN, Order

    own, rest = _split(words, KNOWN)
    if len(names) != 1:
        raise ValueError(f"expected one folder of pictures, got {len(names)}")
    written, failed = bench.bench(Order(names[0], extra=tuple(rest), **own), _say)
    for path in written:
        print(path)
    return min(1, failed)


COMMANDS: dict[str, Callable[[Words, Words], int]] = {
    "encode": _encode,
    "decode": _decode,
    "info": _info,
    "view": _view,
    "bench": _bench,
}


NAMES = ("truth", "suffix", "only")  # settings whose values may look like names of files


def _sorted(words: Sequence[str]) -> tuple[Words, Words]:
    """Names of files, and settings: what has a `=` after a key, unless there is a file of that name.

    Raises: ValueError for a setting that looks like the name of a file to be.
    """
    settings = [w for w in words if re.match(r"[~+]*[\w.@]+=", w) or w.startswith("~")]
    settings = [word for word in settings if not Path(word).exists()]
    for word in settings:
        if Path(word).suffix.lower() in (".gsi", *PICTURES) and word.partition("=")[0] not in NAMES:
            raise ValueError(f"{word}: expected the value of a setting; for a file of that name say ./{word}")
    return [word for word in words if word not in settings], settings


def _split(words: Sequence[str], known: Mapping[str, Any]) -> tuple[dict[str, Any], Words]:
    """The settings that are known here, with their values, and the words that are for others."""
    own = [word for word in words if word.partition("=")[0] in known]
    return arguments(own, known), [word for word in words if word not in own]


def _jobs(own: dict[str, Any], least: int) -> int:
    jobs = own.pop("jobs", least)
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    return jobs


def _numbers(key: str, text: str, kind: type, count: int) -> tuple[Any, ...]:
    """So many numbers with commas between."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        wanted = "a number" if count == 1 else f"{count} whole numbers with commas between"
        raise ValueError(f"{key}: expected {wanted}, got {text!r}")
    return found


def _say(line: str, failed: bool) -> None:
    if line:
        print(f"error: {line}" if failed else line, file=sys.stderr if failed else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as stderr has names
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs apart, too
    sys.exit(main())
