"""Checks of the machine: processors, memory, disk, the GPU and its tools."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from splatexp.doctor import processes
from splatexp.doctor.checks import BROKEN, MISSING, OK, CheckResult, format_bytes
from splatexp.doctor.installed import pip_command, reinstall_command, system_package
from splatexp.doctor.software import failed, import_check
from splatexp.doctor.training import TOLERANCE
from splatexp.system.linux_memory import cpu_quota

MIN_MEMORY = 3 * 2**28  # bytes; the default run takes 450 MiB, and stops where less than 256 MiB are left
MIN_DISK = 2**28  # bytes; the default run writes 40 MiB, a large scene many times that
TOOLKIT = "/usr/local/cuda"
FAST_MATH_TOLERANCE = 1e-2  # of the largest value, for kernels that were compiled with --use_fast_math
DEVICES = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")  # Linux, a container, WSL


def processors(seconds: float) -> list[CheckResult]:
    """Check the processors: those of the machine, those that the process may use, and a container's share."""
    from splatexp.provenance.environment import cpu_name

    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = cpu_quota()
    detail = f"{bound} of {os.cpu_count()} may be used"
    detail += "" if share is None else f", the container's share is {share:g}"
    return [CheckResult(name="processors", status=OK, detail=f"{detail}; {cpu_name()}")]


def memory(seconds: float) -> list[CheckResult]:
    """Check the memory of the machine, and what this process may take of it."""
    import psutil

    from splatexp.system.memory import available_memory

    system, mine = psutil.virtual_memory(), available_memory()
    row = CheckResult(name="memory", status=OK, required=True)
    row.detail = f"{format_bytes(system.total)}, {format_bytes(system.available)} of it available"
    free = system.available if mine is None else mine
    if free < 0.99 * system.available:
        row.detail += f"; this process may take {format_bytes(free)}: a container's limit, or ulimit -v"
    if free < MIN_MEMORY:
        row.status, row.reason = BROKEN, f"less than {format_bytes(MIN_MEMORY)}, which the default run wants"
        row.remedy = "python -m splatexp preset=memory_low   # or end other programs, or raise the limit"
    return [row]


def disk(seconds: float) -> list[CheckResult]:
    """Check free space and write access where runs are stored: multirun/ or the current folder."""
    place = Path("multirun") if Path("multirun").is_dir() else Path()
    row = CheckResult(
        name="disk", status=OK, required=True, remedy="python -m splatexp hydra.run.dir=<folder>"
    )
    try:
        free = shutil.disk_usage(place).free
        row.detail = f"{format_bytes(free)} free in {place.resolve()}"
        with tempfile.TemporaryFile(dir=place, prefix=".splatexp-doctor-") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        row.status, row.reason = BROKEN, f"no file can be written in {place.resolve()}: {error.strerror}"
        return [row]
    row.detail += ", files can be written"
    if free < MIN_DISK:
        row.status, row.reason = BROKEN, f"less than {format_bytes(MIN_DISK)} free"
    else:
        row.remedy = ""
    return [row]


def gpu_check(seconds: float) -> list[CheckResult]:
    """Check the GPU, as torch and its driver see it."""
    return [gpu(processes.run_probe("gpu", 0.7 * seconds), driver(0.3 * seconds), os.environ)]


def gpu(
    answer: processes.ProbeResult, driver: processes.ProbeResult, environment: Mapping[str, str]
) -> CheckResult:
    """Return whether torch can use a GPU, or why it cannot.

    answer: result of the probe. driver: result of `driver`.
    """
    facts, built = answer.facts, answer.facts.get("cuda") or answer.facts.get("hip")
    row = CheckResult(name="GPU", status=OK)
    if "name" in facts:
        others = f"{facts['count']} x " if facts["count"] > 1 else ""
        row.detail = (
            f"{others}{facts['name']}, {format_bytes(facts['memory'])}, capability {facts['capability']}"
        )
        row.detail += f"; driver {driver.text or 'unknown'}, torch {facts['torch']}"
    if not answer.failure:
        return row
    row.status, hidden = MISSING, environment.get("CUDA_VISIBLE_DEVICES")
    if "torch" not in facts:
        row.status, row.reason = BROKEN, f"torch cannot be imported: {answer.failure}"
        row.remedy = reinstall_command("torch", answer.failure)
    elif "name" in facts:
        row.status, row.reason, row.remedy = BROKEN, answer.failure, _torch_for_cuda()
    elif not driver.text and driver.failure:
        row.status, row.reason = BROKEN, f"the driver does not answer: {driver.failure}"
        row.remedy = "sudo reboot   # after a driver update; otherwise reinstall the driver"
    elif not driver.text:
        row.reason = "no NVIDIA driver or device found; raster=cpu trains without one"
        row.remedy = "a machine with an NVIDIA GPU and its driver; in a container, docker run --gpus all"
    elif not built:
        row.reason = f"driver {driver.text} is here, but torch {facts['torch']} is built without CUDA"
        row.remedy = _torch_for_cuda()
    elif hidden is not None and not re.match(r"\d|GPU|MIG", hidden):
        row.reason, row.remedy = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it", "unset CUDA_VISIBLE_DEVICES"
    else:
        row.status, row.reason = BROKEN, f"driver {driver.text}, torch for CUDA {built}: {answer.failure}"
        row.remedy = "a driver for that CUDA: https://www.nvidia.com/drivers; or an older torch: "
        row.remedy += f"{_torch_for_cuda(index='https://download.pytorch.org/whl/cu126')}"
    return row


def driver(seconds: float) -> processes.ProbeResult:
    """Return the version of the NVIDIA driver as text; a failure if there is one that does not answer."""
    if shutil.which("nvidia-smi"):
        asked = processes.run_command(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], seconds
        )
        if not asked.failure:
            return processes.ProbeResult(asked.text.partition("\n")[0].strip())
        if any(Path(path).exists() for path in DEVICES):
            return processes.ProbeResult(failure=asked.text.partition("\n")[0] or asked.failure)
    try:
        told = re.search(r"\b\d{3}\.[\d.]+", Path(DEVICES[0]).read_text())
        return processes.ProbeResult(told[0] if told else "")
    except OSError:
        return processes.ProbeResult()


def nvcc(seconds: float) -> list[CheckResult]:
    """Check the CUDA compiler, and whether torch can use its version."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    row, found = CheckResult(name="nvcc", status=OK), shutil.which("nvcc", path=path)
    if found is None:
        row.status, row.reason = (
            MISSING,
            "not in PATH, CUDA_HOME or /usr/local/cuda; gsplat compiles with it",
        )
        row.remedy = system_package("nvcc")
        return [row]
    answer = processes.run_command([found, "--version"], seconds)
    told, cuda = re.search(r"release ([\d.]+)", answer.text), _cuda_of_torch()
    row.detail = f"{told[1] if told else 'unknown version'}, {found}"
    if answer.failure:
        row.status, row.reason, row.remedy = BROKEN, answer.failure, system_package("nvcc")
    elif cuda and told and told[1].partition(".")[0] != cuda.partition(".")[0]:
        row.status, row.reason = BROKEN, f"torch is built for CUDA {cuda}, and compiles with no other"
        row.remedy = f"conda install -c nvidia cuda-nvcc={cuda}"
    return [row]


def triton(seconds: float) -> list[CheckResult]:
    """Check Triton, which comes with torch for CUDA, and the Triton kernels."""
    row, facts = import_check("triton", seconds)
    if not facts:
        row.reason += "; it comes with torch for CUDA, and is of use with a GPU only"
    else:
        _drawn(row, facts, TOLERANCE)
    return [row]


def gsplat(seconds: float) -> list[CheckResult]:
    """Check gsplat and its CUDA extension; it is not compiled here, which takes minutes."""
    row, answer = CheckResult(name="gsplat", status=OK), processes.run_probe("gsplat", seconds)
    facts: dict[str, Any] = answer.facts
    row.detail = facts.get("version", "")
    if answer.failure:
        row.status, row.reason = BROKEN, f"{failed(facts)}: {answer.failure}"
        row.remedy = reinstall_command("gsplat", answer.failure)
    elif facts["compiled"]:
        row.detail += f", CUDA extension {facts['compiled']}"
        _drawn(row, facts, FAST_MATH_TOLERANCE)
    else:
        row.status, row.reason = (
            MISSING,
            "its CUDA extension is not compiled, and it draws on a GPU only",
        )
        row.remedy = 'python -c "from gsplat.cuda._backend import _C"   # with a GPU and nvcc; minutes'
    return [row]


def _drawn(row: CheckResult, facts: Mapping[str, Any], most: float) -> None:
    """Add whether `raster=<name>` can render here, and whether it agrees with the reference."""
    if facts["missing"]:
        row.reason = f"raster={row.name} cannot run here: {facts['missing']}"
    elif facts["difference"] <= most:
        row.detail += f"; raster={row.name} agrees with the reference to {facts['difference']:.0e}"
    else:
        row.status, row.remedy = BROKEN, "python -m splatexp raster=cpu   # until this is repaired"
        row.reason = f"raster={row.name} differs from the reference by {facts['difference']:.1e}"
        row.reason += " of the largest value"


def _cuda_of_torch() -> str:
    """Return the CUDA version that torch is built for, or "" for none, without importing torch."""
    found = util.find_spec("torch")
    try:
        text = Path(found.origin).with_name("version.py").read_text() if found and found.origin else ""
    except OSError:
        return ""
    told = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return told[1] if told else ""


def _torch_for_cuda(index: str = "https://pypi.org/simple") -> str:
    """Return the command that installs torch with CUDA; on Linux that is what PyPI has."""
    return f"{pip_command('torch', 'torchvision', again=True)} --index-url {index}"
