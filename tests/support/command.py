"""Python in a process of its own, with the packages that the tests see."""

import os
import subprocess
import sys


def python(*words: str, cwd) -> subprocess.CompletedProcess[str]:
    """Run `python words...` in the folder `cwd`; its output is text. It must succeed."""
    paths = os.pathsep.join(filter(None, sys.path))
    settings = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done
