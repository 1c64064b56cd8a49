"""The kernels of Gaussian splatting; each op has several backends: `reference` (torch, readable), `cpu` (C++,
SIMD, threads), `gpu` (Triton).

There is one package per op: `project`, `sh`, `tiles`, `blend`, `blend2d`, `ssim`, `adam`, `noise`; `entropy`
and `draw` take numpy arrays and need no torch. This module holds only the switches of the CPU backend, which
is imported lazily: `import splatexp_kernels` needs no torch.
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
    """Return the compiled extension.

    Raises: ImportError, with the remedy, where it was not built.
    """
    try:
        return importlib.import_module("splatexp_kernels._cpu")
    except ImportError as error:
        raise ImportError(
            f"the CPU kernels are not built ({error}); install the package with `pip install .` "
            "(needs a C++17 compiler), or choose raster=reference"
        ) from error


def isa() -> str:
    """Return the instruction set in use, `avx512`, `avx2` or `portable`: the best one unless `set_isa` chose
    another.
    """
    return extension().isa()


def isas() -> list[str]:
    """Return the instruction sets that this processor can run, best first."""
    return extension().isas()


def set_isa(name: str) -> None:
    """Use the given instruction set from now on.

    Raises: ValueError where the processor lacks it.
    """
    extension().set_isa(name)


def set_num_threads(threads: int) -> None:
    """Set the number of threads of the CPU kernels; 0: all that the machine has. The results do not depend on
    it.
    """
    extension().set_num_threads(threads)


def get_num_threads() -> int:
    """Return the number of threads of the CPU kernels: fewer than were set where the system would not start
    as many.
    """
    return extension().get_num_threads()
