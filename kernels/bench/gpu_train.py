"""Training of scenes with each rasterizer, each in a process of its own, and how often a step waits for the
device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

SCENES = ("fox", "bonsai", "lego")
RASTERS = ("triton", "gsplat", "cpu")
NEEDED = (
    "hydra", "omegaconf", "torchvision", "PIL", "imageio", "plyfile", "lpips", "rich", "safetensors",
    "psutil", "torchmetrics", "scipy", "jinja2",
)  # fmt: skip
PLAIN = ("tracker=csv", "evaluate.turntable=false")
# runs the command line and then says how often the host waited for the device
COUNTING = """
import runpy, sys, torch, warnings
count = 0
def note(message, *rest, **more):
    global count
    count += "synchroniz" in str(message)
warnings.simplefilter("always")
warnings.showwarning = note
torch.cuda.set_sync_debug_mode("warn")
sys.argv = ["splatexp", *sys.argv[1:]]
try:
    runpy.run_module("splatexp", run_name="__main__", alter_sys=True)
finally:
    print("waits", count)
"""


def lacking() -> str:
    """Return which packages that `python -m splatexp` needs are missing, in one line; "" where none is."""
    names = [name for name in NEEDED if find_spec(name) is None]
    return f"not installed: {', '.join(names)}" if names else ""


def scenes(folder: str | None) -> dict[str, Path]:
    """Return the scenes of SCENES that a folder holds, as `fox`, `fox_colmap`, ..."""
    found = {}
    for name in SCENES if folder else ():
        paths = sorted(path for path in Path(folder or "").glob(f"{name}*") if path.is_dir())
        if paths:
            found[name] = paths[0].resolve()
    return found


def trained(folder: str | None, steps: int, seconds: float, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """Yield one row for each scene and rasterizer: PSNR, SSIM, seconds, N, or why it did not train.

    Rasterizers run one after the other, the fastest first; what would begin after `seconds` is left out.
    """
    found, begun = scenes(folder), perf_counter()
    for raster in RASTERS if on_gpu else ("cpu",):
        for name in SCENES:
            row = {"scene": name, "raster": raster, "steps": steps}
            if name not in found:
                yield row | {"left_out": f"no folder {name}* in --data {folder}"}
            elif perf_counter() - begun > seconds:
                yield row | {"left_out": f"{seconds:.0f} s have passed"}
            else:
                told = once([f"data.path={found[name]}", f"raster={raster}", f"steps={steps}", *PLAIN])
                if raster != "triton" and "cannot run here" in told.get("error", ""):
                    told = {"left_out": told["error"]}
                yield row | told


def once(overrides: list[str], program: tuple[str, ...] = ("-m", "splatexp")) -> dict[str, Any]:
    """Return the figures of one run, or its last line of output."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *program, *overrides, f"hydra.run.dir={folder}/run"]
        paths = [
            path for path in sys.path if path and Path(path).resolve() != Path(__file__).resolve().parent
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        environment.pop("TRITON_INTERPRET", None)
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        if done.returncode:
            return {"error": said[-1] if said else f"exit status {done.returncode}"}
        result = json.loads((Path(folder) / "run" / "metrics.json").read_text())
        names = ("psnr", "ssim", "num_gaussians", "train_seconds", "wall_seconds", "peak_memory_bytes")
        row = {name: result[name] for name in names}
        counted = [line for line in said if line.startswith("waits ")]
        return row | ({"waits": int(counted[-1].split()[1])} if counted else {})


def waits_per_step(raster: str) -> dict[str, Any]:
    """Return the waits of an ordinary training step: those that 100 more steps of the built-in scene add,
    over 100.
    """
    counts = []
    for steps in (100, 200):
        overrides = [f"raster={raster}", f"steps={steps}", "log_every=1000", "densify=none", *PLAIN]
        row = once(overrides, ("-c", COUNTING))
        if "error" in row:
            return row
        counts.append(row["waits"])
    return {"raster": raster, "waits_per_step": (counts[1] - counts[0]) / 100}
