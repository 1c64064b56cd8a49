"""Checks of training: the kernels, the reference rasterizer, and a complete small run."""

from __future__ import annotations

import json
import sys

from splatexp.doctor import processes
from splatexp.doctor.checks import BROKEN, MISSING, OK, CheckResult, format_bytes
from splatexp.doctor.installed import rebuild_command, reinstall_command

TOLERANCE = 1e-3  # of the largest value; three instruction sets come to 2.5e-5, wrong kernels to far more
RUN = "steps=3 data.size=48 data.train_views=6 data.test_views=1 data.points=400 data.samples=1"
RUN += " data.cache=false evaluate.turntable_frames=2 tracker=[csv] evaluate.lpips_weights="


def rasterizers(seconds: float) -> list[CheckResult]:
    """Compare the CPU kernels with the reference, and report what raster=auto chooses."""
    answer = processes.run_probe("raster", seconds)
    return [_kernels(answer), _reference(answer), _auto(answer)]


def _auto(answer: processes.ProbeResult) -> CheckResult:
    row = CheckResult(name="raster=auto", status=OK)
    row.detail = str(answer.facts.get("auto", "")).replace("raster=auto:", "takes")
    if not row.detail:
        row.status, row.reason, row.remedy = (
            BROKEN,
            answer.failure,
            reinstall_command("torch", answer.failure),
        )
    return row


def _kernels(answer: processes.ProbeResult) -> CheckResult:
    row = CheckResult(name="CPU kernels", status=OK, required=True)
    facts = answer.facts
    if "isa" in facts:
        row.detail = f"{facts['isa']} (of {', '.join(facts['isas'])}), {facts['threads']} threads"
    if "step_seconds" in facts and facts["difference"] <= TOLERANCE:
        row.detail += f"; agree with the reference to {facts['difference']:.0e}"
        row.detail += f"; a step of 10,000 Gaussians at 256x256: {1e3 * facts['step_seconds']:.1f} ms"
    elif "difference" in facts:
        row.status, row.remedy = BROKEN, f"{rebuild_command()} --no-cache-dir"
        row.reason = f"differ from the reference by {facts['difference']:.1e} of the largest value"
    elif "reference_seconds" not in facts:
        row.status, row.reason, row.remedy = (
            BROKEN,
            answer.failure,
            reinstall_command("torch", answer.failure),
        )
    else:
        missing = "not built" in answer.failure
        row.status, row.remedy = MISSING if missing else BROKEN, rebuild_command()
        row.reason = answer.failure.removeprefix("ImportError: ").partition("; install")[0]
    return row


def _reference(answer: processes.ProbeResult) -> CheckResult:
    row = CheckResult(
        name="reference rasterizer", status=OK, detail="raster=reference: for tests and tiny scenes"
    )
    if "reference_seconds" in answer.facts:
        row.detail += f"; a step of 60 Gaussians at 32x32: {1e3 * answer.facts['reference_seconds']:.0f} ms"
        return row
    row.status, row.reason, row.remedy = BROKEN, answer.failure, reinstall_command("torch", answer.failure)
    return row


def training_run(seconds: float) -> list[CheckResult]:
    """Train the built-in scene for three steps by the command line: load, train, save, evaluate, render."""
    row = CheckResult(name="training run", status=OK, required=True)
    folder = processes.temp_folder() / "run"
    words = [*RUN.split(), f"hydra.run.dir='{folder}'"]
    answer = processes.run_command([sys.executable, "-m", "splatexp", *words], seconds)
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        result, answer.failure = {}, answer.failure or str(error)
    if answer.failure:
        row.status, row.reason = BROKEN, answer.failure
        row.remedy = "HYDRA_FULL_ERROR=1 python -m splatexp steps=3 tracker=[csv]   # shows where"
        return [row]
    row.detail = "the built-in scene: loaded, trained for 3 steps, saved, measured"
    row.detail += ", not filmed" if "turntable" in result["skipped"] else ", filmed"
    row.detail += f"; {result['hardware']['threads']} threads"
    if result.get("peak_memory_bytes"):
        row.detail += f", {format_bytes(result['peak_memory_bytes'])}"
    return [row]
