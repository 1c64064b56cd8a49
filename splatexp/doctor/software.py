"""The checks of what is installed: Python, packages, this package, compiler, trackers, encoder, weights."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import splatexp
from splatexp.doctor import child
from splatexp.doctor.installed import NAME, fits, install, mend, system_package, version
from splatexp.doctor.rows import BROKEN, MISSING, WORKS, Row

COMPILERS = ("c++", "g++", "clang++")
SOURCE = "#include <vector>\nint main() { if constexpr (sizeof(std::vector<int>) > 0) return 0; }\n"
WEIGHTS = "https://download.pytorch.org/models"  # where torchvision takes them from


def python(seconds: float) -> list[Row]:
    """The interpreter, against what the installed package wants."""
    found, wanted = platform.python_version(), _wanted_python()
    row = Row(name="Python", state=WORKS, needed=True, detail=f"{found}, {sys.executable}")
    if wanted and not fits(wanted, found):
        row.state, row.reason = BROKEN, f"expected {wanted}"
        row.remedy = "python3.12 -m venv .venv && . .venv/bin/activate   # and install there"
    return [row]


def this(seconds: float) -> list[Row]:
    """splatexp itself: version, hash of its code, revision, place."""
    from splatexp.provenance.environment import code_hash, git_revision

    revision = git_revision() or ""
    commit = revision[:12] + "-dirty" * revision.endswith("-dirty")
    place = Path(splatexp.__file__).parent
    detail = f"{splatexp.__version__}, code {code_hash()[:12]}, git {commit or 'none'}, in {place}"
    row = Row(name="splatexp", state=WORKS, detail=detail)
    installed = version(NAME)
    if installed != splatexp.__version__:
        row.state, row.remedy = BROKEN, install()
        row.reason = f"installed is {installed or 'none'}: its requirements are not those of this code"
    return [row]


def packages(seconds: float) -> list[Row]:
    """What the installed package requires, and what each of its extras does."""
    try:
        wanted = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        reason = "splatexp is not installed: what it requires is not known"
        return [Row(name="packages", state=MISSING, reason=reason, remedy=install())]
    extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    plain = _asked(wanted, "")
    rows = [_row("packages", plain)]
    for extra in sorted(extras):
        rows.append(_row(f"extra {extra}", [each for each in _asked(wanted, extra) if each not in plain]))
    return rows


def compiler(seconds: float) -> list[Row]:
    """A C++17 compiler, as the installation needs it: it compiles a line."""
    row = Row(name="C++ compiler", state=MISSING, remedy=system_package("c++"))
    row.reason = f"none of {', '.join(COMPILERS)} is in PATH; needed to install"
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        command = name.split()
        if not command or shutil.which(command[0]) is None:
            continue
        syntax = ["-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
        answer = child.ask([*command, *syntax], 0.7 * seconds, SOURCE)
        told = child.ask([*command, "--version"], 0.3 * seconds).text.partition("\n")[0]
        row.detail = f"{shutil.which(command[0])}: {told}" if told else str(shutil.which(command[0]))
        row.state, row.reason = (BROKEN, answer.failure) if answer.failure else (WORKS, "")
        row.remedy = row.remedy if answer.failure else ""
        break
    return [row]


def wandb(seconds: float) -> list[Row]:
    """Weights & Biases: whether it imports, and where its runs go."""
    from splatexp.tracking.wandb import _logged_in

    row, worked = imported("wandb", seconds)
    mode = os.environ.get("WANDB_MODE", "")
    if not worked:
        row.reason += "; tracker=[console,csv,tensorboard] does without"
    elif mode:
        row.detail += f"; {mode}, says WANDB_MODE"
    elif _logged_in():
        row.detail += "; logged in, runs go online"
    else:
        row.detail += "; works offline, runs stay in their folder's wandb/"
        row.reason, row.remedy = "not logged in", "wandb login"
    return [row]


def tensorboard(seconds: float) -> list[Row]:
    """TensorBoard: whether event files can be written."""
    return [imported("tensorboard", seconds)[0]]


def film(seconds: float) -> list[Row]:
    """The encoder of turntable.mp4."""
    answer = child.probe("film", seconds)
    row = Row(name="film writing", state=WORKS)
    if "path" in answer.facts:
        own = "imageio_ffmpeg" in answer.facts["path"]
        row.detail = f"ffmpeg {answer.facts['version']}"
        row.detail += " of imageio-ffmpeg" if own else f", {answer.facts['path']}"
    if answer.failure:
        row.state, row.reason = BROKEN, answer.failure
        row.remedy = mend("imageio-ffmpeg", answer.failure)
        row.remedy += "   # or name one: IMAGEIO_FFMPEG_EXE=<ffmpeg>"
        row.reason += "; evaluate.turntable=false does without"
    return [row]


def lpips(folder: str, seconds: float) -> list[Row]:
    """The backbones of LPIPS in `folder`, "": torch's cache. A run asks `evaluate.lpips_weights` alone."""
    from splatexp.evaluation.metrics import BACKBONES

    wanted = list(BACKBONES.values())
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("TORCH_HOME") or f"{caches}/torch") / "hub" / "checkpoints"
    place = Path(folder or cache).expanduser()
    there = [name for name in wanted if (place / name).is_file()]
    wrong = [name for name in there if not _whole(place / name)]
    absent = [name for name in wanted if name not in there]
    row = Row(name="LPIPS weights", state=BROKEN if wrong else MISSING if absent else WORKS)
    if there:
        row.detail = f"{', '.join(there)}; used with evaluate.lpips_weights={place}"
    reasons = [f"{name} does not have the SHA-256 that its name gives" for name in wrong]
    reasons += [f"no {' and no '.join(absent)} in {place}"] if absent else []
    row.reason = "; ".join(reasons)
    if reasons:
        stems = ",".join(Path(name).stem for name in wrong + absent)
        stems = f"{{{stems}}}" if len(reasons) > 1 or len(absent) > 1 else stems
        row.remedy = f"curl -L --remote-name-all --create-dirs --output-dir {folder or 'lpips'} "
        row.remedy += f"'{WEIGHTS}/{stems}.pth'   # then evaluate.lpips_weights={folder or 'lpips'}"
    return [row]


def imported(name: str, seconds: float) -> tuple[Row, dict[str, Any]]:
    """The row of a package that was imported in a process of its own; its facts, {} where that failed."""
    row, installed = Row(name=name, state=WORKS, detail=version(name) or ""), version(name)
    answer = child.probe(name, seconds)
    row.detail = answer.facts.get("version", row.detail)
    if answer.failure:
        missing = not installed and "ModuleNotFoundError" in answer.failure
        row.state = MISSING if missing else BROKEN
        row.reason = "not installed" if missing else f"{failed(answer.facts)}: {answer.failure}"
        row.remedy = mend(name, answer.failure)
    return row, {} if answer.failure else answer.facts


def failed(facts: Mapping[str, Any]) -> str:
    """What of a package did not go well, by what its probe had found till then."""
    return "it failed" if "version" in facts else "its import failed"


def _asked(wanted: Iterable[str], extra: str) -> list[tuple[str, str]]:
    """Name and versions of what is required here, with an extra."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, wanted)
    here = [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [(each.name, str(each.specifier)) for each in here]


def _row(name: str, wanted: Iterable[tuple[str, str]]) -> Row:
    """The row of some requirements: their versions, and those that do not fit."""
    have = {package: version(package) for package, _ in wanted}
    absent = [package for package, _ in wanted if have[package] is None]
    wrong = [each for each in wanted if each[0] not in absent and not fits(each[1], have[each[0]] or "")]
    reasons = [f"not installed: {', '.join(absent)}"] if absent else []
    reasons += [f"{package} {have[package]} is not {specifier}" for package, specifier in wrong]
    bad = [f"'{''.join(each)}'" for each in wanted if each[0] in absent or each in wrong]
    return Row(
        name=name,
        state=BROKEN if wrong else MISSING if absent else WORKS,
        detail=", ".join(f"{package} {found}" for package, found in have.items() if found),
        reason="; ".join(reasons),
        remedy=f"pip install {' '.join(bad)}" if bad else "",
    )


def _wanted_python() -> str:
    try:
        return metadata.metadata(NAME)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return ""


def _whole(path: Path) -> bool:
    """Whether a file has the SHA-256 whose first digits end its name."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest().startswith(path.stem.rsplit("-", 1)[-1])
