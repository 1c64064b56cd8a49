"""What is installed, in which version, and the commands that install what is not."""

from __future__ import annotations

import re
import shutil
from importlib import metadata
from pathlib import Path

import splatexp

NAME = "splatexp"
TOOLS = {  # manager -> thing -> command; the first manager that is there
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
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(specifier: str, found: str) -> bool:
    """Whether a version is one of those that are asked for."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(found, prereleases=True)


def pip(*names: str, again: bool = False) -> str:
    """The command that installs packages in the versions that are required; again: over what is there."""
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        lines = []
    versions = dict(re.findall(r"^([\w.-]+)\s*([^;\s]*)", "\n".join(lines), re.MULTILINE))
    words = [f"'{name}{versions[name]}'" if versions.get(name) else name for name in names]
    return " ".join(["pip install", *["--force-reinstall"] * again, *words])


def mend(name: str, failure: str) -> str:
    """The command for a package whose import failed: pip adds what is not there, or lays all of it anew."""
    return pip(name, again="ModuleNotFoundError" not in failure)


def install() -> str:
    """The command that builds the kernels of this copy again."""
    root = Path(splatexp.__file__).parents[1]
    return f"pip install -e {root}" if (root / "pyproject.toml").is_file() else "pip install <its sources>"


def system_package(thing: str) -> str:
    """How a system's own tool installs a compiler; where it looks unknown, in words."""
    for manager, commands in TOOLS.items():
        if thing in commands and shutil.which(manager):
            return commands[thing]
    words = {
        "c++": "install GCC or Clang",
        "nvcc": "install CUDA: https://developer.nvidia.com/cuda-downloads",
    }
    return words[thing]
