"""Where a number comes from: code, data, packages and machine, as written into every result file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splatexp import __version__
from splatexp.worktree import PATIENCE, git_revision
from splatexp.worktree import dirty_diff as dirty_diff

if TYPE_CHECKING:
    from splatexp.data.scene import Scene

SOURCES = ("splatexp", "splatexp_kernels")
PACKAGES = ("torch", "torchvision", "torchmetrics", "lpips", "gsplat", "hydra-core", "omegaconf", "numpy")
PACKAGES += ("scipy", "safetensors", "plyfile", "pillow", "triton")
UNHEARD = ("tracker", "checkpoint", "resume", "log_every", "threads", "memory", "objective", "evaluate")
UNHEARD += ("force", "ledger", "viewer")


def provenance() -> dict[str, Any]:
    """Command line, code hash, git revision (None outside a checkout), versions of packages, and hardware."""
    return {
        "command": command_line(),
        "code_sha256": code_hash(),
        "git": git_revision(),
        "packages": packages(),
        "hardware": hardware(),
    }


def command_line() -> list[str]:
    """What this process was called with, the interpreter without its folder: python -m splatexp steps=9."""
    program, *words = sys.orig_argv or [sys.executable]
    return [Path(program).name, *words]


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over the names and bytes of all sources of both packages and of the compiled extension.

    The YAML is not in it: what it sets stands in the config of a run. So a checkout and an installed copy
    agree as long as they hold the same compiled file.
    """
    digest = hashlib.sha256()
    for name, path in _files():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def data_hashes(scene: Scene) -> dict[str, Any]:
    """SHA-256 of a scene as it was loaded and of every picture's pixels, and the number of views."""
    return {
        "data_sha256": scene.fingerprint,
        "train_views": len(scene.train),
        "test_views": len(scene.test),
        "views": {view.name: view.sha256 for view in (*scene.train, *scene.test)},
    }


def run_id(config: Mapping[str, Any], data_sha256: str, protocol: str) -> str:
    """16 hex digits that two runs share if they are the same experiment: config, code, data, protocol.

    Left out is what cannot change a number: where it is logged, noted, saved, continued and watched
    (`tracker`, `log_every`, `ledger`, `checkpoint`, `resume`, `force`, `viewer`), what the machine gives
    (`threads`, `memory`), what else is measured and drawn of the result (`evaluate`, `objective`), and where
    the data lie: their hash is heard instead. A .ply to begin with and classes from outside the package
    count by the bytes of their files. So an experiment has one id on every machine that holds the same code,
    the compiled extension included.

    Args:
        config: resolved, with the `_target_` of every part: two classes may have the same settings.
    """
    heard = {key: value for key, value in config.items() if key not in UNHEARD}
    if isinstance(data := heard.get("data"), Mapping):
        heard["data"] = {key: value for key, value in data.items() if key not in ("path", "cache")}
    if isinstance(model := heard.get("model"), Mapping) and model.get("init_path"):
        heard["model"] = {**model, "init_path": _bytes_hash(model["init_path"])}
    outside = {name: _bytes_hash(_source(name)) for name in sorted(set(_outside(heard)))}
    parts = [_canonical(heard), outside, code_hash(), data_sha256, protocol]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    """Processor, cores, threads in use, instruction set of the kernels, memory in bytes, GPU.

    `cuda` is the version that torch was built for, `driver` that of the GPU's driver; None without a GPU.
    """
    import psutil
    import torch

    there = torch.cuda.is_available()
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        **_kernels(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if there else None,
        "cuda": torch.version.cuda if there else None,
        "driver": _driver() if there else None,
    }


def _canonical(part: Any) -> Any:
    """A setting as JSON has it: numbers that are not finite by name, anything that JSON lacks as text."""
    if isinstance(part, Mapping):
        return {str(key): _canonical(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [_canonical(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):
        return str(part)
    return part if part is None or isinstance(part, (str, int, float)) else str(part)


def _outside(part: Any) -> Iterator[str]:
    """The modules of classes in a config that are not of the package."""
    if isinstance(part, Mapping):
        name = part.get("_target_")
        if isinstance(name, str) and name.partition(".")[0] not in SOURCES:
            yield name.rpartition(".")[0]
        part = list(part.values())
    for value in part if isinstance(part, (list, tuple)) else ():
        yield from _outside(value)


def _source(module: str) -> str:
    """The file of a module; its name where it has none."""
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    return spec.origin if spec and spec.origin else module


def _bytes_hash(path: str | Path) -> str:
    """SHA-256 of a file; its path where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return str(path)


def _files() -> list[tuple[str, Path]]:
    """Every file that is run, by a name that does not depend on where it lies."""
    found = []
    for name in SOURCES:
        spec = util.find_spec(name)
        if spec and spec.origin:
            folder = Path(spec.origin).parent
            found += [
                (f"{name}/{path.relative_to(folder).as_posix()}", path) for path in folder.rglob("*.py")
            ]
    extension = util.find_spec("splatexp_kernels._cpu")  # of an editable install it lies elsewhere
    if extension and extension.origin:
        found.append(("splatexp_kernels/_cpu", Path(extension.origin)))
    return sorted(found)


def _driver() -> str | None:
    """Version of NVIDIA's driver; None where nothing tells it."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.partition("\n")[0].strip() or None


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
