"""Python in a process of its own, with the packages that the tests see."""

import os
import subprocess
import sys


def python(*words: str, cwd, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python words...` in the folder `cwd`; its output is text."""
    settings = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
