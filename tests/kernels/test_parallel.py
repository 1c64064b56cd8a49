"""The pool of threads: what a chunk throws, memory that runs out, threads that cannot be had."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import splatexp_kernels as sk
from splatexp_kernels.ssim import ssim

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are Linux's")
OPS = ("project", "sh", "tiles", "blend", "attribute", "ssim", "chunks", "adam")


def python(*words):
    """The output of Python in a process of its own, which must succeed."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def threads():
    """As many threads afterwards as before."""
    before = sk.get_num_threads()
    yield
    sk.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_a_chunk_throws_is_thrown_to_the_caller(count):
    g = torch.Generator().manual_seed(0)
    image, target = torch.rand(2, 1, 200, 300, 3, generator=g)
    right = ssim(image, target)
    sk.set_num_threads(count)
    for chunks in (2, 3, 64, 10_000):
        with pytest.raises(MemoryError):
            sk.extension().fail_in_a_chunk(chunks)
        assert torch.equal(ssim(image, target), right)


def test_a_chunk_that_throws_ends_the_call():
    sk.set_num_threads(2)
    began = time.perf_counter()
    with pytest.raises(MemoryError):
        sk.extension().fail_in_a_chunk(1 << 50)
    assert time.perf_counter() - began < 15


@linux
@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=() if op in ("blend", "chunks") else pytest.mark.slow) for op in OPS]
)  # each a process that imports torch and forks 48 others
@pytest.mark.slow
def test_running_out_of_memory_is_an_error_that_can_be_survived(op):
    rows = json.loads(python(str(Path(__file__).parents[1] / "support" / "starved.py"), op))
    assert {row["died"] for row in rows} == {None}
    assert all(row["same"] for row in rows)
    errors = [row["error"] for row in rows if row["error"]]
    assert len(errors) >= 4 and {row["threads"] for row in rows if row["error"]} == {1, 2}
    for error in errors:
        assert error == "MemoryError: std::bad_alloc" or "can't allocate memory" in error
    if op in ("chunks", "tiles"):
        assert any("bad_alloc" in error for error in errors)


@linux
def test_threads_that_cannot_be_had_are_done_without():
    code = """
import resource, torch, splatexp_kernels as sk
from pathlib import Path
from splatexp_kernels.adam import adam

def updated():
    param = torch.ones(1 << 16)
    adam(param, torch.full_like(param, 0.5), *torch.zeros(2, 1 << 16).unbind(), step=1, lr=0.1)
    return param

torch.set_num_threads(1)
sk.set_num_threads(1)
right = updated()
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (20 << 20), resource.RLIM_INFINITY))
sk.set_num_threads(40)
assert torch.equal(updated(), right)
assert 1 <= sk.get_num_threads() < 40, sk.get_num_threads()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sk.set_num_threads(3)
assert torch.equal(updated(), right) and sk.get_num_threads() == 3
"""
    python("-c", code)
