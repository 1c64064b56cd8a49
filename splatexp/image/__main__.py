"""Images as files of 2D Gaussians (.gsi).

  python -m splatexp.image encode photo.png [photo.gsi] [quality=33 | bpp=0.2 | bytes=5000] [layers=3]
  python -m splatexp.image encode photos/ encoded/ bpp=0.2 jobs=2
  python -m splatexp.image decode photo.gsi photo.png [layers=1] [scale=2] [crop=100,50,200,150]
  python -m splatexp.image decode encoded/ decoded/
  python -m splatexp.image info photo.gsi
  python -m splatexp.image view photo.gsi [original=photo.png]
  python -m splatexp.image bench kodak/ [bpp=0.1,0.2,0.5] [out=<folder>]

encode   quality= (dB), bpp= or bytes= set the quality or the size. Any setting of a run is accepted too;
         `python -m splatexp preset=image_codec --cfg job` lists them.
         jobs=N              files at a time, one thread each; default: all processors
         skip_existing=true  skip images whose file exists already
         overwrite=true      replace files that lie beside their images, where no target is named
decode   layers=K            only the first K layers
         scale=S             render at S times the size
         crop=x,y,w,h        only this part of the scaled image, px
         suffix=.png         format of images from a folder; jobs=N, overwrite=true: as above
info     print header, sections, layers and bits; json=true: for programs
view     serve a page with zoom until Ctrl-C; host=127.0.0.1 port=8090; original=<image> to compare with
bench    compare with JPEG, WebP and AVIF. codecs=gsi,jpeg,webp,avif; bpp=, quality= or bytes= are the
         points of .gsi; quick=true: fewer points of the others; jobs=N; reuse_results=true: keep results of
         .gsi that a different version of the code made; all other settings go to encode. An interrupted
         bench continues.
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

    from splatexp.image.files import IMAGE_SUFFIXES, FilePair, check_overwrite, file_pairs, one_line, run_each
    from splatexp.settings.arguments import parse_arguments
except KeyboardInterrupt:  # Ctrl-C while the modules are imported
    print("stopped", file=sys.stderr)
    sys.exit(130)

Words = list[str]


def main() -> int:
    """Run the command.

    Returns: the exit status: 1 where a file failed, 2 for input that is refused.
    """
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
    """Encode files. Several files are encoded in processes of their own, so that one that is killed does not
    stop the rest.
    """
    own, rest = _split(words, {"jobs": int, "skip_existing": bool, "overwrite": bool})
    found = file_pairs(names, IMAGE_SUFFIXES, ".gsi")
    for pair in found:
        if pair.target.suffix != ".gsi":
            raise ValueError(f"{pair.target}: expected a name that ends in .gsi")
    if own.get("skip_existing"):
        found = [pair for pair in found if not pair.target.exists()]
    if not own.get("overwrite"):
        check_overwrite(found)
    from splatexp.image import tasks
    from splatexp.system.linux_memory import cpu_count

    jobs = _jobs(own, cpu_count())
    if len(found) == 1:
        return min(1, run_each(found, lambda pair: tasks.encode(pair, rest), 1, _say, "encoding"))
    if found:
        from splatexp.image.encode import check_settings

        check_settings(rest)
    processes = tasks.EncoderProcesses()
    return min(
        1, run_each(found, lambda pair: processes.encode(pair, rest), jobs, _say, "encoding", processes.stop)
    )


def _decode(names: Words, words: Words) -> int:
    """Decode files."""
    known = {"layers": int, "scale": str, "crop": str, "suffix": str, "jobs": int, "overwrite": bool}
    own = parse_arguments(words, known)
    suffix, jobs, overwrite = own.pop("suffix", ""), _jobs(own, 1), own.pop("overwrite", False)
    if not re.fullmatch(r"(\.\w+)?", suffix):
        raise ValueError(f"suffix: expected one such as .png, got {suffix!r}")
    if "scale" in own:
        own["scale"] = _numbers("scale", own["scale"], float, 1)[0]
    if "crop" in own:
        own["crop"] = _numbers("crop", own["crop"], int, 4)
    from splatexp.image import tasks

    found = file_pairs(names, (".gsi",), suffix or ".png")
    if suffix and len(found) == 1 and found[0].target == Path(names[-1]):
        raise ValueError(f"suffix: expected none where the target is named, {names[-1]}, got {suffix}")
    if not overwrite:
        check_overwrite(found)
    return min(1, run_each(found, lambda pair: tasks.decode(pair, **own), jobs, _say, "decoding"))


def _info(names: Words, words: Words) -> int:
    """Print the contents of files."""
    own = parse_arguments(words, {"json": bool})
    from splatexp.image.codec import describe

    if not names:
        raise ValueError("expected a file")

    def message(pair: FilePair) -> str:
        found = describe.describe(pair.source)
        return describe.to_json(found) if own.get("json") else describe.to_text(found)

    files = [FilePair(Path(name), Path(name)) for name in names]
    return min(1, sum(run_each([pair], message, 1, _say, "") for pair in files))


def _view(names: Words, words: Words) -> int:
    """Serve the page of a file."""
    own = parse_arguments(words, {"host": str, "port": int, "original": str})
    if len(names) != 1:
        raise ValueError(f"expected one file, got {len(names)}")
    from splatexp.image import viewer

    with viewer.serve(Path(names[0]), **own) as address:
        print(f"{names[0]}: {address}, until Ctrl-C", flush=True)
        viewer.wait()
    return 0


def _bench(names: Words, words: Words) -> int:
    """Compare codecs."""
    from splatexp.image.bench import bench
    from splatexp.image.bench.settings import OPTIONS, BenchSettings

    own, rest = _split(words, OPTIONS)
    if len(names) != 1:
        raise ValueError(f"expected one folder of images, got {len(names)}")
    written, failed = bench.run_bench(BenchSettings(names[0], extra=tuple(rest), **own), _say)
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


FILE_SETTINGS = ("original", "suffix", "only")  # settings whose values may look like names of files


def _sorted(words: Sequence[str]) -> tuple[Words, Words]:
    """Split the words into names of files and settings; a setting has a `=` after a key, unless a file of
    that name exists.

    Raises: ValueError for a setting that looks like the name of a new file.
    """
    settings = [w for w in words if re.match(r"[~+]*[\w.@]+=", w) or w.startswith("~")]
    settings = [word for word in settings if not Path(word).exists()]
    for word in settings:
        if (
            Path(word).suffix.lower() in (".gsi", *IMAGE_SUFFIXES)
            and word.partition("=")[0] not in FILE_SETTINGS
        ):
            raise ValueError(
                f"{word}: expected a setting, got the name of a file; for a file of this name say ./{word}"
            )
    return [word for word in words if word not in settings], settings


def _split(words: Sequence[str], known: Mapping[str, Any]) -> tuple[dict[str, Any], Words]:
    """Return the settings that are known here, with their values, and the words that are for others."""
    own = [word for word in words if word.partition("=")[0] in known]
    return parse_arguments(own, known), [word for word in words if word not in own]


def _jobs(own: dict[str, Any], least: int) -> int:
    jobs = own.pop("jobs", least)
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}")
    return jobs


def _numbers(key: str, text: str, kind: type, count: int) -> tuple[Any, ...]:
    """Return `count` numbers, separated by commas."""
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what runs processes, too
    sys.exit(main())
