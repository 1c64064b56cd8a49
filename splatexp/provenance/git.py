"""The git checkout to which this package belongs: its commit, and the differences from it.

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

TIMEOUT_SECONDS = 10.0  # for all calls of git together
MAX_FILE_BYTES = 1_000_000  # a larger untracked file is named in the patch, without its contents
MAX_TOTAL_BYTES = 8_000_000  # of all untracked files in the patch
GIT_VARIABLES = (  # of the environment (GIT_<name>), which a hook may have set for another repository
    "DIR",
    "WORK_TREE",
    "INDEX_FILE",
    "COMMON_DIR",
    "PREFIX",
    "NAMESPACE",
    "OBJECT_DIRECTORY",
    "ALTERNATE_OBJECT_DIRECTORIES",
    "LITERAL_PATHSPECS",
    "EXTERNAL_DIFF",
)
DIFF_OPTIONS = (  # override the user's own configuration
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-renames",
    "--full-index",
    "--unified=3",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--submodule=short",
)


@lru_cache(maxsize=1)
def git_revision(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the checkout of `file`, with `-dirty` if files differ; None without a checkout."""
    git = partial(_git, file.parent, time.monotonic() + TIMEOUT_SECONDS)
    try:
        git("ls-files", "--error-unmatch", file.name)  # an installed copy may lie in an unrelated checkout
        changed = git("status", "--porcelain", "--untracked-files=normal")
        return git("rev-parse", "HEAD").decode().strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


@lru_cache(maxsize=1)
def dirty_diff(file: Path = Path(__file__)) -> str:
    """Return how the checkout to which `file` belongs differs from its commit, as a patch for `git apply`.

    Untracked files that git does not ignore are additions; binary and large ones are only named. The patch is
    "" where nothing differs and outside a checkout. The function takes at most `TIMEOUT_SECONDS` and raises
    nothing: where git fails, a comment line gives the reason.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        try:
            _git(file.parent, deadline, "ls-files", "--error-unmatch", file.name)
            root = _git(file.parent, deadline, "rev-parse", "--show-toplevel")
        except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or no checkout
            return ""
        return _patch(Path(os.fsdecode(root.removesuffix(b"\n"))), deadline)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        fatal = [line for line in lines if line.startswith("fatal")]
        reason = (fatal or lines or [f"exit status {error.returncode}"])[-1]
        return f"# git failed: {reason}\n"
    except subprocess.TimeoutExpired:
        return f"# git failed: it took more than {TIMEOUT_SECONDS:g} s\n"
    except OSError as error:
        return f"# git failed: {error}\n"


def _git(
    folder: Path, deadline: float, *arguments: str, stdin: bytes = b"", index: Path | None = None
) -> bytes:
    """Run git in a folder and return its output; it writes nothing and ignores `GIT_VARIABLES`.

    Raises: OSError, subprocess.SubprocessError.
    """
    ignored = {f"GIT_{name}" for name in GIT_VARIABLES}
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    if index is not None:
        environment["GIT_INDEX_FILE"] = str(index)
    options = ["-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.splitIndex=false"]
    return subprocess.run(
        ["git", *options, *arguments],
        input=stdin,
        capture_output=True,
        timeout=max(deadline - time.monotonic(), 0.01),
        check=True,
        env=environment,
    ).stdout


def _patch(root: Path, deadline: float) -> str:
    """Return `git diff HEAD` for a copy of the index to which the untracked files are added as empty ones."""
    git = partial(_git, root, deadline)
    names = git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    included, comments = _small_files(root, names)
    with TemporaryDirectory() as folder:
        index = Path(folder, "index")
        original = git("rev-parse", "--git-path", "index").removesuffix(b"\n")
        shutil.copyfile(root / os.fsdecode(original), index)
        if included:
            empty = git("hash-object", "--stdin").strip()
            entries = b"".join(b"100644 %s\t%s\0" % (empty, name) for name in included)
            git("update-index", "-z", "--add", "--replace", "--index-info", stdin=entries, index=index)
        changes = git("diff", *DIFF_OPTIONS, "HEAD", index=index)
    return "".join(comments) + changes.decode(errors="replace")


def _small_files(root: Path, names: list[bytes]) -> tuple[list[bytes], list[str]]:
    """Return the untracked files that are small enough for the patch, and a comment for each other one."""
    included, comments, total = [], [], 0
    for name in names:
        path = root / os.fsdecode(name)
        try:
            size = path.lstat().st_size
        except OSError:  # deleted in the meantime
            continue
        readable = path.is_symlink() or (path.is_file() and os.access(path, os.R_OK))
        if readable and size <= MAX_FILE_BYTES and total + size <= MAX_TOTAL_BYTES:
            included.append(name)
            total += size
        else:
            comments.append(f"# untracked, not shown: {os.fsdecode(name)!r}, {size} bytes\n")
    return included, comments
