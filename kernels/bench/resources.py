"""The resources that the Triton kernels use of a multiprocessor, from an ahead-of-time compile that needs no
GPU.

Run it with `python kernels/bench resources`. It also reports the minimum time of each op at the rates of a
card: bytes that must be moved over the bandwidth, operations over the rate of fused multiply-adds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import launches

if TYPE_CHECKING:
    from rich.console import Console

CAPABILITY = 90
# Per multiprocessor of compute capability 9.0: CUDA C++ Programming Guide, "Compute Capabilities"
WARPS, BLOCKS, REGISTERS, SHARED = 64, 32, 64 * 1024, 228 * 1024
RESERVED = 1024  # bytes of shared memory that each block costs besides its own
MEANING = (
    "blocks of one multiprocessor and their warps, in theory; spills, products of matrices (mma), shuffles "
    "and atomics are instructions in the code"
)
SPILLS = ("STL", "LDL")  # stores to and loads from local memory
SHEET = "H100 SXM by its data sheet", 3.35e12, 66.9e12  # bytes and operations of float32 a second
SCENES = [(N, size) for N in (50_000, 500_000, 2_000_000) for size in ((960, 540), (1920, 1080))]


@dataclass
class Kernel:
    """One kernel as compiled for one set of types and constants."""

    op: str
    name: str
    constants: str
    warps: int
    registers: int  # of a thread
    stack: int  # bytes of a thread: what did not fit into registers
    spills: int  # instructions that store or load it
    shared: int  # bytes of a block
    instructions: int
    matrix: int  # instructions of the matrix units
    shuffles: int
    atomics: int
    float_atomics: int  # whose order would decide the bits

    @property
    def blocks(self) -> int:
        """Return the number of blocks that one multiprocessor holds at a time."""
        a_warp = -(-self.registers * 32 // 256) * 256  # registers are given out by 256
        by_registers = REGISTERS // 4 // a_warp * 4 // self.warps  # each quarter has its own
        by_shared = SHARED // (self.shared + RESERVED)
        return min(BLOCKS, WARPS // self.warps, by_registers, by_shared)


def recorded(what: str) -> list[dict[str, Any]]:
    """Return the launches of `step` or of `all`, from a child process under Triton's interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launches.json"
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        command = [sys.executable, launches.__file__, what, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"resources: {' '.join(command)} failed\n{done.stderr}")
        return launches.read(path)


def compiled(entry: dict[str, Any]) -> Kernel:
    """Compile one launch for CAPABILITY and return its resources."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(entry["module"]), entry["name"])
    aligned = {(i,): [["tt.divisibility", 16]] for i in entry["aligned"]}
    source = ASTSource(function, entry["signature"], entry["constants"], aligned)
    target = GPUTarget("cuda", CAPABILITY, 32)
    try:
        made = triton.compile(source, target=target, options=entry["options"])
    except Exception as error:
        raise RuntimeError(f"{entry['module']}.{entry['name']} does not compile: {error}") from error
    usage, listing = _dumped(made.asm["cubin"])
    words = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9]+)(\S*)", listing, re.M)
    counts = Counter(word for word, _ in words)
    atomics = [rest for word, rest in words if word.startswith(("ATOM", "RED"))]
    sizes = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    return Kernel(
        op=entry["module"].removeprefix("splatexp_kernels.").partition(".")[0],
        name=entry["name"].strip("_"),
        constants=" ".join(filter(None, (_words(*pair) for pair in entry["constants"].items()))),
        warps=made.metadata.num_warps,
        registers=sizes["REG"],
        stack=sizes["STACK"],
        spills=sum(counts[name] for name in SPILLS),
        shared=made.metadata.shared,
        instructions=sum(counts.values()) - counts["NOP"],
        matrix=sum(n for name, n in counts.items() if name in ("HMMA", "HGMMA")),
        shuffles=counts["SHFL"],
        atomics=len(atomics),
        float_atomics=sum(bool(re.search(r"\.B?F\d", rest)) for rest in atomics),
    )


def _words(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"no {name}" if value is None else name * value
    return f"{name}={value}"


def _dumped(cubin: bytes) -> tuple[str, str]:
    """Return resource usage and machine code of a binary, from the tools that Triton includes."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run([tool, how, file.name], check=True, capture_output=True, text=True).stdout
            for how in ("--dump-resource-usage", "--dump-sass")
        )


def all_compiled(entries: Iterable[dict[str, Any]], processes: int) -> list[Kernel]:
    """Compile many launches in parallel."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("resources: TRITON_INTERPRET is set, which leaves nothing to compile; unset it")
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compiled, entries))


def report(console: Console, processes: int, scenes: Iterable[tuple[int, tuple[int, int]]] = SCENES) -> None:
    """Print the resources of every kernel, and the minimum time of every op."""
    from rich.box import SIMPLE
    from rich.table import Table

    kernels = all_compiled(recorded("all"), processes)
    result = Table(
        title=f"Triton kernels compiled for capability {CAPABILITY / 10}",
        caption=MEANING,
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    names = (
        "kernel",
        "warps",
        "regs",
        "spills",
        "shared",
        "blocks",
        "of 64",
        "instr",
        "mma",
        "shfl",
        "atom",
    )
    for i, name in enumerate(names):
        result.add_column(name, justify="right" if i else "left", no_wrap=True)
    result.add_column("constants")
    for k in kernels:
        there = k.blocks * k.warps
        cells = (k.warps, k.registers, k.spills, k.shared, k.blocks, there, k.instructions)
        result.add_row(f"{k.op} {k.name}", *map(str, (*cells, k.matrix, k.shuffles, k.atomics)), k.constants)
    console.print(result)
    console.print(limits(scenes))


def limits(scenes: Iterable[tuple[int, tuple[int, int]]]) -> Any:
    """Return a table of the minimum time of each op on synthetic scenes, from measured peaks of this GPU or
    those of SHEET.
    """
    from ops import op_calls
    from rich.table import Table
    from workload import synthetic

    card, bandwidth, fma = peaks()
    title = f"Least time of each op: {card}, {bandwidth / 1e12:.2f} TB/s, {fma / 1e12:.1f} TFLOP/s"
    result = Table(title=title, caption="bytes: each input read once, each output written once")
    for i, name in enumerate(("Gaussians", "image", "op", "", "MB", "GFLOP", "ms, bytes", "ms, operations")):
        result.add_column(name, justify="right" if i == 0 or i > 3 else "left")
    for N, (width, height) in scenes:
        total = 0.0
        for work in op_calls(synthetic(N, width, height)):
            by_bytes, by_operations = work.bytes / bandwidth, work.flops / fma
            total += max(by_bytes, by_operations) if work.in_step else 0
            cells = (work.bytes / 1e6, work.flops / 1e9, by_bytes * 1e3, by_operations * 1e3)
            where = f"{N:,}", f"{width}x{height}"
            result.add_row(*where, work.op, work.direction, *(f"{x:.3g}" for x in cells))
        result.add_row(
            *where, "step", "the larger of each", "", "", f"{total * 1e3:.3g}", "", end_section=True
        )
    return result


def peaks() -> tuple[str, float, float]:
    """Return name, bytes and operations per second: of this machine's GPU, measured now, or else by the data
    sheet.
    """
    import torch

    if not torch.cuda.is_available():
        return SHEET
    from gpu_clock import Clock, bandwidth, fma_rate

    clock = Clock("cuda", 20, 0.3)
    return f"{torch.cuda.get_device_name()}, measured", bandwidth(clock), fma_rate(clock)
