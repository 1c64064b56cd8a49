"""The parts of `python kernels/bench gpu`: each fills the report, and fails where something is not right."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import groupby
from typing import TYPE_CHECKING

import gpu_check
import gpu_time
import gpu_train
import rasterizers
import torch
import triton
from gpu_clock import Clock, bandwidth, fma_rate
from ops import OPS, has

if TYPE_CHECKING:
    from gpu_report import Report

STEPS, QUICK_STEPS = 7_000, 500
REPEATS = 20, 0.3  # calls at least, and about so many seconds


def machine(report: Report) -> None:
    """Report date, card, versions, and the peaks of this card."""
    found = {"date": datetime.now(timezone.utc).isoformat(timespec="minutes"), "machine": platform.platform()}
    found |= {"python": sys.version.split()[0], "torch": torch.__version__, "triton": triton.__version__}
    if report.on_gpu:
        card = torch.cuda.get_device_properties(report.device)
        found["card"] = f"{card.name}, {card.multi_processor_count} multiprocessors, "
        found["card"] += f"{card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["card"] = "none: Triton's interpreter, nothing here is a measurement"
    found["gsplat"] = rasterizers.missing(report.device) or "can run"
    report.say(*(f"{name}: {value}" for name, value in found.items()))
    report.clock = Clock(report.device, *(REPEATS if report.on_gpu else (1, 0.0)))
    report.bandwidth, report.fma = bandwidth(report.clock), fma_rate(report.clock)
    said = f"a copy moves {report.bandwidth / 1e9:.0f} GB/s, read and written; "
    report.say(said + f"multiply-adds run at {report.fma / 1e12:.3g} TFLOP/s")
    report.found["machine"] = found | {"bandwidth": report.bandwidth, "fma": report.fma}


def check(report: Report) -> None:
    """Report one row for each op, and all that failed."""
    failed = []
    report.table("check                 |worst error / allowed|of tensor   |at")
    findings = gpu_check.findings(report.device, tiny=not report.on_gpu)
    for op, some in groupby(findings, key=lambda finding: finding.op):
        own = list(some)
        report.found.setdefault("check", []).extend(asdict(finding) for finding in own)
        worst = max(own, key=lambda finding: finding.worst)
        held = f"{op}: {sum(finding.ok for finding in own)} of {len(own)}"
        report.row(held, f"{worst.worst:.2f}", worst.of, worst.what)
        failed += [finding for finding in own if not finding.ok]
    for finding in failed:
        why = finding.error or f"{finding.of} is off by {finding.worst:.2f} times what is allowed"
        report.fail("check", f"{finding.op} {finding.what}: {why}")
    if reason := rasterizers.missing(report.device):
        report.say("", f"left out: gsplat ({reason})")


def ops(report: Report) -> None:
    """Report one row for each op and direction at each size."""
    names = "op      |          |Gaussians|image    |ms, best|ms, median|limit, ms|by        |of limit"
    report.table(f"{names}| GB/s|GFLOP/s")
    for scene in _scenes(report):
        with report.guarded("ops"):
            for row in gpu_time.ops(scene, report.clock, report.bandwidth, report.fma):
                report.found.setdefault("ops", []).append(row)
                times = [_ms(row["best"]), _ms(row["median"]), _ms(row["limit"]), row["bound"]]
                share = f"{100 * row['limit'] / row['median']:.0f} %"
                rates = [f"{row[what] / row['median'] / 1e9:.0f}" for what in ("bytes", "flops")]
                report.row(row["op"], row["direction"], f"{scene[0]:,}", _size(row), *times, share, *rates)
    missing = [op for op in OPS if not has(op, "gpu")]
    if missing:
        report.say("", f"left out: {', '.join(missing)} (no Triton kernel)")


def step(report: Report) -> None:
    """Report one row for each rasterizer at each size, and the speed relative to gsplat."""
    often = []
    names = "by       |Gaussians|image    |forward, ms|backward, ms|both, ms|step, ms"
    report.table(f"{names}|gsplat's both / ours|its step / ours|  GiB|waits")
    tried = [(scene, gpu_time.steps) for scene in _scenes(report)]
    for scene, measure in [*tried, (gpu_time.SMALL if report.on_gpu else gpu_time.TINY[0], gpu_time.small)]:
        other = None
        with report.guarded("step"):
            for row in measure(scene, report.clock):
                report.found.setdefault("step", []).append(row)
                row["both"], faster = row["forward"] + row["backward"], ["", ""]
                if row["by"] == "triton" and other and other["by"] == "gsplat":
                    row["gsplat"] = {what: other[what] / row[what] for what in ("both", "step")}
                    faster = [f"{ratio:.2f}" for ratio in row["gsplat"].values()]
                times = [_ms(row[name]) for name in ("forward", "backward", "both", "step")]
                held = f"{row['memory'] / 2**30:.2f}" if "memory" in row else ""
                cells = [row["by"], f"{scene[0]:,}", _size(row), *times, *faster, held]
                report.row(*cells, str(row.get("waits", "")))
                often += [row] if row["by"] == "triton" and row.get("waits", 0) > 1 else []
                other = row
    if often:
        report.fail("step", f"a step waits {often[0]['waits']} times, expected once, in tiles")
    if reason := rasterizers.missing(report.device):
        report.say("", f"left out: gsplat ({reason})")


def train(report: Report) -> None:
    """Report one row for each scene and rasterizer."""
    lacking = gpu_train.lacking()
    if lacking or not report.asked.data:
        report.say(f"left out: {lacking or '--data was not given'}")
        return
    failed = []
    steps = QUICK_STEPS if report.asked.quick else STEPS
    report.table("raster   |scene |PSNR |SSIM  |Gaussians|training, s|steps/s|all, s|  GiB")
    for row in gpu_train.trained(report.asked.data, steps, report.asked.seconds, report.on_gpu):
        report.found.setdefault("train", []).append(row)
        if why := row.get("left_out") or row.get("error"):
            said = "left out" if "left_out" in row else "failed"
            report.row(row["raster"], row["scene"], f"{said}: {why}")
            failed += [f"{row['raster']} on {row['scene']}: {why}"] if "error" in row else []
            continue
        seconds, memory = row["train_seconds"], f"{row['peak_memory_bytes'] / 2**30:.2f}"
        quality = [f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['num_gaussians']:,}"]
        pace = [f"{seconds:.1f}", f"{steps / seconds:.0f}", f"{row['wall_seconds']:.1f}", memory]
        report.row(row["raster"], row["scene"], *quality, *pace)
    for why in failed:
        report.fail("train", why)
    if report.on_gpu:
        found = gpu_train.waits_per_step("triton")
        report.found["waits"] = found
        report.say("", f"waits for the device in an ordinary step: {found.get('waits_per_step', found)}")
        if "error" in found:
            report.fail("train", found["error"])


def _scenes(report: Report) -> list:
    if not report.on_gpu:
        return gpu_time.TINY
    return gpu_time.QUICK if report.asked.quick else gpu_time.FULL


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _size(row: dict) -> str:
    return "x".join(map(str, row["size"]))
