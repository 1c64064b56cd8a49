"""Memory: how much of it is available, whether it has run out, and which settings would take less."""

import errno
import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from support.command import python

import splatexp_kernels as sk
from splatexp.run import memory_budget
from splatexp.run.memory_budget import DOWNSCALE_KEY, MAX_GAUSSIANS_KEY, next_reduction, oom_advice
from splatexp.system import linux_memory, memory
from splatexp.system.memory import MemorySettings, available_memory, is_out_of_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are looked for on Linux alone")
GIB = 1 << 30
V2 = "cgroup2 cgroup2 rw"


@pytest.fixture
def machine(tmp_path):
    """A root folder with 64 GiB available and control groups, `path: limit, usage, cache`."""

    def build(own, groups, top="/", mount="/sys/fs/cgroup"):
        files = {"proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {64 * GIB >> 10} kB\n"}
        files["proc/self/cgroup"] = f"7:pids:/elsewhere\n4:memory:/elsewhere\n0::{own}\n"
        files["proc/self/mountinfo"] = f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 {top} {mount} rw - {V2}\n"
        for path, (limit, usage, cache) in groups.items():
            folder = f"{mount}{path}".strip("/")
            files |= {f"{folder}/memory.max": f"{limit}\n", f"{folder}/memory.current": f"{usage}\n"}
            files[f"{folder}/memory.stat"] = f"cache 5\ninactive_file_x 3\ninactive_file {cache}\nrss 7\n"
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return str(tmp_path)

    return build


@linux
def test_the_tightest_of_nested_groups_counts(machine):
    groups = {"": ("max", 40 * GIB, 0), "/a": (8 * GIB, 3 * GIB, GIB), "/a/b": ("max", GIB, 0)}
    assert available_memory(root=machine("/a/b", groups)) == 6 * GIB


@linux
def test_a_groups_own_limit_counts_where_it_is_lower(machine):
    groups = {"/a": (8 * GIB, 3 * GIB, 0), "/a/b": (2 * GIB, 2 * GIB, GIB // 2)}
    assert available_memory(root=machine("/a/b", groups)) == GIB // 2


@linux
def test_without_limits_the_system_counts(machine):
    groups = {"": ("max", GIB, 0), "/a": ("max", GIB, 0)}
    assert available_memory(root=machine("/a", groups)) == 64 * GIB


@linux
@pytest.mark.parametrize(
    ("own", "top", "path"),
    [
        ("/docker/x", "/docker/x", ""),  # a container that sees its own group alone
        ("/docker/x/y", "/docker/x", "/y"),
        ("/docker/xy", "/docker/x", ""),  # not below what is mounted
        ("/../other", "/", ""),
        ("/", "/", ""),  # a namespace of its own
        ("/gone/away", "/", ""),
    ],
)
def test_groups_as_a_container_sees_them(machine, own, top, path):
    assert available_memory(root=machine(own, {path: (4 * GIB, GIB, 0)}, top)) == 3 * GIB


@linux
def test_more_used_than_allowed_is_nothing_left(machine):
    assert available_memory(root=machine("/a", {"/a": (GIB, 2 * GIB, 0)})) == 0


@linux
def test_a_limit_on_the_address_space_is_felt(tmp_path):
    code = """
import resource
from pathlib import Path
from splatexp.system.memory import available_memory
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
before = available_memory()
assert 0.95 * 2**30 < before < 1.02 * 2**30, before
held = bytearray(300 << 20)
after = available_memory()
assert 299 << 20 < before - after < 310 << 20, (before, after)
del held
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert available_memory() > after or available_memory() > 1 << 30
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY))
assert available_memory() < 1.02 * 2**30
"""
    python("-c", code, cwd=tmp_path)


@pytest.fixture
def group():
    """A control group with 600 MiB, below the one that the tests run in."""
    own = re.search(r"^0::(.*)$", linux_memory.read_text("/proc/self/cgroup"), re.M)
    root = Path("/sys/fs/cgroup")
    folder = root / own[1].strip("/") / f"splatexp-{os.getpid()}" if own else root / "none"
    if not (root / "cgroup.controllers").is_file():
        pytest.skip("no control groups of version 2 are mounted here")
    try:
        folder.mkdir()
        (folder / "memory.max").write_text(str(600 << 20))
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group can be made here ({error})")
    yield str(folder)
    folder.rmdir()


ENTER = """
import sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
from splatexp.system.memory import MemoryWatch, available_memory, is_out_of_memory, resident_memory
"""


@linux
def test_a_real_control_group(group, tmp_path):
    code = """
first = available_memory()
assert first <= 600 << 20, first
held, resident = b"x" * (200 << 20), resident_memory()
assert 190 << 20 < first - available_memory() < 215 << 20, (first, available_memory())
assert resident > 200 << 20
"""
    python("-c", ENTER + code, group, cwd=tmp_path)


@linux
def test_what_a_control_group_would_kill_is_an_error_while_it_is_watched(group, tmp_path):
    code = """
import torch, splatexp_kernels as sk
torch.set_num_threads(1)
sk.extension()
watch = MemoryWatch(64 << 20, interval=0)
assert watch() is None
room = available_memory()
held, caught = [], None
try:
    while len(held) < 1000:
        held.append(torch.ones(1 << 20))
except (MemoryError, RuntimeError) as error:
    caught = error
assert is_out_of_memory(caught) and len(held) > (room >> 22) - 40, (room >> 20, len(held))
held.clear()
watch.stop()
assert available_memory() > room - (40 << 20)
assert torch.ones(100 << 18).sum() == 100 << 18
"""
    python("-c", ENTER + code, group, cwd=tmp_path)


@linux
def test_the_allocation_limit_is_set_moved_and_removed(tmp_path):
    code = """
import resource, torch
from splatexp.system.linux_memory import limit_allocations, remove_allocation_limit
from splatexp.system.memory import available_memory, is_out_of_memory
before, room = resource.getrlimit(resource.RLIMIT_DATA), available_memory()
for size in (100 << 20, 300 << 20):
    limit_allocations(size)
    assert torch.ones(size // 8).sum() == size // 8
    try:
        torch.ones(size // 2)
        raise AssertionError
    except RuntimeError as error:
        assert is_out_of_memory(error)
assert available_memory() > room // 2, "the limit set on purpose does not count"
remove_allocation_limit()
remove_allocation_limit()
assert resource.getrlimit(resource.RLIMIT_DATA) == before
torch.ones(100 << 20)
"""
    python("-c", code, cwd=tmp_path)


@linux
def test_asking_is_cheap():
    available_memory()
    times = []
    for _ in range(300):
        began = time.perf_counter()
        available_memory()
        times.append(time.perf_counter() - began)
    assert min(times) < 150e-6


def test_files_that_are_not_there_say_nothing(tmp_path):
    assert linux_memory.read_text(str(tmp_path / "none")) == linux_memory.read_text(str(tmp_path)) == ""
    assert linux_memory.read_number(str(tmp_path / "none")) is None
    assert linux_memory.memory_groups(str(tmp_path), 0) == []
    assert available_memory(root=str(tmp_path)) > 0  # the system is asked in another way


@linux
def test_peaks_are_forgotten_and_free_memory_is_handed_back(tmp_path):
    code = """
import torch, splatexp_kernels as sk
from splatexp.system import memory
sk.extension()  # has malloc keep what is freed
before = memory.resident_memory()
memory.reset_peak_memory()
held = [torch.ones(1000) for _ in range(50_000)]
last = torch.ones(1)
del held
assert memory.resident_memory() > before + (150 << 20)
assert memory.peak_memory() >= memory.resident_memory()
memory.release_unused()
memory.reset_peak_memory()
assert memory.resident_memory() < before + (50 << 20) and memory.peak_memory() < before + (50 << 20)
assert memory.device_memory() is None
"""
    python("-c", code, cwd=tmp_path)


@linux
def test_what_malloc_keeps_counts_for_a_limit_that_is_the_process_own(tmp_path):
    code = """
import resource, torch, splatexp_kernels as sk
from pathlib import Path
from splatexp.system.memory import available_memory
sk.extension()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), resource.RLIM_INFINITY))
first = available_memory()
held = [torch.ones(1 << 18) for _ in range(200)]
pin = torch.ones(1)
least = available_memory()
del held
assert first - least > 190 << 20 and available_memory() > first - (20 << 20), (first, least, available_memory())
full = available_memory(50 << 20)
assert abs(available_memory() - full - (50 << 20)) < 2 << 20
held = [torch.ones(1 << 18) for _ in range(400)]
"""
    python("-c", code, cwd=tmp_path)


def test_a_watch_hands_back_before_it_warns(monkeypatch):
    left, released = [], []
    monkeypatch.setattr(memory, "available_memory", lambda want=0: left.pop(0))
    monkeypatch.setattr(memory, "release_unused", lambda: released.append(True))
    monkeypatch.setattr(memory, "limit_allocations", lambda left: None)
    watch = memory.MemoryWatch(100, interval=0)
    left[:] = [500, 99, 160, 99, 120, 100, None]
    assert [watch(30) for _ in range(5)] == [None, None, 90, None, None] and not left
    assert len(released) == 2
    little = memory.MemoryWatch(100, interval=0)
    left[:] = [60, 40, 31, 29, 45, 29, 20]
    assert [little() for _ in range(5)] == [None, None, None, None, 20], "half of what there was"
    assert memory.MemoryWatch(0)() is None, "without a reserve nothing is checked"
    seldom = memory.MemoryWatch(100, interval=1000)
    left[:] = [500, 1]
    assert seldom() is None and seldom() is None and left == [1]


def caught(function, *args, **kwargs):
    with pytest.raises(BaseException) as info:
        function(*args, **kwargs)
    return info.value


def test_errors_that_say_that_memory_ran_out():
    assert is_out_of_memory(caught(torch.empty, 1 << 50, dtype=torch.uint8))
    assert is_out_of_memory(caught(bytearray, 1 << 60))
    assert is_out_of_memory(caught(sk.extension().fail_in_a_chunk, 4))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("std::bad_alloc")) and is_out_of_memory(
        RuntimeError("can't start new thread")
    )
    assert is_out_of_memory(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    assert is_out_of_memory(ImportError("x.so: failed to map segment: Cannot allocate memory"))


def test_errors_that_say_something_else():
    assert not is_out_of_memory(caught(torch.empty, -1))
    assert not is_out_of_memory(caught(torch.mm, torch.zeros(2, 3), torch.zeros(2, 3)))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(RuntimeError("tiles: expected those of backend 'cpu'"))
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(KeyboardInterrupt())


def named(text):
    """The settings that a line of advice names, in order."""
    return re.findall(r"[a-z_]+\.[a-z_]+=[\d_]+|oom=shrink", text)


def test_advice_names_what_helps_most_first():
    many = oom_advice(2_000_000, 480, 320, 3)
    assert "\n" not in many and "2,000,000 Gaussians" in many and "480x320" in many and "available" in many
    assert named(many) == ["model.sh_degree=2", f"{MAX_GAUSSIANS_KEY}=1_500_000", "oom=shrink"]
    assert named(oom_advice(2_000_000, 480, 320, 0))[0] == f"{MAX_GAUSSIANS_KEY}=1_500_000"
    wide = named(oom_advice(2_000, 3840, 2160, 3))
    assert wide == ["data.downscale=2", f"{DOWNSCALE_KEY}=2", "oom=shrink"]
    full = named(oom_advice(400_000, 960, 540, 1, factor=2, views=500, downscale=4))
    assert full[0] == "data.downscale=8" and f"{DOWNSCALE_KEY}=4" not in full
    assert named(oom_advice(2_000, 3840, 2160, 3, downscale=0)) == [f"{DOWNSCALE_KEY}=2", "oom=shrink"]
    assert named(oom_advice(0, 64, 64, 0))[-1] == "oom=shrink"
    assert "oom=shrink" not in oom_advice(2_000, 3840, 2160, 3, oom="shrink")
    for setting in named(oom_advice(60_000, 640, 480, 3)):
        assert setting.partition("=")[0] in {
            MAX_GAUSSIANS_KEY,
            DOWNSCALE_KEY,
            "model.sh_degree",
            "data.downscale",
            "oom",
        }


def test_a_step_takes_its_share():
    whole = memory_budget.gaussian_bytes(100_000, 3) + memory_budget.image_bytes(640, 480)
    assert 0.3 * whole < memory_budget.step_bytes(100_000, 3, 640, 480) < 0.7 * whole
    assert memory_budget.step_bytes(0, 3, 640, 480) == memory_budget.image_bytes(640, 480)
    assert memory_budget.gaussian_bytes(10, 4) > memory_budget.gaussian_bytes(10, 3)


def test_shrinking_takes_from_what_takes_more():
    assert next_reduction(2_000_000, 480, 320) == (MAX_GAUSSIANS_KEY, 1_500_000)
    assert next_reduction(2_000, 3840, 2160) == (DOWNSCALE_KEY, 2)
    assert next_reduction(2_000, 960, 540, factor=4) == (DOWNSCALE_KEY, 8)
    assert next_reduction(999, 640, 480) == (DOWNSCALE_KEY, 2), "few rows are kept"
    assert next_reduction(1_000, 4000, 63) == (MAX_GAUSSIANS_KEY, 750), "small images are kept"
    assert next_reduction(999, 63, 63) is None


def test_shrinking_comes_to_an_end():
    count, width, height, factor, steps = 5_000_000, 3840, 2160, 1, 0
    while less := next_reduction(count, width // factor, height // factor, factor):
        count, factor = (less[1], factor) if less[0] == MAX_GAUSSIANS_KEY else (count, less[1])
        steps += 1
    assert count < 1_000 and height // factor < 64 and steps < 60


def test_settings_are_checked():
    assert MemorySettings(reserve_mb=2).reserve == 2 << 20
    with pytest.raises(ValueError, match="memory.reserve_mb: expected at least 0, got -1"):
        MemorySettings(reserve_mb=-1)


def test_settling_here_starts_no_cuda():
    MemorySettings().configure_allocator()
    assert not torch.cuda.is_initialized()


@linux
@pytest.mark.parametrize("own", ["", "max_split_size_mb:64", "expandable_segments:False"])
def test_the_allocator_is_told_and_the_environment_heeded(own, monkeypatch):
    told = []
    for name in memory.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("PYTORCH_ALLOC_CONF", own)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    MemorySettings().configure_allocator()
    MemorySettings(expandable_segments=False).configure_allocator()
    kept = f"{own},".lstrip(",")
    expected = [f"{kept}expandable_segments:{value}" for value in (True, False)]
    assert told == ([] if "expandable" in own else expected)
    assert not torch.cuda.is_initialized()


@linux
def test_torch_understands_what_it_is_told(tmp_path):
    code = """
import torch
from splatexp.system.memory import MemorySettings
torch.backends.cuda.is_built = lambda: True
MemorySettings().configure_allocator()
assert not torch.cuda.is_initialized()
"""
    python("-c", code, cwd=tmp_path)
