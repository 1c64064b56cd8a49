"""One file or many: what becomes of what, side by side, with a bar; where one fails the rest goes on."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PICTURES += (".tga", ".qoi")


@dataclass(frozen=True)
class Pair:
    """A file and the one that it becomes; named: whether the command says where that lies."""

    source: Path
    target: Path
    named: bool = True


def pairs(names: Sequence[str], kinds: Sequence[str], suffix: str) -> list[Pair]:
    """Which file becomes which: `a`, `a b`, `a folder/`, `folder/ folder/`, `a b c folder/`.

    kinds: suffixes of the files that are taken from a folder, by name. suffix: of what they become, unless
    the target is named; without a target that lies beside its source.
    Raises: FileNotFoundError; NotADirectoryError, IsADirectoryError, PermissionError for a target that cannot
    be written; ValueError where two would become one, or a file itself.
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
        looks = not last.endswith("/") and target.suffix.lower() in (".gsi", *PICTURES)
        if looks or target.is_file():
            got = "a file" if target.is_file() else "a file's name"
            raise ValueError(f"{target}: expected a folder for what becomes of several files, got {got}")
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
            found.append(Pair(file, beside if inside or target is None else target, target is not None))
    found = list(dict.fromkeys(found))
    _hold(found)
    return found


def guard(found: Sequence[Pair]) -> None:
    """No file takes the place of one that the command does not name.  Raises: ValueError."""
    if there := [pair.target for pair in found if not pair.named and pair.target.exists()]:
        more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
        raise ValueError(f"{there[0]}: is there already{more}; name another target, or say overwrite=true")


def _hold(found: Sequence[Pair]) -> None:
    """No two become one, none itself, and all can be written as far as folders go.

    Raises: ValueError, NotADirectoryError, IsADirectoryError, PermissionError.
    """
    taken: dict[Path, Path] = {}
    for pair in found:
        if pair.source.resolve() == pair.target.resolve():
            raise ValueError(f"{pair.source}: expected another file to write to, got itself")
        if (other := taken.setdefault(pair.target.resolve(), pair.source)) != pair.source:
            raise ValueError(f"{other} and {pair.source} would both become {pair.target}")
        if pair.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(pair.target))
        above = next(folder for folder in pair.target.absolute().parents if folder.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        if not os.access(above, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def each(
    found: Sequence[Pair], act: Callable[[Pair], str], jobs: int, say: Callable[[str, bool], None],
    label: str, end: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Do `act` for all pairs, `jobs` at once; `say(line, failed)` gets what it returns, or why it failed.

    A bar where stderr is a terminal and there are several. end: called where this is interrupted, and ends
    what `act` is at.  Returns: how many failed.
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


def _done(pair: Pair, result: Callable[[], str]) -> tuple[str, bool]:
    """What there is to say of a pair, and whether it failed."""
    try:
        return result(), False
    except (OSError, ValueError, ArithmeticError, MemoryError) as error:
        line = one_line(error)
        return (line if str(pair.source) in line else f"{pair.source}: {line}"), True


def one_line(error: Exception) -> str:
    """An error in one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror.lower()}"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror  # without the number in front, which str() puts there
    return " ".join(text.split())


def ended(status: int) -> str:
    """How a process went, in words.  status: as `subprocess` has it."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
