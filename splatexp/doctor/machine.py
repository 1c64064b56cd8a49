"""The checks of what the machine has: processors, memory, disk, and what a GPU and its tools would add."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import util
from pathlib import Path
from typing import Any

from splatexp.doctor import child
from splatexp.doctor.installed import mend, pip, system_package
from splatexp.doctor.rows import BROKEN, MISSING, WORKS, Row, size
from splatexp.doctor.software import failed, imported
from splatexp.doctor.training import AGREES
from splatexp.system.cgroups import processor_share

MEMORY_ENOUGH = 3 * 2**28  # bytes; the default run takes 450 MiB, and stops where less than 256 MiB are left
DISK_ENOUGH = 2**28  # bytes; the default run writes 40 MiB, a large scene many times that
TOOLKIT = "/usr/local/cuda"
AGREES_FAST = 1e-2  # of the largest value, for kernels that were compiled with --use_fast_math
DEVICES = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")  # Linux, a container, WSL


def processors(seconds: float) -> list[Row]:
    """Those of the machine, those that this process is bound to, and a container's share of them."""
    from splatexp.provenance.environment import _cpu_name

    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = processor_share()
    detail = f"{bound} of {os.cpu_count()} may be used"
    detail += "" if share is None else f", the container's share is {share:g}"
    return [Row(name="processors", state=WORKS, detail=f"{detail}; {_cpu_name()}")]


def memory(seconds: float) -> list[Row]:
    """The machine's memory, what is free of it, and what this process may take if that is less."""
    import psutil

    from splatexp.system.memory import available

    system, mine = psutil.virtual_memory(), available()
    row = Row(name="memory", state=WORKS, needed=True)
    row.detail = f"{size(system.total)}, {size(system.available)} of it available"
    free = system.available if mine is None else mine
    if free < 0.99 * system.available:
        row.detail += f"; this process may take {size(free)}: a container's limit, or ulimit -v"
    if free < MEMORY_ENOUGH:
        row.state, row.reason = BROKEN, f"less than {size(MEMORY_ENOUGH)}, which the default run wants"
        row.remedy = "python -m splatexp preset=memory_low   # or end other programs, or raise the limit"
    return [row]


def disk(seconds: float) -> list[Row]:
    """Room where runs land, multirun/ or the current folder, and whether a file can be written there."""
    place = Path("multirun") if Path("multirun").is_dir() else Path()
    row = Row(name="disk", state=WORKS, needed=True, remedy="python -m splatexp hydra.run.dir=<folder>")
    try:
        free = shutil.disk_usage(place).free
        row.detail = f"{size(free)} free in {place.resolve()}"
        with tempfile.TemporaryFile(dir=place, prefix=".splatexp-doctor-") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        row.state, row.reason = BROKEN, f"no file can be written in {place.resolve()}: {error.strerror}"
        return [row]
    row.detail += ", files can be written"
    if free < DISK_ENOUGH:
        row.state, row.reason = BROKEN, f"less than {size(DISK_ENOUGH)} free"
    else:
        row.remedy = ""
    return [row]


def graphics(seconds: float) -> list[Row]:
    """The GPU, as torch and its driver see it."""
    return [gpu(child.probe("gpu", 0.7 * seconds), driver(0.3 * seconds), os.environ)]


def gpu(answer: child.Answer, driver: child.Answer, environment: Mapping[str, str]) -> Row:
    """What torch can use, or why it cannot.

    answer: of the probe. driver: of `driver`.
    """
    facts, built = answer.facts, answer.facts.get("cuda") or answer.facts.get("hip")
    row = Row(name="GPU", state=WORKS)
    if "name" in facts:
        others = f"{facts['count']} x " if facts["count"] > 1 else ""
        row.detail = f"{others}{facts['name']}, {size(facts['memory'])}, capability {facts['capability']}"
        row.detail += f"; driver {driver.text or 'unknown'}, torch {facts['torch']}"
    if not answer.failure:
        return row
    row.state, hidden = MISSING, environment.get("CUDA_VISIBLE_DEVICES")
    if "torch" not in facts:
        row.state, row.reason = BROKEN, f"torch cannot be imported: {answer.failure}"
        row.remedy = mend("torch", answer.failure)
    elif "name" in facts:
        row.state, row.reason, row.remedy = BROKEN, answer.failure, _torch_for_cuda()
    elif not driver.text and driver.failure:
        row.state, row.reason = BROKEN, f"the driver does not answer: {driver.failure}"
        row.remedy = "sudo reboot   # a driver that was updated wants it; else install it again"
    elif not driver.text:
        row.reason = "no NVIDIA driver or device here; none is needed, raster=cpu trains without"
        row.remedy = "a machine with an NVIDIA GPU and its driver; in a container, docker run --gpus all"
    elif not built:
        row.reason = f"driver {driver.text} is here, but torch {facts['torch']} is built without CUDA"
        row.remedy = _torch_for_cuda()
    elif hidden is not None and not re.match(r"\d|GPU|MIG", hidden):
        row.reason, row.remedy = f"CUDA_VISIBLE_DEVICES={hidden!r} hides it", "unset CUDA_VISIBLE_DEVICES"
    else:
        row.state, row.reason = BROKEN, f"driver {driver.text}, torch for CUDA {built}: {answer.failure}"
        row.remedy = "a driver for that CUDA: https://www.nvidia.com/drivers; or an older torch: "
        row.remedy += f"{_torch_for_cuda(index='https://download.pytorch.org/whl/cu126')}"
    return row


def driver(seconds: float) -> child.Answer:
    """The NVIDIA driver's version as text; a failure where one is there and silent; else neither."""
    if shutil.which("nvidia-smi"):
        asked = child.ask(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], seconds)
        if not asked.failure:
            return child.Answer(asked.text.partition("\n")[0].strip())
        if any(Path(path).exists() for path in DEVICES):
            return child.Answer(failure=asked.text.partition("\n")[0] or asked.failure)
    try:
        told = re.search(r"\b\d{3}\.[\d.]+", Path(DEVICES[0]).read_text())
        return child.Answer(told[0] if told else "")
    except OSError:
        return child.Answer()


def nvcc(seconds: float) -> list[Row]:
    """The CUDA compiler, of a version that torch can use."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), TOOLKIT]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    row, found = Row(name="nvcc", state=WORKS), shutil.which("nvcc", path=path)
    if found is None:
        row.state, row.reason = (
            MISSING,
            "not in PATH, CUDA_HOME or /usr/local/cuda; gsplat compiles with it",
        )
        row.remedy = system_package("nvcc")
        return [row]
    answer = child.ask([found, "--version"], seconds)
    told, cuda = re.search(r"release ([\d.]+)", answer.text), _cuda_of_torch()
    row.detail = f"{told[1] if told else 'unknown version'}, {found}"
    if answer.failure:
        row.state, row.reason, row.remedy = BROKEN, answer.failure, system_package("nvcc")
    elif cuda and told and told[1].partition(".")[0] != cuda.partition(".")[0]:
        row.state, row.reason = BROKEN, f"torch is built for CUDA {cuda}, and compiles with no other"
        row.remedy = f"conda install -c nvidia cuda-nvcc={cuda}"
    return [row]


def triton(seconds: float) -> list[Row]:
    """Triton, which comes with torch for CUDA, and whether our kernels in it are right."""
    row, facts = imported("triton", seconds)
    if not facts:
        row.reason += "; it comes with torch for CUDA, and is of use with a GPU only"
    else:
        _drawn(row, facts, AGREES)
    return [row]


def gsplat(seconds: float) -> list[Row]:
    """gsplat and its CUDA extension; it is not compiled here, which takes minutes."""
    row, answer = Row(name="gsplat", state=WORKS), child.probe("gsplat", seconds)
    facts: dict[str, Any] = answer.facts
    row.detail = facts.get("version", "")
    if answer.failure:
        row.state, row.reason = BROKEN, f"{failed(facts)}: {answer.failure}"
        row.remedy = mend("gsplat", answer.failure)
    elif facts["compiled"]:
        row.detail += f", CUDA extension {facts['compiled']}"
        _drawn(row, facts, AGREES_FAST)
    else:
        row.state, row.reason = (
            MISSING,
            "its CUDA extension is not compiled, and it draws on a GPU only",
        )
        row.remedy = 'python -c "from gsplat.cuda._backend import _C"   # with a GPU and nvcc; minutes'
    return [row]


def _drawn(row: Row, facts: Mapping[str, Any], most: float) -> None:
    """Whether `raster=<row>` can draw here, and as the reference does."""
    if facts["missing"]:
        row.reason = f"raster={row.name} cannot run here: {facts['missing']}"
    elif facts["difference"] <= most:
        row.detail += f"; raster={row.name} agrees with the reference to {facts['difference']:.0e}"
    else:
        row.state, row.remedy = BROKEN, "python -m splatexp raster=cpu   # until it is mended"
        row.reason = f"raster={row.name} differs from the reference by {facts['difference']:.1e}"
        row.reason += " of the largest value"


def _cuda_of_torch() -> str:
    """The CUDA that torch is built for, "" for none; torch is not imported."""
    found = util.find_spec("torch")
    try:
        text = Path(found.origin).with_name("version.py").read_text() if found and found.origin else ""
    except OSError:
        return ""
    told = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return told[1] if told else ""


def _torch_for_cuda(index: str = "https://pypi.org/simple") -> str:
    """On Linux the index of Python's own packages holds torch with CUDA."""
    return f"{pip('torch', 'torchvision', again=True)} --index-url {index}"
