"""Speed of the CPU kernels: `python kernels/bench blend`, `... all`, `... scaling`; of the Triton kernels:

`... resources` compiles them for an H100, without needing one, and reports the resources that they use; `...
gpu` checks and times them on one, see `... gpu --help`.

An op's tests run first, and nothing is reported unless they pass. Times are of the calls that training makes,
through the public functions, with allocation and autograd. Peaks are the best measured between the ops.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("splatexp_kernels") is None:  # a checkout that is not installed
    sys.path[1:1] = [str(ROOT / "kernels"), str(ROOT)]

if sys.argv[1:2] == ["gpu"]:  # on a bare machine there is no more than PyTorch and Triton
    import gpu

    sys.exit(gpu.main(sys.argv[2:]))

import cost_model  # noqa: E402
import resources  # noqa: E402
import scaling  # noqa: E402
import torch  # noqa: E402
import workload  # noqa: E402
from ops import OPS, op_calls  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from timing import peaks, timed  # noqa: E402

import splatexp_kernels as sk  # noqa: E402

TESTS = {
    **{op: [f"test_{op}.py"] for op in OPS},
    "blend": ["test_blend.py", "test_attribute.py"],
    "scaling": ["test_pipeline.py"],
    "all": ["."],
}


def main() -> int:
    arguments = parsed()
    console = Console(width=None if sys.stdout.isatty() else 110)
    if arguments.isa:
        sk.set_isa(arguments.isa)
    sk.set_num_threads(arguments.threads)
    torch.set_num_threads(sk.get_num_threads())
    width, height = map(int, arguments.size.split("x"))
    if arguments.what == "step":  # a child of `scaling`: one JSON object and nothing else
        print(json.dumps(scaling.measure(arguments.gaussians, width, height)))
        return 0
    if arguments.what == "resources":
        resources.report(console, sk.get_num_threads())
        return 0
    if not arguments.untested and not tests_pass(arguments.what, console):
        return 1
    if arguments.what == "scaling":
        how = f"{sk.isa()}, {sk.get_num_threads()} threads"
        scaling.table(["--isa", sk.isa(), "--threads", str(sk.get_num_threads())], console, how)
        return 0
    try:
        if arguments.run:
            w = workload.trained(arguments.run, width, height)
        elif arguments.ply:
            w = workload.ply(arguments.ply, width, height)
        else:
            w = workload.synthetic(arguments.gaussians, width, height)
    except (OSError, ValueError) as error:
        console.print(error, markup=False)
        return 2
    report(w, OPS if arguments.what == "all" else (arguments.what,), arguments, console)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kernels/bench", description=__doc__)
    parser.add_argument("what", choices=[*OPS, "all", "scaling", "step", "resources", "gpu"])
    parser.add_argument(
        "--gaussians", type=int, default=60_000, help="of the synthetic scene (default 60000)"
    )
    parser.add_argument("--size", default="270x480", help="of the image, width x height (default 270x480)")
    parser.add_argument("--run", help="a finished run's folder, instead of the synthetic scene")
    parser.add_argument("--ply", help="a .ply of Gaussians, instead of the synthetic scene")
    parser.add_argument(
        "--isa", choices=["avx512", "avx2", "portable"], help="default: the best of this processor"
    )
    parser.add_argument("--threads", type=int, default=0, help="default: all")
    parser.add_argument("--repeats", type=int, default=20, help="calls at least (default 20)")
    parser.add_argument("--untested", action="store_true", help="do not run the tests; the report says so")
    return parser.parse_args()


def tests_pass(what: str, console: Console) -> bool:
    """Return whether the tests of an op pass; show their output where they do not."""
    files = [str(ROOT / "tests" / "kernels" / name) for name in TESTS[what]]
    with console.status(f"tests of {what}"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *files], cwd=ROOT, capture_output=True, text=True
        )
    if done.returncode:
        console.print(
            done.stdout, done.stderr, "nothing is timed: the tests fail", markup=False, highlight=False
        )
    return done.returncode == 0


def report(
    w: workload.Workload, chosen: tuple[str, ...], arguments: argparse.Namespace, console: Console
) -> None:
    """Time the chosen ops, and print one row each, their sum, and a whole step."""
    threads = sk.get_num_threads()
    enough = {"least": arguments.repeats, "seconds": 0.025 * arguments.repeats}
    measured, rows = [peaks(threads)], []
    for op, calls in groupby(op_calls(w), key=lambda work: work.op):
        rows += [(work, *timed(work.call, **enough)) for work in calls if op in chosen]
        measured.append(peaks(threads))
    step = timed(w.step, **enough) if len(chosen) == len(OPS) else None
    fma, bandwidth = map(max, zip(*measured, strict=True))

    found = cost_model.counts(w)
    title = f"{w.name}: {len(w):,} Gaussians, {w.width}x{w.height}, {found['pairs']:,} pairs"
    title += f"; {sk.isa()}, {threads} threads"
    caption = f"peaks of this run: {fma:.0f} GFLOP/s, {bandwidth:.1f} GB/s; {arguments.repeats} or more calls"
    caption += "; more than the bandwidth comes from caches" + "; NOT TESTED" * arguments.untested
    columns = ("op", "", "ms, best", "ms, median", "GFLOP/s", "of peak", "GB/s", "of bandwidth")
    result = Table(title=title, caption=caption)
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i < 2 else "right")
    for work, best, middle in rows:
        result.add_row(work.op, work.direction, *_cells(best, middle, work.flops, work.bytes, fma, bandwidth))
    counted = [row for row in rows if row[0].in_step]
    if len(counted) > 1:
        totals = [sum(row[i] for row in counted) for i in (1, 2)]
        work = [sum(getattr(row[0], name) for row in counted) for name in ("flops", "bytes")]
        result.add_section()
        result.add_row("sum", "of a step", *_cells(*totals, *work, fma, bandwidth))
        if step:
            result.add_row("step", "in a row", *_cells(*step, *work, fma, bandwidth))
    console.print(result)


def _cells(best: float, middle: float, flops: float, size: float, fma: float, bandwidth: float) -> list[str]:
    rate, flow = flops / best / 1e9, size / best / 1e9
    times = [f"{best * 1e3:.2f}", f"{middle * 1e3:.2f}"]
    return [
        *times,
        f"{rate:.1f}",
        f"{100 * rate / fma:.1f} %",
        f"{flow:.2f}",
        f"{100 * flow / bandwidth:.0f} %",
    ]


if __name__ == "__main__":
    sys.exit(main())
