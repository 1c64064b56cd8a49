"""The bench runs; what it measures is nobody's promise here."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "kernels" / "bench"


@pytest.mark.slow
def test_cpu_bench_reports_every_op():
    small = ["--untested", "--gaussians", "300", "--size", "40x30", "--repeats", "1"]
    done = subprocess.run([sys.executable, str(BENCH), "all", *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("project", "sh", "tiles", "blend2d", "ssim", "adam", "sum", "300 Gaussians", "NOT TESTED"):
        assert word in done.stdout, word
    assert "nan" not in done.stdout
