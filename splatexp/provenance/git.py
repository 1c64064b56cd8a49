"""The checkout that this package belongs to, as git sees it: its commit, and what differs from it.

Nothing is written into the checkout, not even into its index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE = 10.0  # seconds that git may take
SHOWN = 1_000_000  # bytes of an untracked file that is shown; a larger one is named
SHOWN_TOGETHER = 8_000_000  # bytes of all of them
STEERING = ("DIR", "WORK_TREE", "INDEX_FILE", "COMMON_DIR", "PREFIX", "NAMESPACE", "OBJECT_DIRECTORY")
STEERING += ("ALTERNATE_OBJECT_DIRECTORIES", "LITERAL_PATHSPECS", "EXTERNAL_DIFF")
PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--full-index", "--unified=3")
PLAIN += ("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short")  # whatever the user's own config says


@lru_cache(maxsize=1)
def git_revision(here: Path = Path(__file__)) -> str | None:
    """The commit of the checkout that this file belongs to, `-dirty` when files differ from it; else None."""
    git = partial(_git, here.parent, time.monotonic() + PATIENCE)
    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in a stranger's checkout
        changed = git("status", "--porcelain", "--untracked-files=normal")
        return git("rev-parse", "HEAD").decode().strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=1)
def dirty_diff(here: Path = Path(__file__)) -> str:
    """How the checkout that this file belongs to differs from its commit, as a patch for `git apply`.

    An untracked file that git does not ignore is an addition; a binary or large one is only named. "" where
    nothing differs and outside a checkout. Takes 10 seconds at most and raises nothing: where git failed, a
    comment line says how.
    """
    until = time.monotonic() + PATIENCE
    try:
        try:
            _git(here.parent, until, "ls-files", "--error-unmatch", here.name)
            root = _git(here.parent, until, "rev-parse", "--show-toplevel")
        except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
            return ""
        return _patch(Path(os.fsdecode(root.removesuffix(b"\n"))), until)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        reason = [line for line in said if line.startswith("fatal")] or said or [str(error.returncode)]
        return f"# git failed: {reason[-1]}\n"
    except subprocess.TimeoutExpired:
        return f"# git failed: it took more than {PATIENCE:g} s\n"
    except OSError as error:
        return f"# git failed: {error}\n"


def _git(folder: Path, until: float, *words: str, given: bytes = b"", index: Path | None = None) -> bytes:
    """What git prints in a folder; nothing of the checkout is written, and nothing around it steers it.

    Raises: OSError, subprocess.SubprocessError.
    """
    steering = {f"GIT_{name}" for name in STEERING}  # of a hook that this may run in
    variables = {name: value for name, value in os.environ.items() if name not in steering}
    variables["GIT_OPTIONAL_LOCKS"] = "0"
    if index is not None:
        variables["GIT_INDEX_FILE"] = str(index)
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.splitIndex=false", *words]
    patience = max(until - time.monotonic(), 0.01)
    done = subprocess.run(
        command, input=given, capture_output=True, timeout=patience, check=True, env=variables
    )
    return done.stdout


def _patch(root: Path, until: float) -> str:
    """`git diff HEAD` with a copy of the index in which the untracked files are entered, as empty ones."""
    git = partial(_git, root, until)
    names = git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    shown, lines = _worth_showing(root, names)
    with TemporaryDirectory() as folder:
        index = Path(folder, "index")
        place = git("rev-parse", "--git-path", "index").removesuffix(b"\n")
        shutil.copyfile(root / os.fsdecode(place), index)
        if shown:
            nothing = git("hash-object", "--stdin").strip()
            entries = b"".join(b"100644 %s\t%s\0" % (nothing, name) for name in shown)
            git("update-index", "-z", "--add", "--replace", "--index-info", given=entries, index=index)
        changes = git("diff", *PLAIN, "HEAD", index=index)
    return "".join(lines) + changes.decode(errors="replace")


def _worth_showing(root: Path, names: list[bytes]) -> tuple[list[bytes], list[str]]:
    """Of untracked files those that are small enough, and a comment line for each of the others."""
    shown, lines, total = [], [], 0
    for name in names:
        path = root / os.fsdecode(name)
        try:
            size = path.lstat().st_size
        except OSError:  # gone since
            continue
        plain = path.is_symlink() or (path.is_file() and os.access(path, os.R_OK))
        if plain and size <= SHOWN and total + size <= SHOWN_TOGETHER:
            shown.append(name)
            total += size
        else:
            lines.append(f"# untracked, not shown: {os.fsdecode(name)!r}, {size} bytes\n")
    return shown, lines
