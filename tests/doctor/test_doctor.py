"""The doctor: what it says is true here, what is missing has a remedy, and nothing makes it raise or hang."""

import json
import os
import sys
import time
from dataclasses import replace
from importlib import metadata

import psutil
import pytest
from support.command import python

import splatexp_kernels
from splatexp.doctor import __main__ as command
from splatexp.doctor import installed, machine, processes, software, training
from splatexp.doctor.checks import BROKEN, MISSING, OK, Check, CheckResult, format_bytes, run_checks
from splatexp.evaluation import metrics
from splatexp.raster.backends import Auto

EXTRAS = sorted(metadata.metadata("splatexp").get_all("Provides-Extra") or [])
NAMES = ["Python", "packages", *(f"extra {name}" for name in EXTRAS), "splatexp", "CPU kernels"]
NAMES += [
    "reference rasterizer",
    "raster=auto",
    "training run",
    "memory",
    "disk",
    "processors",
    "C++ compiler",
]
NAMES += ["tensorboard", "wandb", "video encoding", "LPIPS weights", "GPU", "nvcc", "triton", "gsplat"]
ABSENT = replace(processes.ProbeResult(), failure="AssertionError: Torch not compiled with CUDA enabled")


@pytest.fixture
def shadow(tmp_path, monkeypatch):
    """Puts modules before the installed ones in the doctor's processes; None: cannot be imported."""
    folder = tmp_path / "shadow"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))

    def put(name, code):
        if code is None:
            name, code = "sitecustomize", f"import sys; sys.modules[{name!r}] = None"
        (folder / f"{name}.py").write_text(code)

    return put


@pytest.fixture
def absent(monkeypatch):
    """Takes a package out of what the installation lists."""
    version = metadata.version

    def take(name):
        def asked(other):
            if other == name:
                raise metadata.PackageNotFoundError(other)
            return version(other)

        monkeypatch.setattr(metadata, "version", asked)

    return take


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    processes.kill_all()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    done = python("-m", "splatexp.doctor", "--json", "seconds=120", cwd=tmp_path_factory.mktemp("doctor"))
    return {row["name"]: row for row in json.loads(done.stdout)}


@pytest.mark.slow  # it imports every package there is, each in a process, and trains
def test_every_row_is_there_and_says_why_and_what_to_do(rows):
    assert list(rows) == NAMES
    for row in rows.values():
        assert list(row) == ["name", "status", "required", "detail", "reason", "remedy"]
        assert row["status"] in (OK, MISSING, BROKEN)
        assert row["detail"] if row["status"] == OK else row["reason"] and row["remedy"], row


@pytest.mark.slow
def test_the_rows_are_true_of_this_machine(rows):
    assert all(row["status"] == OK for row in rows.values() if row["required"])  # the exit status was 0
    isa, isas = splatexp_kernels.isa(), ", ".join(splatexp_kernels.isas())
    assert rows["CPU kernels"]["detail"].startswith(f"{isa} (of {isas}), ")
    assert f"torch {metadata.version('torch')}" in rows["packages"]["detail"]
    assert rows["Python"]["detail"].endswith(sys.executable)
    assert (
        "trained for 3 steps" in rows["training run"]["detail"]
        and "not filmed" not in rows["training run"]["detail"]
    )
    assert rows["video encoding"]["status"] == rows["tensorboard"]["status"] == OK
    taken = Auto().select()
    assert rows["raster=auto"]["detail"] == taken.selection_note.replace("raster=auto:", "takes")
    for name, package in [("triton", "triton"), ("extra viewer", "viser")]:
        assert (rows[name]["status"] == MISSING) == (installed.version(package) is None)


def test_nothing_is_left_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = machine.disk(5)
    assert row.status == OK and str(tmp_path) in row.detail and not list(tmp_path.iterdir())


def test_kernels_that_are_not_built(shadow):
    shadow("splatexp_kernels._cpu", None)
    kernels, reference, auto = training.rasterizers(60)
    assert auto.status == OK and auto.detail.startswith("takes ")
    assert kernels.status == MISSING and kernels.required and "not built" in kernels.reason
    assert kernels.remedy.startswith("pip install") and reference.status == OK


def test_kernels_that_are_wrong_or_die(monkeypatch):
    known = {"reference_seconds": 0.1, "isa": "avx2", "isas": ["avx2"], "threads": 2}
    ends = [processes.ProbeResult(facts=known, failure="killed by SIGILL")]
    ends += [processes.ProbeResult(facts={**known, "difference": 0.4, "step_seconds": 0.1})]
    ends += [processes.ProbeResult(failure="OSError: libtorch_cpu.so: cannot open shared object file")]
    told = [("SIGILL", "install"), ("4.0e-01", "install"), ("libtorch", "'torch")]
    for end, (reason, remedy) in zip(ends, told, strict=True):
        monkeypatch.setattr(processes, "run_probe", lambda name, seconds, end=end: end)
        row = training.rasterizers(1)[0]
        assert row.status == BROKEN and reason in row.reason and remedy in row.remedy


def test_a_run_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(training, "RUN", "steps=0")
    (row,) = training.training_run(60)
    assert row.status == BROKEN and row.required and "steps: expected at least 1" in row.reason and row.remedy


def test_no_compiler_and_one_that_cannot(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = software.compiler(10)
    assert row.status == MISSING and "PATH" in row.reason and row.remedy == "install GCC or Clang"
    (tmp_path / "apt-get").touch(0o755)
    assert software.compiler(10)[0].remedy == "sudo apt-get install g++"
    (tmp_path / "g++").write_text("#!/bin/sh\necho 'vector: No such file' >&2; exit 1\n")
    (tmp_path / "g++").chmod(0o755)
    (row,) = software.compiler(10)
    assert row.status == BROKEN and row.reason == "vector: No such file" and row.remedy


def test_wandb_without_a_key_with_one_and_told(tmp_path, monkeypatch, shadow):
    shadow("wandb", "__version__ = '9.9'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (row,) = software.wandb(30)
    assert (row.status, row.reason, row.remedy) == (OK, "not logged in", "wandb login")
    assert "9.9" in row.detail and "offline" in row.detail
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    (row,) = software.wandb(30)
    assert "logged in" in row.detail and not row.remedy
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "WANDB_MODE" in software.wandb(30)[0].detail


@pytest.mark.parametrize(("name", "look"), [("wandb", software.wandb), ("triton", machine.triton)])
def test_packages_that_are_missing(name, look, shadow, absent):
    shadow(name, None)
    absent(name)
    (row,) = look(30)
    assert row.status == MISSING and not row.required and row.reason.startswith("not installed")
    assert row.remedy.startswith("pip install ") and name in row.remedy


def test_an_import_that_crashes_is_a_row(shadow):
    shadow("gsplat", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (row,) = machine.gsplat(30)
    assert row.status == BROKEN and "SIGSEGV" in row.reason and "--force-reinstall 'gsplat" in row.remedy
    shadow("gsplat", "raise OSError('libcudart.so.12: cannot open')")
    assert "OSError: libcudart.so.12" in machine.gsplat(30)[0].reason
    shadow("gsplat", "import nowhere")
    assert machine.gsplat(30)[0].remedy.startswith("pip install 'gsplat")  # which adds what it lacks


@pytest.mark.parametrize("look", [machine.triton, machine.gsplat])
def test_what_draws_on_a_gpu_is_held_against_the_reference(look, monkeypatch):
    facts, name = {"version": "9.9", "compiled": "here.so"}, look.__name__

    def row(**more):
        monkeypatch.setattr(
            processes, "run_probe", lambda name, seconds: processes.ProbeResult(facts={**facts, **more})
        )
        return look(1)[0]

    found = row(missing="no CUDA device; look for one")
    assert found.reason == f"raster={name} cannot run here: no CUDA device; look for one"
    assert "9.9" in found.detail
    found = row(missing="", difference=3e-5)
    assert found.status == OK and "agrees with the reference to 3e-05" in found.detail and not found.reason
    found = row(missing="", difference=0.2)
    assert found.status == BROKEN and "by 2.0e-01 of the largest value" in found.reason and found.remedy


def test_an_import_that_hangs_is_a_row_and_is_ended(tmp_path, shadow):
    code = "import os, subprocess, time\nothers = subprocess.Popen(['sleep', '600']).pid\n"
    code += f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{others}}')\ntime.sleep(600)"
    shadow("triton", code)
    began = time.monotonic()
    (row,) = machine.triton(2)
    assert time.monotonic() - began < 20
    assert row.status == BROKEN and "no answer in 2 s" in row.reason and row.remedy
    started = list(map(int, (tmp_path / "pids").read_text().split()))
    while any(map(lives, started)):  # a busy system takes a moment
        assert time.monotonic() - began < 30
        time.sleep(0.01)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_check_that_raises_or_hangs_is_a_row():
    def raises(seconds):
        raise ArithmeticError("first line\nsecond line")

    def lacks(seconds):
        import nowhere.to_be_found  # noqa: F401

    checks = [Check("one", raises), Check("two", lambda seconds: time.sleep(30), required=True)]
    checks += [
        Check("three", lambda seconds: [CheckResult(name="3", status=OK)], exclusive=True),
        Check("four", lacks),
    ]
    began = time.monotonic()
    rows = run_checks(checks, 0.2)
    assert time.monotonic() - began < 5
    assert [row.name for row in rows] == ["one", "two", "3", "four"]
    assert [row.status for row in rows] == [BROKEN, BROKEN, OK, BROKEN]
    assert rows[0].reason == "ArithmeticError: first line" and rows[0].remedy
    assert rows[1].required and rows[1].reason == "no answer in 0.2 s" and "seconds=" in rows[1].remedy
    assert rows[3].remedy == "pip install nowhere"


def test_requirements_are_held_against_what_is_installed(monkeypatch, absent):
    wanted = ["numpy", "torch<99,>=98", "nothing-of-the-kind>=1", 'viser>=1; extra == "viewer"']
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    absent("viser")
    rows = software.packages(1)
    assert rows[0].status == BROKEN and "numpy" in rows[0].detail
    assert "not installed: nothing-of-the-kind" in rows[0].reason and "is not <99,>=98" in rows[0].reason
    assert rows[0].remedy == "pip install 'torch<99,>=98' 'nothing-of-the-kind>=1'"
    (viewer,) = (row for row in rows if row.name == "extra viewer")
    assert (viewer.status, viewer.remedy) == (MISSING, "pip install 'viser>=1'")
    absent("splatexp")
    assert software.splatexp_package(1)[0].status == BROKEN


HERE = {"torch": "2.13.0+cu130", "cuda": "13.0", "hip": None}
CARD = {"name": "H100", "memory": 80 * 2**30, "count": 2, "capability": "9.0"}


@pytest.mark.parametrize(
    ("facts", "failure", "driver", "visible", "state", "error_line", "remedy"),
    [
        ({**HERE, **CARD}, "", "580.1", None, OK, "2 x H100, 80.0 GiB", ""),
        ({**HERE, **CARD}, "no kernel image", "580.1", None, BROKEN, "no kernel image", "--index-url"),
        ({**HERE, "cuda": None}, "x", "", None, MISSING, "no NVIDIA driver", "--gpus all"),
        ({**HERE, "cuda": None}, "x", "580.1", None, MISSING, "without CUDA", "--force-reinstall 'torch"),
        (HERE, "No CUDA GPUs are available", "580.1", "", MISSING, "hides it", "unset CUDA_VISIBLE_DEVICES"),
        (HERE, "the driver is too old", "470.1", "0", BROKEN, "too old", "drivers"),
        (HERE, "x", None, None, BROKEN, "does not answer", "reboot"),
        ({}, "OSError: libtorch.so", "580.1", None, BROKEN, "cannot be imported", "'torch"),
        ({}, "killed by SIGSEGV", "", None, BROKEN, "SIGSEGV", "'torch"),
    ],
)
def test_why_torch_says_no(facts, failure, driver, visible, state, error_line, remedy):
    told = processes.ProbeResult(failure="mismatch") if driver is None else processes.ProbeResult(driver)
    settings = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    row = machine.gpu(processes.ProbeResult(failure=failure, facts=facts), told, settings)
    assert row.status == state and error_line in row.detail + row.reason
    assert remedy in row.remedy and bool(row.remedy) == bool(failure)


def test_the_driver_is_asked(tmp_path, monkeypatch):
    smi, device = tmp_path / "nvidia-smi", tmp_path / "version"
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine, "DEVICES", (str(device),))
    smi.write_text("#!/bin/sh\necho 580.95.05\n")
    smi.chmod(0o755)
    assert machine.driver(10) == processes.ProbeResult("580.95.05")
    smi.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    assert machine.driver(10) == processes.ProbeResult()  # a machine image with the tool, and no GPU
    device.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Release Build\n")
    assert machine.driver(10).failure == "Driver/library version mismatch"
    smi.unlink()
    assert machine.driver(10).text == "580.95.05"


def test_nvcc_has_to_fit_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "TOOLKIT", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (row,) = machine.nvcc(10)
    assert row.status == MISSING and row.remedy
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\necho 'compilation tools, release 12.4, V12.4.131'\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    for cuda, state in (("", OK), ("12.8", OK), ("13.0", BROKEN)):
        monkeypatch.setattr(machine, "_cuda_of_torch", lambda cuda=cuda: cuda)
        (row,) = machine.nvcc(10)
        assert row.status == state and "12.4, " in row.detail and bool(row.remedy) == (state == BROKEN)


def test_a_disk_that_takes_no_file(monkeypatch):
    def refused(**settings):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refused)
    (row,) = machine.disk(1)
    assert (
        row.status == BROKEN and row.required and "Read-only" in row.reason and "hydra.run.dir" in row.remedy
    )


def test_memory_that_is_too_little(monkeypatch):
    from splatexp.system import memory

    assert machine.memory(1)[0].status == OK
    monkeypatch.setattr(memory, "available_memory", lambda: 2**28)
    (row,) = machine.memory(1)
    assert row.status == BROKEN and row.required and "may take 256 MiB" in row.detail and row.remedy


def test_the_share_of_a_container(tmp_path):
    assert machine.cpu_quota(tmp_path) is None
    for text, share in (("max 100000\n", None), ("50000 100000\n", 0.5), ("250000 100000\n", 2.5)):
        (tmp_path / "cpu.max").write_text(text)
        assert machine.cpu_quota(tmp_path) == share


def test_weights_are_looked_for_and_looked_at(tmp_path, monkeypatch):
    empty = "e3b0c442"  # what the SHA-256 of no bytes begins with
    monkeypatch.setattr(metrics, "BACKBONES", {"vgg": f"vgg-{empty}.pth", "alex": f"alex-{empty}.pth"})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (row,) = software.lpips("", 1)
    assert row.status == MISSING and str(cache) in row.reason and "curl" in row.remedy
    (cache / f"vgg-{empty}.pth").touch()
    (row,) = software.lpips("", 1)
    assert row.status == MISSING and f"/alex-{empty}.pth'" in row.remedy and "vgg" in row.detail
    (cache / f"alex-{empty}.pth").touch()
    (row,) = software.lpips(str(cache), 1)
    assert row.status == OK and f"evaluate.lpips_weights={cache}" in row.detail and not row.remedy
    (cache / f"alex-{empty}.pth").write_text("something else")
    assert software.lpips("", 1)[0].status == BROKEN


TABLE = [
    CheckResult(
        name="kernels",
        status=BROKEN,
        required=True,
        detail="word " * 40,
        reason="so it is",
        remedy="pip " * 40,
    ),
    CheckResult(name="weights", status=MISSING, reason="none [of] them", remedy="wandb login"),
    CheckResult(name="disk", status=OK, detail="wide"),
]


def test_the_table_fits_eighty_columns_and_can_be_piped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command.show(TABLE)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines if "remedy:" not in line) and "\x1b" not in "".join(lines)
    assert any(line.endswith("pip " * 39 + "pip") for line in lines)  # a command stays whole
    assert any("none [of] them" in line for line in lines)
    assert lines[-1] == "A run cannot train here: kernels."
    command.show(TABLE[1:])
    assert capsys.readouterr().out.endswith("A run can train here. Not available: weights.\n")


def test_without_rich_the_rows_are_plain(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    command.show(TABLE)
    assert "weights: missing\n    none [of] them\n    remedy: wandb login\n" in capsys.readouterr().out


def test_the_command(capsys, monkeypatch):
    def main(*words):
        monkeypatch.setattr(sys, "argv", ["doctor", *words])
        return command.main(), capsys.readouterr()

    status, said = main("--help")
    assert status == 0 and "python -m splatexp.doctor" in said.out
    wrong = {"lpips_weight=x": "lpips_weights", "seconds=soon": "a number", "--jsn": "--json"}
    for word, told in wrong.items():
        status, said = main(word)
        assert status == 2 and told in said.err and not said.out
    for rows, expected in ((TABLE, 1), (TABLE[1:], 0)):
        found = [Check("all", lambda seconds, rows=rows: rows)]
        monkeypatch.setattr(command, "checks", lambda folder, found=found: found)
        status, said = main("--json", "seconds=5", "lpips_weights=here")
        assert status == expected and [row["name"] for row in json.loads(said.out)] == [r.name for r in rows]


def test_sizes_are_for_people():
    assert [format_bytes(2**20), format_bytes(3.5 * 2**30)] == ["1 MiB", "3.5 GiB"]
