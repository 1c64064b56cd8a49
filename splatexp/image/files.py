"""Conversion of one or many files: which file becomes which, run in parallel with a progress bar, where a
failure does not stop the rest.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGE_SUFFIXES += (".tga", ".qoi")


@dataclass(frozen=True)
class FilePair:
    """A file and the file that it is converted to."""

    source: Path
    target: Path
    named: bool = True  # whether the command line names the target, or the folder that it lies in


def file_pairs(names: Sequence[str], kinds: Sequence[str], suffix: str) -> list[FilePair]:
    """Return which file becomes which, for `a`, `a b`, `a folder/`, `folder/ folder/` and `a b c folder/`.

    Args:
        kinds: suffixes of the files that are taken from a folder, in the order of their names.
        suffix: of the targets that are not named; without a target they lie beside their sources.

    Raises: FileNotFoundError; NotADirectoryError, IsADirectoryError, PermissionError for a target that cannot
        be written; ValueError where two files would become one, or a file itself.
    """
    if not names:
        raise ValueError("expected a file or a folder")
    last = names[-1] if len(names) > 1 else ""
    sources = [Path(name) for name in (names[:-1] or names)]
    target = Path(last) if last else None
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"{source}: no such file or folder")
    folders = any(source.is_dir() for source in sources)
    inside = target is not None and (folders or len(sources) > 1 or last.endswith("/") or target.is_dir())
    if inside and target is not None and not target.is_dir():
        file_name = not last.endswith("/") and target.suffix.lower() in (".gsi", *IMAGE_SUFFIXES)
        if file_name or target.is_file():
            got = "a file" if target.is_file() else "the name of a file"
            raise ValueError(f"{target}: expected a folder for the converted files, got {got}")
    found = []
    for source in sources:
        files = [source]
        if source.is_dir():
            files = sorted(p for p in source.iterdir() if p.suffix.lower() in kinds and p.is_file())
            if not files:
                raise FileNotFoundError(f"{source}: expected files of {' '.join(kinds)}, found none")
        for file in files:
            folder = target if inside and target is not None else file.parent
            beside = folder / f"{file.stem}{suffix}"
            found.append(FilePair(file, beside if inside or target is None else target, target is not None))
    found = list(dict.fromkeys(found))
    _check_targets(found)
    return found


def check_overwrite(found: Sequence[FilePair]) -> None:
    """Check that no target exists which the command line does not name.

    Raises: ValueError.
    """
    if there := [pair.target for pair in found if not pair.named and pair.target.exists()]:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ValueError(f"{there[0]} exists already{more}; name a different target, or say overwrite=true")


def _check_targets(found: Sequence[FilePair]) -> None:
    """Check that no two files become one, none becomes itself, and that all folders can be written to.

    Raises: ValueError, NotADirectoryError, IsADirectoryError, PermissionError.
    """
    taken: dict[Path, Path] = {}
    for pair in found:
        if pair.source.resolve() == pair.target.resolve():
            raise ValueError(f"{pair.source}: expected a target that differs from the source")
        if (other := taken.setdefault(pair.target.resolve(), pair.source)) != pair.source:
            raise ValueError(f"{pair.target}: expected one source, got {other} and {pair.source}")
        if pair.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(pair.target))
        above = next(folder for folder in pair.target.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def run_each(
    found: Sequence[FilePair],
    act: Callable[[FilePair], str],
    jobs: int,
    say: Callable[[str, bool], None],
    label: str,
    end: Callable[[], None] = lambda: None,
) -> int:
    """Run `act` for all pairs, `jobs` at a time; pass what it returns, or why it failed, to `say(line,
    failed)`.

    A progress bar is shown where stderr is a terminal and there are several pairs. `end` is called where this
    is interrupted, and should stop what `act` has started.

    Returns: the number of failures.
    """
    failed = 0
    if len(found) == 1:  # nothing to show, so nothing to import
        line, bad = _done(found[0], lambda: act(found[0]))
        say(line, bad)
        return int(bad)
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*parts, console=console, disable=not console.is_terminal)
    with bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(label, total=len(found))
        try:
            tasks = {pool.submit(act, pair): pair for pair in found}
            for done in as_completed(tasks):
                line, bad = _done(tasks[done], done.result)
                failed += bad
                say(line, bad)
                bar.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end()
            raise
    return failed


def _done(pair: FilePair, result: Callable[[], str]) -> tuple[str, bool]:
    """Return the message about a pair, and whether it failed."""
    try:
        return result(), False
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        line = one_line(error)
        return (line if str(pair.source) in line else f"{pair.source}: {line}"), True


def one_line(error: Exception) -> str:
    """Return an error in one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror  # without the number in front, which str() puts there
    return " ".join(text.split())


def exit_reason(status: int) -> str:
    """Return how a process ended, in words, from its status as `subprocess` returns it."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
