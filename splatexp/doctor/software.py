"""Checks of installed software: Python, packages, compiler, trackers, video encoder, LPIPS weights."""

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
from splatexp.doctor import processes
from splatexp.doctor.checks import BROKEN, MISSING, OK, CheckResult
from splatexp.doctor.installed import (
    NAME,
    rebuild_command,
    reinstall_command,
    system_package,
    version,
    version_matches,
)

COMPILERS = ("c++", "g++", "clang++")
SOURCE = "#include <vector>\nint main() { if constexpr (sizeof(std::vector<int>) > 0) return 0; }\n"
WEIGHTS = "https://download.pytorch.org/models"  # where torchvision takes them from


def python(seconds: float) -> list[CheckResult]:
    """Check the Python version against what the installed package requires."""
    found, wanted = platform.python_version(), _wanted_python()
    row = CheckResult(name="Python", status=OK, required=True, detail=f"{found}, {sys.executable}")
    if wanted and not version_matches(wanted, found):
        row.status, row.reason = BROKEN, f"expected {wanted}"
        row.remedy = "python3.12 -m venv .venv && . .venv/bin/activate   # and install there"
    return [row]


def splatexp_package(seconds: float) -> list[CheckResult]:
    """Check splatexp itself: version, hash of the code, revision and folder."""
    from splatexp.provenance.environment import code_hash, git_revision

    revision = git_revision() or ""
    commit = revision[:12] + "-dirty" * revision.endswith("-dirty")
    place = Path(splatexp.__file__).parent
    detail = f"{splatexp.__version__}, code {code_hash()[:12]}, git {commit or 'none'}, in {place}"
    row = CheckResult(name="splatexp", status=OK, detail=detail)
    installed = version(NAME)
    if installed != splatexp.__version__:
        row.status, row.remedy = BROKEN, rebuild_command()
        row.reason = f"installed is {installed or 'none'}: its requirements are not those of this code"
    return [row]


def packages(seconds: float) -> list[CheckResult]:
    """Check the required packages, and those of each extra."""
    try:
        wanted = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        reason = "splatexp is not installed: what it requires is not known"
        return [CheckResult(name="packages", status=MISSING, reason=reason, remedy=rebuild_command())]
    extras = metadata.metadata(NAME).get_all("Provides-Extra") or []
    plain = _asked(wanted, "")
    rows = [_row("packages", plain)]
    for extra in sorted(extras):
        rows.append(_row(f"extra {extra}", [each for each in _asked(wanted, extra) if each not in plain]))
    return rows


def compiler(seconds: float) -> list[CheckResult]:
    """Check for a C++17 compiler, which the installation needs, by compiling a line."""
    row = CheckResult(name="C++ compiler", status=MISSING, remedy=system_package("c++"))
    row.reason = f"none of {', '.join(COMPILERS)} is in PATH; needed to install"
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        command = name.split()
        if not command or shutil.which(command[0]) is None:
            continue
        syntax = ["-std=c++17", "-x", "c++", "-fsyntax-only", "-"]
        answer = processes.run_command([*command, *syntax], 0.7 * seconds, SOURCE)
        told = processes.run_command([*command, "--version"], 0.3 * seconds).text.partition("\n")[0]
        row.detail = f"{shutil.which(command[0])}: {told}" if told else str(shutil.which(command[0]))
        row.status, row.reason = (BROKEN, answer.failure) if answer.failure else (OK, "")
        row.remedy = row.remedy if answer.failure else ""
        break
    return [row]


def wandb(seconds: float) -> list[CheckResult]:
    """Check Weights & Biases: whether it can be imported, and whether runs go online."""
    from splatexp.tracking.wandb import logged_in

    row, worked = import_check("wandb", seconds)
    mode = os.environ.get("WANDB_MODE", "")
    if not worked:
        row.reason += "; tracker=[console,csv,tensorboard] does without"
    elif mode:
        row.detail += f"; {mode}, error_line WANDB_MODE"
    elif logged_in():
        row.detail += "; logged in, runs go online"
    else:
        row.detail += "; works offline, runs stay in their folder's wandb/"
        row.reason, row.remedy = "not logged in", "wandb login"
    return [row]


def tensorboard(seconds: float) -> list[CheckResult]:
    """Check that event files for TensorBoard can be written."""
    return [import_check("tensorboard", seconds)[0]]


def video_encoder(seconds: float) -> list[CheckResult]:
    """Check the encoder of turntable.mp4."""
    answer = processes.run_probe("video", seconds)
    row = CheckResult(name="video encoding", status=OK)
    if "path" in answer.facts:
        own = "imageio_ffmpeg" in answer.facts["path"]
        row.detail = f"ffmpeg {answer.facts['version']}"
        row.detail += " of imageio-ffmpeg" if own else f", {answer.facts['path']}"
    if answer.failure:
        row.status, row.reason = BROKEN, answer.failure
        row.remedy = reinstall_command("imageio-ffmpeg", answer.failure)
        row.remedy += "   # or name one: IMAGEIO_FFMPEG_EXE=<ffmpeg>"
        row.reason += "; evaluate.turntable=false does without"
    return [row]


def lpips(folder: str, seconds: float) -> list[CheckResult]:
    """Check the weights of LPIPS in `folder`, or for "" in torch's cache, which a run does not use."""
    from splatexp.evaluation.metrics import BACKBONES

    wanted = list(BACKBONES.values())
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("TORCH_HOME") or f"{caches}/torch") / "hub" / "checkpoints"
    place = Path(folder or cache).expanduser()
    there = [name for name in wanted if (place / name).is_file()]
    wrong = [name for name in there if not _whole(place / name)]
    absent = [name for name in wanted if name not in there]
    row = CheckResult(name="LPIPS weights", status=BROKEN if wrong else MISSING if absent else OK)
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


def import_check(name: str, seconds: float) -> tuple[CheckResult, dict[str, Any]]:
    """Import a package in another process; return the result and its facts, {} where the import failed."""
    row, installed = CheckResult(name=name, status=OK, detail=version(name) or ""), version(name)
    answer = processes.run_probe(name, seconds)
    row.detail = answer.facts.get("version", row.detail)
    if answer.failure:
        missing = not installed and "ModuleNotFoundError" in answer.failure
        row.status = MISSING if missing else BROKEN
        row.reason = "not installed" if missing else f"{failed(answer.facts)}: {answer.failure}"
        row.remedy = reinstall_command(name, answer.failure)
    return row, {} if answer.failure else answer.facts


def failed(facts: Mapping[str, Any]) -> str:
    """Return whether a package failed in its import or later, by what the probe had reported."""
    return "it failed" if "version" in facts else "its import failed"


def _asked(wanted: Iterable[str], extra: str) -> list[tuple[str, str]]:
    """Return name and version specifier of the requirements that apply here, with an extra."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, wanted)
    here = [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [(each.name, str(each.specifier)) for each in here]


def _row(name: str, wanted: Iterable[tuple[str, str]]) -> CheckResult:
    """Return the result for some requirements: their versions, and those that do not match."""
    have = {package: version(package) for package, _ in wanted}
    absent = [package for package, _ in wanted if have[package] is None]
    wrong = [
        each for each in wanted if each[0] not in absent and not version_matches(each[1], have[each[0]] or "")
    ]
    reasons = [f"not installed: {', '.join(absent)}"] if absent else []
    reasons += [f"{package} {have[package]} is not {specifier}" for package, specifier in wrong]
    bad = [f"'{''.join(each)}'" for each in wanted if each[0] in absent or each in wrong]
    return CheckResult(
        name=name,
        status=BROKEN if wrong else MISSING if absent else OK,
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
    """Return whether the SHA-256 of a file begins with the digits at the end of its name."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest().startswith(path.stem.rsplit("-", 1)[-1])
