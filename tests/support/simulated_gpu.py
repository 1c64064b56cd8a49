"""Runs `python kernels/bench gpu` as on a GPU, where none is: every line of it but the kernels' compilation.

The device is called cpu:0, which to it is no "cpu"; `torch.cuda` and gsplat are stand-ins, the kernels
run under Triton's interpreter, scenes are tiny, and training is made up. One scene cannot be made and one
training fails: that must be told, and the rest go on. The words are those of the command line.
"""

import os
import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "kernels" / "bench"), str(ROOT / "kernels"), str(ROOT)]

import gpu  # noqa: E402
import gpu_check  # noqa: E402
import gpu_clock  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_time  # noqa: E402
import gpu_train  # noqa: E402
import gsplat  # noqa: E402
import numpy  # noqa: E402
import rasterizers  # noqa: E402
import torch  # noqa: E402

from splatexp_kernels.blend import blend  # noqa: E402
from splatexp_kernels.project import project  # noqa: E402
from splatexp_kernels.sh import sh  # noqa: E402
from splatexp_kernels.tiles import tiles  # noqa: E402

CARD = {"name": "Simulated", "multi_processor_count": 2, "total_memory": 2**34, "major": 9, "minor": 0}


class Event:
    """A CUDA event by the host's clock."""

    def __init__(self, enable_timing):
        self.at = 0.0

    def record(self):
        self.at = perf_counter()

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)


def rasterization(
    means, quats, scales, opacities, colors, viewmats, Ks, width, height, *, sh_degree, packed, backgrounds
):
    """gsplat's, by the reference."""
    by, size = {"backend": "reference"}, (width, height)
    p = project(means, quats, scales, opacities, viewmats, Ks, *size, **by)
    centers = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])[:, :, 0]
    shown = sh(sh_degree, means, centers, colors[:, :1], colors[:, 1:], **by)
    t = tiles(p.means2d, p.radii, p.depths, *size, **by)
    seen = opacities.expand(len(viewmats), -1)
    image, alpha = blend(p.means2d, p.conics, shown, seen, t, *size, background=backgrounds, **by)
    return image, alpha, {}


def once(overrides, program=()):
    """A training's figures, made up; on bonsai gsplat fails and the CPU's kernels are not built."""
    if any("bonsai" in word for word in overrides) and "raster=triton" not in overrides:
        return {
            "error": "simulated" if "raster=gsplat" in overrides else "raster: cpu cannot run here: simulated"
        }
    row = {"psnr": 30.0, "ssim": 0.9, "num_gaussians": 1000, "train_seconds": 2.0, "wall_seconds": 3.0}
    steps = next(int(word[6:]) for word in overrides if word.startswith("steps="))
    return row | {"peak_memory_bytes": 2**30, "waits": 7 + steps}


def tiny_findings(findings, device, tiny):
    """Those of tiny sizes, although the device is no "cpu"."""
    return findings(device, True)


def simulate() -> None:
    """Put the stand-ins in place."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache", "set_sync_debug_mode"):
        setattr(torch.cuda, name, lambda *args: None)
    torch.cuda.Event = Event
    torch.cuda.max_memory_allocated = lambda: 2**30
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(**CARD)
    gpu.find_device = lambda interpret: ("cpu:0", "")
    gpu_clock.FLUSH, gpu_clock.COPIED, gpu_clock.ADDED, gpu_clock.WARM_UPS = 1, 1 << 10, (1, 16, 1), 0
    gpu_parts.REPEATS = 1, 0.0
    gpu_time.FULL, gpu_time.SMALL = [*gpu_time.TINY, (5, (0, 0))], gpu_time.TINY[0]
    rasterizers.missing, gsplat.rasterization = lambda device: "", rasterization
    gpu_check.findings = partial(tiny_findings, gpu_check.findings)
    gpu_train.once = once
    numpy.seterr(all="ignore")


if __name__ == "__main__":
    simulate()
    sys.exit(gpu.main(sys.argv[1:]))
