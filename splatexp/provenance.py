"""Where a number comes from: code, packages and machine, as written into every result file."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from splatexp import __version__

SOURCES = ("splatexp", "splatexp_kernels")
PACKAGES = ("torch", "torchvision", "torchmetrics", "lpips", "gsplat", "hydra-core", "omegaconf", "numpy")
HASHED = {".py", ".yaml", ".so", ".pyd"}


def provenance() -> dict[str, Any]:
    """Code hash, git revision (None outside a checkout), versions of packages, and the hardware."""
    return {"code_sha256": code_hash(), "git": git_revision(), "packages": packages(), "hardware": hardware()}


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over the names and bytes of every source, config and compiled file of both packages."""
    digest = hashlib.sha256()
    for name, folder in _folders():
        for path in sorted(path for path in folder.rglob("*") if path.suffix in HASHED):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def git_revision() -> str | None:
    """The commit of the checkout that this file belongs to, `-dirty` when files differ from it; else None."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in a stranger's checkout
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def packages() -> dict[str, str | None]:
    """Version of Python and of each package that has a say in the numbers; None = not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "splatexp": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def hardware() -> dict[str, Any]:
    """Processor, cores, threads in use, instruction set of the kernels, memory in bytes, GPU."""
    import psutil
    import torch

    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        **_kernels(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _folders() -> list[tuple[str, Path]]:
    specs = [(name, util.find_spec(name)) for name in SOURCES]
    return [(name, Path(spec.origin).parent) for name, spec in specs if spec and spec.origin]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kernels() -> dict[str, Any]:
    """Threads and instruction set of the CPU kernels; of torch and none where they are not built."""
    import torch

    import splatexp_kernels

    try:
        return {"threads": splatexp_kernels.get_num_threads(), "isa": splatexp_kernels.isa()}
    except ImportError:
        return {"threads": torch.get_num_threads(), "isa": None}
