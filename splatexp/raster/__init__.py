"""Rasterizers: their common settings, the backends, and `auto`, which takes the best that can run."""

from splatexp.raster.additive import Additive
from splatexp.raster.backends import CPU, Auto, Reference, Triton
from splatexp.raster.gsplat import Gsplat
from splatexp.raster.image import ImageRaster
from splatexp.raster.rasterizer import Rasterizer, Render, SceneRasterizer
from splatexp_kernels.blend import Attribution

__all__ = [
    "CPU",
    "Additive",
    "Attribution",
    "Auto",
    "Rasterizer",
    "Gsplat",
    "ImageRaster",
    "SceneRasterizer",
    "Reference",
    "Render",
    "Triton",
]
