"""The kernels of Gaussian splatting, each as `reference` (torch, readable) and `cpu` (C++, SIMD, threads).

One package per op: `project`, `sh`, `tiles`, `blend`, `blend2d`, `ssim`, `adam`, `noise`. `entropy`, `draw`:
numpy arrays, no torch. Here stand only the switches of the CPU backend, which imports lazily: `import
splatexp_kernels` needs no torch.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["extension", "get_num_threads", "isa", "isas", "set_isa", "set_num_threads"]

# Large tensors on huge pages: filling 4 kB pages took a third of a step with a million Gaussians. torch reads
# this when it allocates for the first time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def extension() -> ModuleType:
    """The compiled extension; raises ImportError with the remedy if it was not built."""
    try:
        return importlib.import_module("splatexp_kernels._cpu")
    except ImportError as error:
        raise ImportError(
            f"the CPU kernels are not built ({error}); install the package with `pip install .` "
            "(needs a C++17 compiler), or choose raster=reference"
        ) from error


def isa() -> str:
    """The instruction set in use, `avx512`, `avx2` or `portable`: the best unless `set_isa` chose."""
    return extension().isa()


def isas() -> list[str]:
    """The instruction sets that this processor can run, best first."""
    return extension().isas()


def set_isa(name: str) -> None:
    """Use another instruction set from now on; ValueError if the processor lacks it."""
    extension().set_isa(name)


def set_num_threads(threads: int) -> None:
    """Threads of the CPU kernels; 0 = all that the machine has. The results do not depend on it."""
    extension().set_num_threads(threads)


def get_num_threads() -> int:
    """Threads that the CPU kernels use: fewer than were set where the system would not start as many."""
    return extension().get_num_threads()
