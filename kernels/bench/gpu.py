"""All that needs a GPU, in one call: `python kernels/bench gpu [--out folder] [--data folder]`.

check   every Triton kernel against the reference in float64, on random inputs, and against gsplat
ops     time of each op, forward and backward, against this card's copy bandwidth and multiply-add rate
step    rasterization and a whole training step beside gsplat's; memory; how often the host waits
train   fox, bonsai and lego in --data on each rasterizer: PSNR, seconds, steps/s, N

It needs PyTorch, Triton and NumPy; `train` what splatexp needs besides. What is missing is named and
left out. A part that fails prints why and the others go on. Exit status 0: all that ran is as it should be.
"""

from __future__ import annotations

import argparse
import os
import sys

from gpu_report import Report

PARTS = ("check", "ops", "step", "train")
TRAINING_SECONDS = 400.0  # after so many no other training begins: a call may have a limit


def main(words: list[str]) -> int:
    """Run the requested parts; return 1 where one failed."""
    asked = parsed(words)
    device, missing = find_device(asked.interpret)
    if missing:
        print(f"gpu: {missing}", file=sys.stderr)
        return 1
    import gpu_parts

    report = Report(asked, device)
    if report.folder:
        report.folder.mkdir(parents=True, exist_ok=True)
    for name in ("machine", *asked.only):
        report.part(name, getattr(gpu_parts, name))
    failed = f"FAILED: {', '.join(report.failed)}" if report.failed else ""
    report.say("", failed or "all that ran is as it should be")
    report.write()
    return int(bool(failed))


def find_device(interpret: bool) -> tuple[str, str]:
    """Return the device that the kernels run on, and why there is none."""
    if interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        import numpy

        numpy.seterr(all="ignore")  # in which the interpreter computes
        return "cpu", ""
    import torch

    from splatexp_kernels import dispatch

    missing = dispatch.gpu_missing()
    return ("", missing) if missing else (f"cuda:{torch.cuda.current_device()}", "")


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    how = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="kernels/bench gpu", description=__doc__, formatter_class=how)
    parser.add_argument("--out", help="folder for gpu.json and gpu.md, written anew after each part")
    parser.add_argument(
        "--data", help="folder that holds fox*, bonsai*, lego*; without it nothing is trained"
    )
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and 500 steps of training")
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="no GPU: tiny sizes under Triton's interpreter, to try the rest",
    )
    parser.add_argument(
        "--seconds", type=float, default=TRAINING_SECONDS, help="after which no other training begins (400)"
    )
    return parser.parse_args(words)


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(PARTS)}, got {', '.join(unknown)}")
    return names
