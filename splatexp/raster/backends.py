"""The rasterizers that use our kernels (reference, CPU, Triton), and `auto`, which selects the best.

All rasterizers of scenes but `additive` render the same image from the same Gaussians, up to rounding. Where
one differs, its docstring says so.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

import splatexp_kernels
from splatexp.raster.gsplat import Gsplat
from splatexp.raster.kernels import KernelRasterizer
from splatexp.raster.rasterizer import Rasterizer, SceneRasterizer
from splatexp_kernels import dispatch


@dataclass
class CPU(KernelRasterizer):
    """The C++ kernels, for AVX-512, AVX2 or any processor; the best variant is selected at run time."""

    backend: ClassVar[str] = "cpu"

    @classmethod
    def unavailable_reason(cls, can_build: bool = True) -> str:
        """Return why the kernels are missing, if they were not built."""
        try:
            splatexp_kernels.extension()
        except ImportError as error:
            return str(error)
        return ""


@dataclass
class Reference(KernelRasterizer):
    """The readable torch kernels, for tests and tiny scenes; they are thousands of times slower."""

    device: str = "cpu"  # type: ignore[assignment]  # any device of torch

    backend: ClassVar[str] = "reference"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.device = torch.device(self.device)  # type: ignore[assignment]
        except RuntimeError as error:
            raise ValueError(f"raster.device: expected cpu or cuda, got {self.device!r}") from error


@dataclass
class Triton(KernelRasterizer):
    """The Triton kernels, for an NVIDIA GPU."""

    backend: ClassVar[str] = "gpu"

    @property
    def device(self) -> torch.device:
        """Return the current CUDA device, or the CPU under Triton's interpreter, which is for tests."""
        if dispatch.interpreted():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    @classmethod
    def unavailable_reason(cls, can_build: bool = True) -> str:
        """Return what the kernels lack; Triton's interpreter does not count as available."""
        return dispatch.gpu_missing()

    def ensure_available(self) -> None:
        """Prepare for rendering, which works everywhere under Triton's interpreter."""
        if not dispatch.interpreted():
            super().ensure_available()


# The rasterizers that `auto` tries, best first. A GPU is faster than the CPU. Of the two for a GPU, Triton
# supports every setting and gives the same bits every time; gsplat is for systems without Triton.
AUTO_ORDER: tuple[type[SceneRasterizer], ...] = (Triton, Gsplat, CPU)
Rasterizer.alternatives = AUTO_ORDER


@dataclass
class Auto(SceneRasterizer):
    """The first rasterizer of AUTO_ORDER that this machine and the run's settings allow; see `select`."""

    def select(self, deterministic: bool = False, needs: Collection[str] = ()) -> SceneRasterizer:
        """Return the rasterizer, with the settings of this one.

        Its `selection_note` says in one line why the rasterizers before it were not selected. Where none can
        run it is the last, whose own error says what is missing.

        Args:
            deterministic: whether it has to give the same bits every time.
            needs: fields of `Attribution` that it has to compute.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        skipped: list[str] = []
        selected = None
        last_reason = ""
        for kind in AUTO_ORDER[:-1]:
            selected, reason = _try(kind, settings, deterministic, needs)
            if selected and not reason:
                break
            shown = "the same" if reason == last_reason else reason
            skipped.append(f"{kind.__name__.lower()}: {shown}")
            selected = None
            last_reason = reason
        selected = selected or AUTO_ORDER[-1](**settings)
        reasons = f" ({'; '.join(skipped)})" if skipped else ""
        selected.selection_note = f"raster=auto: {selected.name}{reasons}"
        return selected


def _try(
    kind: type[SceneRasterizer], settings: dict[str, Any], deterministic: bool, needs: Collection[str]
) -> tuple[SceneRasterizer | None, str]:
    """Construct a rasterizer.

    Returns: the rasterizer, or None where it refuses a setting; and why it cannot be used, "" where it can.
    """
    if reason := kind.unavailable_reason(can_build=False):
        reason = reason.partition(";")[0]  # without the remedy, which is for users who ask for it by name
    try:
        raster = kind(**settings)
    except ValueError as error:
        return None, reason or str(error)
    if deterministic and not kind.deterministic:
        reason = reason or "deterministic=true, and its last bits vary between runs"
    if lacking := set(needs) - kind.attribution_fields:
        reason = reason or f"it cannot compute {', '.join(sorted(lacking))}, which densify reads"
    return raster, reason
