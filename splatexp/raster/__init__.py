"""Rasterizers: their common settings, the backends, and `auto`, which takes the best that can run."""

from splatexp.raster.additive import Additive
from splatexp.raster.backends import CPU, Auto, Reference, Triton
from splatexp.raster.gsplat import Gsplat
from splatexp.raster.plane import Plane
from splatexp.raster.rasterizer import Drawing, Rasterizer, Render
from splatexp_kernels.blend import Attribution

__all__ = [
    "CPU",
    "Additive",
    "Attribution",
    "Auto",
    "Drawing",
    "Gsplat",
    "Plane",
    "Rasterizer",
    "Reference",
    "Render",
    "Triton",
]
