"""gsplat's CUDA extension: whether it can be had here, and why it could not be made.

gsplat compiles it when it is first used, which takes minutes and nvcc. Where that fails, pages tell so; where
there is no nvcc, an attribute of None is missing. Here either is one line.
"""

import shutil
from importlib import import_module, util
from pathlib import Path

import torch

from splatexp_kernels import door

INSTALL = "pip install 'gsplat>=1.5.3'"
REMEDIES = (  # what the failure says, in lower case -> what helps
    ("ninja is required", "pip install ninja"),
    (
        "unsupported gnu version",
        "NVCC_PREPEND_FLAGS='-ccbin g++-<older>' lets nvcc take another g++",
    ),
    ("mismatches the version", "install the nvcc of CUDA {cuda}, for which torch is built"),
    ("unsupported gpu architecture", "install a newer nvcc, of CUDA {cuda} as torch is built for"),
    ("no kernel image", "TORCH_CUDA_ARCH_LIST='{arch}' and a new compilation: remove {folder}"),
    ("glm", f"{INSTALL} --force-reinstall --no-cache-dir"),
    (
        "undefined symbol",
        "it is of another torch: remove {folder}, or {install} --force-reinstall",
    ),
    ("cannot open shared object", "install CUDA {cuda}'s runtime, or remove {folder} to compile it anew"),
    ("killed", "MAX_JOBS=1 compiles one file at a time, with less memory"),
    ("no space left", "TORCH_EXTENSIONS_DIR=<folder> compiles elsewhere"),
)
OTHERWISE = "VERBOSE=1 python -c 'from gsplat.cuda._backend import _C' shows all of it"


def missing(build: bool = True) -> str:
    """Why gsplat cannot draw on this machine, then what helps, in one line; "" where it can.

    Looks at files alone: nothing is compiled, and without a CUDA device gsplat is not imported.

    Args:
        build: what nvcc can still compile counts as there.
    """
    if not torch.cuda.is_available():
        return door.gpu_missing()
    if util.find_spec("gsplat") is None:
        return f"gsplat is not installed; {INSTALL}"
    if compiled():
        return ""
    if not nvcc():
        return (
            "gsplat's CUDA extension is not compiled, and there is no nvcc to compile it; install the nvcc "
            f"of CUDA {torch.version.cuda}, or a gsplat that comes compiled (https://docs.gsplat.studio)"
        )
    return "" if build else "gsplat's CUDA extension is not compiled; raster=gsplat compiles it, in minutes"


def compiled() -> str:
    """The file of the extension, from a wheel or compiled here before; "" where there is none."""
    wheel = util.find_spec("gsplat.csrc")
    if wheel is not None and wheel.origin:  # a folder of sources has none
        return wheel.origin
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(get_default_build_root())
    found = [*root.glob("gsplat_cuda/gsplat_cuda*.so"), *root.glob("*/gsplat_cuda/gsplat_cuda*.so")]
    return str(min(found, default=""))


def nvcc() -> str:
    """The CUDA compiler that gsplat would take; "" where there is none."""
    from torch.utils.cpp_extension import CUDA_HOME

    inside = shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else None
    return inside or shutil.which("nvcc") or ""


def load() -> None:
    """Import the extension; gsplat compiles it first where that has not been done.

    Raises: RuntimeError, one line with reason and remedy.
    """
    try:
        loaded = import_module("gsplat.cuda._backend")._C
    except Exception as error:  # ninja, nvcc, the linker and the loader each raise their own
        raise RuntimeError(failure(error)) from error
    if loaded is None:
        raise RuntimeError(missing() or f"gsplat found no CUDA toolkit; {OTHERWISE}")


def failure(error: BaseException) -> str:
    """A failed compilation or import in one line: what went wrong first, and what helps."""
    text = " ".join(map(str, error.args)) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word, _ in REMEDIES)]
    telling += [line for line in lines if "error" in line.lower() and "building extension" not in line]
    line = (telling or lines or [type(error).__name__])[0][:200]
    helps = next((remedy for word, remedy in REMEDIES if word in line.lower()), OTHERWISE)
    return f"gsplat's CUDA extension cannot be had: {line}; {_filled(helps)}"


def _filled(remedy: str) -> str:
    from torch.utils.cpp_extension import get_default_build_root

    arch = ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "9.0"
    made = Path(compiled() or Path(get_default_build_root(), "gsplat_cuda", "x")).parent
    return remedy.format(cuda=torch.version.cuda or "", arch=arch, folder=made, install=INSTALL)
