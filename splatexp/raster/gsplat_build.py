"""The CUDA extension of gsplat: whether it is available, and why its compilation has failed.

gsplat compiles the extension when it is first used, which takes minutes and needs nvcc. It reports a failure
in pages of output, and a missing nvcc as a missing attribute of None. Here either is one line.
"""

import shutil
from importlib import import_module, util
from pathlib import Path

import torch

from splatexp_kernels import dispatch

INSTALL = "pip install 'gsplat>=1.5.3'"
REMEDIES = (  # a part of the error message, in lower case -> the remedy
    ("ninja is required", "pip install ninja"),
    ("unsupported gnu version", "NVCC_PREPEND_FLAGS='-ccbin g++-<older>' lets nvcc use another g++"),
    ("mismatches the version", "install the nvcc of CUDA {cuda}, for which torch is built"),
    ("unsupported gpu architecture", "install a newer nvcc, of CUDA {cuda} as torch is built for"),
    ("no kernel image", "set TORCH_CUDA_ARCH_LIST='{arch}' and remove {folder} to compile it again"),
    ("glm", f"{INSTALL} --force-reinstall --no-cache-dir"),
    ("undefined symbol", "it was built for another torch: remove {folder}, or {install} --force-reinstall"),
    ("cannot open shared object", "install CUDA {cuda}'s runtime, or remove {folder} to compile it again"),
    ("killed", "MAX_JOBS=1 compiles one file at a time, with less memory"),
    ("no space left", "TORCH_EXTENSIONS_DIR=<folder> compiles elsewhere"),
)
FALLBACK_REMEDY = "VERBOSE=1 python -c 'from gsplat.cuda._backend import _C' shows the whole output"


def unavailable_reason(can_build: bool = True) -> str:
    """Return why gsplat cannot run on this machine, and the remedy, in one line; "" where it can.

    It looks at files alone: nothing is compiled, and without a CUDA device gsplat is not imported.

    Args:
        can_build: whether an extension that nvcc can compile counts as available.
    """
    if not torch.cuda.is_available():
        return dispatch.gpu_missing()
    if util.find_spec("gsplat") is None:
        return f"gsplat is not installed; {INSTALL}"
    if find_compiled():
        return ""
    if not find_nvcc():
        return (
            "gsplat's CUDA extension is not compiled, and there is no nvcc to compile it; install the nvcc "
            f"of CUDA {torch.version.cuda}, or a gsplat that comes compiled (https://docs.gsplat.studio)"
        )
    if can_build:
        return ""
    return "gsplat's CUDA extension is not compiled; raster=gsplat compiles it, in minutes"


def find_compiled() -> str:
    """Return the file of the extension, from a wheel or compiled here; "" where there is none."""
    wheel = util.find_spec("gsplat.csrc")
    if wheel is not None and wheel.origin:  # a folder of sources has no origin
        return wheel.origin
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(get_default_build_root())
    found = [*root.glob("gsplat_cuda/gsplat_cuda*.so"), *root.glob("*/gsplat_cuda/gsplat_cuda*.so")]
    return str(min(found, default=""))


def find_nvcc() -> str:
    """Return the CUDA compiler that gsplat would use; "" where there is none."""
    from torch.utils.cpp_extension import CUDA_HOME

    inside = shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else None
    return inside or shutil.which("nvcc") or ""


def load() -> None:
    """Import the extension; gsplat compiles it first where necessary.

    Raises: RuntimeError, one line with reason and remedy.
    """
    try:
        loaded = import_module("gsplat.cuda._backend")._C
    except Exception as error:  # ninja, nvcc, the linker and the loader raise different exceptions
        raise RuntimeError(describe_failure(error)) from error
    if loaded is None:
        raise RuntimeError(unavailable_reason() or f"gsplat found no CUDA toolkit; {FALLBACK_REMEDY}")


def describe_failure(error: BaseException) -> str:
    """Describe a failed compilation or import in one line: the first error, and the remedy."""
    text = " ".join(map(str, error.args)) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    relevant = [line for line in lines if any(word in line.lower() for word, _ in REMEDIES)]
    relevant += [line for line in lines if "error" in line.lower() and "building extension" not in line]
    line = (relevant or lines or [type(error).__name__])[0][:200]
    remedy = next((helps for word, helps in REMEDIES if word in line.lower()), FALLBACK_REMEDY)
    return f"gsplat's CUDA extension is not available: {line}; {_fill_placeholders(remedy)}"


def _fill_placeholders(remedy: str) -> str:
    """Return a remedy with the CUDA version, architecture, folder and command of this machine."""
    from torch.utils.cpp_extension import get_default_build_root

    arch = ".".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "9.0"
    folder = Path(find_compiled() or Path(get_default_build_root(), "gsplat_cuda", "x")).parent
    return remedy.format(cuda=torch.version.cuda or "", arch=arch, folder=folder, install=INSTALL)
