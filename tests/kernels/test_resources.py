"""The Triton kernels compile for an H100, ahead of time and without one, and keep within its registers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import splatexp_kernels

pytestmark = pytest.mark.slow  # LLVM takes half a second to two for each of the kernels
BENCH = Path(__file__).parents[2] / "kernels" / "bench"
OPS = Path(splatexp_kernels.__file__).parent
PROGRAM = """
import json, resources
from dataclasses import asdict
if __name__ == "__main__":
    entries = resources.recorded("all")
    first = {(entry["module"], entry["name"]): entry for entry in reversed(entries)}
    kernels = resources.all_compiled(first.values(), 2)
    print(json.dumps([{**asdict(k), "blocks": k.blocks, "module": m} for k, (m, _) in zip(kernels, first)]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every kernel as training launches it first, compiled where Triton does not interpret."""
    folder = tmp_path_factory.mktemp("compiled")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    paths = [str(BENCH), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_fit_into_registers(compiled):
    for kernel in compiled:
        assert kernel["spills"] == kernel["stack"] == 0, kernel
        assert 16 <= kernel["registers"] <= 255 and kernel["instructions"] > 30, kernel
        assert kernel["blocks"] >= 2, kernel


def test_no_order_of_atomics_decides_the_bits(compiled):
    assert not any(kernel["float_atomics"] for kernel in compiled)


def test_every_kernel_is_compiled(compiled):
    """A `@triton.jit` function that no other one calls is launched, so it must be among them."""
    found = {(kernel["module"], kernel["name"]) for kernel in compiled}
    ops = set()
    for path in OPS.glob("*/gpu*.py"):
        text = path.read_text()
        ops.add(path.parent.name)
        for name in re.findall(r"^@triton\.jit\ndef (\w+)", text, re.M):
            called = sum(
                len(re.findall(rf"\b{name}\(", other.read_text())) for other in path.parent.glob("gpu*.py")
            )
            module = f"splatexp_kernels.{path.parent.name}.{path.stem}"
            assert called > 1 or (module, name.strip("_")) in found, f"{module}.{name}"
    assert {kernel["op"] for kernel in compiled} == ops
