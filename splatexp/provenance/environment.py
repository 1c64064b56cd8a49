"""Provenance of a result: code, data, packages and machine, as written into every result file."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp import __version__
from splatexp.provenance.git import TIMEOUT_SECONDS, git_revision
from splatexp.provenance.git import dirty_diff as dirty_diff

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

SOURCES = ("splatexp", "splatexp_kernels")
PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lpips",
    "gsplat",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "safetensors",
    "plyfile",
    "pillow",
    "triton",
)


def provenance() -> dict[str, Any]:
    """Return command, code hash, git revision (None outside a checkout), package versions, and hardware."""
    return {
        "command": command_line(),
        "code_sha256": code_hash(),
        "git": git_revision(),
        "packages": packages(),
        "hardware": hardware(),
    }


def command_line() -> list[str]:
    """Return the command of this process, the interpreter without its folder: python -m splatexp steps=9."""
    program, *words = sys.orig_argv or [sys.executable]
    return [Path(program).name, *words]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the SHA-256 over the names and bytes of all sources of both packages and the compiled extension.

    The YAML files are not included, since what they set is in the config of a run. So a checkout and an
    installed copy agree as long as they hold the same compiled file.
    """
    digest = hashlib.sha256()
    for name, path in _files():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def data_hashes(scene: Scene) -> dict[str, Any]:
    """Return the SHA-256 of a scene as it was loaded and of every image's pixels, and the number of views."""
    return {
        "data_sha256": scene.fingerprint,
        "train_views": len(scene.train),
        "test_views": len(scene.test),
        "views": {view.name: view.sha256 for view in (*scene.train, *scene.test)},
    }


def packages() -> dict[str, str | None]:
    """Return the version of Python and of each package that can affect a result; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "splatexp": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def hardware() -> dict[str, Any]:
    """Return processor, cores, threads in use, instruction set of the kernels, memory in bytes, and GPU.

    `cuda` is the version that torch was built for, `driver` that of the GPU's driver; None without a GPU.
    """
    import psutil
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        **_kernels(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "cuda": torch.version.cuda if has_gpu else None,
        "driver": _driver() if has_gpu else None,
    }


def _files() -> list[tuple[str, Path]]:
    """Return every file of code, with a name that does not depend on where it is installed."""
    files = []
    for name in SOURCES:
        spec = util.find_spec(name)
        if spec and spec.origin:
            folder = Path(spec.origin).parent
            files += [
                (f"{name}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py")
            ]
    extension = util.find_spec("splatexp_kernels._cpu")  # an editable install has it elsewhere
    if extension and extension.origin:
        files.append(("splatexp_kernels/_cpu", Path(extension.origin)))
    return sorted(files)


def _driver() -> str | None:
    """Return the version of NVIDIA's driver; None where it is unknown."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return output.partition("\n")[0].strip() or None


def cpu_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kernels() -> dict[str, Any]:
    """Return threads and instruction set of the CPU kernels; if they are not built, torch's and None."""
    import torch

    import splatexp_kernels

    try:
        return {"threads": splatexp_kernels.get_num_threads(), "isa": splatexp_kernels.isa()}
    except ImportError:
        return {"threads": torch.get_num_threads(), "isa": None}
