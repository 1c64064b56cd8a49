"""Whole steps from few Gaussians to many: time and peak memory, each in its own process, compared with the
cost model.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import cost_model
from rich.console import Console
from rich.table import Table
from timing import timed
from workload import synthetic

NUMBERS = (50_000, 200_000, 1_000_000, 2_000_000)
SIZES = ((270, 480), (540, 960), (1080, 1920))


def measure(N: int, width: int, height: int) -> dict[str, float]:
    """Return one step's best seconds, the peak memory of the process in GB, and the counts of the cost
    model.
    """
    workload = synthetic(N, width, height)
    best, _ = timed(workload.step, least=3, seconds=2.0)
    return {"seconds": best, "memory": _peak_bytes() / 1e9, **cost_model.counts(workload)}


def _peak_bytes() -> int:
    """Return the peak resident memory of this process; on Linux without that of the program that started
    it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def table(arguments: list[str], console: Console, title: str) -> None:
    """Run every N at every size in a child process with the given arguments, and print the table."""
    columns = ("Gaussians", "image", "pairs", "ms", "model, ms", "ms / model", "peak memory, GB")
    result = Table(title=f"One step of all kernels, forward, backward and update; {title}")
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i == 1 else "right")
    for N in NUMBERS:
        for width, height in SIZES:
            with console.status(f"{N:,} Gaussians at {width}x{height}"):
                found = _child([*arguments, "--gaussians", str(N), "--size", f"{width}x{height}"])
            low, high = cost_model.milliseconds(found)
            ms = found["seconds"] * 1e3
            result.add_row(
                f"{N:,}",
                f"{width}x{height}",
                f"{found['pairs']:,}",
                f"{ms:.1f}",
                f"{low:.0f}-{high:.0f}",
                f"{2 * ms / (low + high):.2f}",
                f"{found['memory']:.2f}",
            )
    console.print(result)


def _child(arguments: list[str]) -> dict:
    command = [sys.executable, str(Path(__file__).parent), "step", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"bench: {' '.join(command)} failed\n{done.stderr}")
    return json.loads(done.stdout)
