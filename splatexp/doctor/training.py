"""The checks of what trains: the kernels, the reference, and a run from the command line to its film."""

from __future__ import annotations

import json
import sys

from splatexp.doctor import child
from splatexp.doctor.installed import install, mend
from splatexp.doctor.rows import BROKEN, MISSING, WORKS, Row, size

AGREES = 1e-3  # of the largest value; three instruction sets come to 2.5e-5, wrong kernels to far more
RUN = "steps=3 data.size=48 data.train_views=6 data.test_views=1 data.points=400 data.samples=1"
RUN += " data.cache=false evaluate.turntable_frames=2 tracker=[csv] evaluate.lpips_weights="


def rasters(seconds: float) -> list[Row]:
    """The CPU kernels, held against the reference; the reference by itself; and what a run would take."""
    answer = child.probe("raster", seconds)
    return [_kernels(answer), _reference(answer), _auto(answer)]


def _auto(answer: child.Answer) -> Row:
    row = Row(name="raster=auto", state=WORKS)
    row.detail = str(answer.facts.get("auto", "")).replace("raster=auto:", "takes")
    if not row.detail:
        row.state, row.reason, row.remedy = BROKEN, answer.failure, mend("torch", answer.failure)
    return row


def _kernels(answer: child.Answer) -> Row:
    row = Row(name="CPU kernels", state=WORKS, needed=True)
    facts = answer.facts
    if "isa" in facts:
        row.detail = f"{facts['isa']} (of {', '.join(facts['isas'])}), {facts['threads']} threads"
    if "step_seconds" in facts and facts["difference"] <= AGREES:
        row.detail += f"; agree with the reference to {facts['difference']:.0e}"
        row.detail += f"; a step of 10,000 Gaussians at 256x256: {1e3 * facts['step_seconds']:.1f} ms"
    elif "difference" in facts:
        row.state, row.remedy = BROKEN, f"{install()} --no-cache-dir"
        row.reason = f"differ from the reference by {facts['difference']:.1e} of the largest value"
    elif "reference_seconds" not in facts:
        row.state, row.reason, row.remedy = BROKEN, answer.failure, mend("torch", answer.failure)
    else:
        missing = "not built" in answer.failure
        row.state, row.remedy = MISSING if missing else BROKEN, install()
        row.reason = answer.failure.removeprefix("ImportError: ").partition("; install")[0]
    return row


def _reference(answer: child.Answer) -> Row:
    row = Row(name="reference raster", state=WORKS, detail="raster=reference: for tests and tiny scenes")
    if "reference_seconds" in answer.facts:
        row.detail += f"; a step of 60 Gaussians at 32x32: {1e3 * answer.facts['reference_seconds']:.0f} ms"
        return row
    row.state, row.reason, row.remedy = BROKEN, answer.failure, mend("torch", answer.failure)
    return row


def a_run(seconds: float) -> list[Row]:
    """Three steps of the built-in scene, small, by the command line: load, train, save, measure, film."""
    row = Row(name="a run", state=WORKS, needed=True)
    folder = child.place() / "run"
    words = [*RUN.split(), f"hydra.run.dir='{folder}'"]
    answer = child.ask([sys.executable, "-m", "splatexp", *words], seconds)
    try:
        result = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        result, answer.failure = {}, answer.failure or str(error)
    if answer.failure:
        row.state, row.reason = BROKEN, answer.failure
        row.remedy = "HYDRA_FULL_ERROR=1 python -m splatexp steps=3 tracker=[csv]   # shows where"
        return [row]
    row.detail = "the built-in scene: loaded, trained for 3 steps, saved, measured"
    row.detail += ", not filmed" if "turntable" in result["left_out"] else ", filmed"
    row.detail += f"; {result['hardware']['threads']} threads"
    if result.get("peak_memory_bytes"):
        row.detail += f", {size(result['peak_memory_bytes'])}"
    return [row]
