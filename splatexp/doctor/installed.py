"""Versions of installed packages, and the commands that install what is missing."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

import splatexp

NAME = "splatexp"
TOOLS = {  # package manager -> program -> command; the first installed manager counts
    "apt-get": {"c++": "sudo apt-get install g++", "nvcc": "sudo apt-get install nvidia-cuda-toolkit"},
    "dnf": {"c++": "sudo dnf install gcc-c++"},
    "apk": {"c++": "apk add g++"},
    "pacman": {"c++": "sudo pacman -S gcc", "nvcc": "sudo pacman -S cuda"},
    "conda": {
        "c++": "conda install -c conda-forge cxx-compiler",
        "nvcc": "conda install -c nvidia cuda-nvcc",
    },
    "xcode-select": {"c++": "xcode-select --install"},
}


def version(name: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_matches(specifier: str, found: str) -> bool:
    """Return whether a version satisfies a specifier."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(found, prereleases=True)


def pip_command(*names: str, again: bool = False) -> str:
    """Return the command that installs packages in the required versions.

    again: reinstall what is there.
    """
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        lines = []
    versions = dict(re.findall(r"^([\w.-]+)\s*([^;\s]*)", "\n".join(lines), re.MULTILINE))
    words = [f"'{name}{versions[name]}'" if versions.get(name) else name for name in names]
    return " ".join(["pip install", *["--force-reinstall"] * again, *words])


def reinstall_command(name: str, failure: str) -> str:
    """Return the command that repairs a package whose import failed: pip installs or reinstalls it."""
    return pip_command(name, again="ModuleNotFoundError" not in failure)


def rebuild_command() -> str:
    """Return the command that rebuilds the kernels of this copy."""
    root = Path(splatexp.__file__).parents[1]
    return f"pip install -e {root}" if (root / "pyproject.toml").is_file() else "pip install <its sources>"


def system_package(thing: str) -> str:
    """Return the command that installs a compiler, or advice where the package manager is unknown."""
    for manager, commands in TOOLS.items():
        if thing in commands and shutil.which(manager):
            return commands[thing]
    words = {
        "c++": "install GCC or Clang",
        "nvcc": "install CUDA: https://developer.nvidia.com/cuda-downloads",
    }
    return words[thing]
