"""Rasterizers: the readable reference, the CPU's, two for a GPU, and `auto`, which takes the best there is.

`plane` draws pictures, whose rows are of the plane. All others draw the same picture from the same Gaussians,
up to rounding; what differs is said where it does.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

import splatexp_kernels
from splatexp.raster.gsplat import Gsplat
from splatexp.raster.kernels import Kernels
from splatexp.raster.rasterizer import Drawing, Rasterizer
from splatexp_kernels import door


@dataclass
class CPU(Kernels):
    """The C++ kernels: AVX-512, AVX2 or portable, chosen at run time."""

    backend: ClassVar[str] = "cpu"

    @classmethod
    def missing(cls, build: bool = True) -> str:
        """That they were not built."""
        try:
            splatexp_kernels.extension()
        except ImportError as error:
            return str(error)
        return ""


@dataclass
class Reference(Kernels):
    """The readable torch kernels: for tests and tiny scenes, thousands of times slower."""

    device: str = "cpu"  # type: ignore[assignment]  # any that torch knows

    backend: ClassVar[str] = "reference"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.device = torch.device(self.device)  # type: ignore[assignment]
        except RuntimeError as error:
            raise ValueError(f"raster.device: expected cpu or cuda, got {self.device!r}") from error


@dataclass
class Triton(Kernels):
    """The Triton kernels, for an NVIDIA GPU."""

    backend: ClassVar[str] = "gpu"

    @property
    def device(self) -> torch.device:
        """The current CUDA device; the CPU under Triton's interpreter, which is for tests."""
        if door.interpreted():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    @classmethod
    def missing(cls, build: bool = True) -> str:
        """What the kernels lack; the interpreter is not counted, as nobody wants to train with it."""
        return door.gpu_missing()

    def require(self) -> None:
        """As `Rasterizer` says; under Triton's interpreter they can be tried anywhere."""
        if not door.interpreted():
            super().require()


# What `auto` tries, best first. A GPU before the CPU: it does the same work faster. Of the two for a GPU,
# Triton has every knob and gives the same bits every time; gsplat is for cards and systems without Triton.
ORDER: tuple[type[Rasterizer], ...] = (Triton, Gsplat, CPU)
Drawing.alternatives = ORDER


@dataclass
class Auto(Rasterizer):
    """The first of ORDER that this machine can run and that can do what the run wants: see `chosen`."""

    def chosen(self, deterministic: bool = False, wants: Collection[str] = ()) -> Rasterizer:
        """It, with these knobs; its `why` tells in one line why it is not one before it.

        The last is taken where none can run: its own error says what is missing.

        Args:
            deterministic: only one that gives the same bits every time will do.
            wants: fields of `Attribution` that it has to offer.
        """
        knobs = {field.name: getattr(self, field.name) for field in fields(self)}
        passed: list[str] = []
        made, last = None, ""
        for kind in ORDER[:-1]:
            made, reason = _made(kind, knobs, deterministic, wants)
            if made and not reason:
                break
            passed.append(f"{kind.__name__.lower()}: {'the same' if reason == last else reason}")
            made, last = None, reason
        made = made or ORDER[-1](**knobs)
        told = f" ({'; '.join(passed)})" if passed else ""
        made.why = f"raster=auto: {made.name}{told}"
        return made


def _made(
    kind: type[Rasterizer], knobs: dict[str, Any], deterministic: bool, wants: Collection[str]
) -> tuple[Rasterizer | None, str]:
    """A rasterizer, None where it refuses a knob; and why it will not do, "" where it will."""
    if reason := kind.missing(build=False):
        reason = reason.partition(";")[0]  # the remedy is for who asks for it by name
    try:
        made = kind(**knobs)
    except ValueError as error:
        return None, reason or str(error)
    if deterministic and not kind.deterministic:
        reason = reason or "deterministic=true, and its last bits differ from time to time"
    if lacking := set(wants) - kind.offers:
        reason = reason or f"it cannot give {', '.join(sorted(lacking))}, which densify reads"
    return made, reason
