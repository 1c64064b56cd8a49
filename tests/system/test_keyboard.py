"""Esc in the terminal: heard where there is one, left alone where there is none."""

import os
import pty
import signal
import subprocess
import sys
import time

from splatexp.system.keyboard import EscapeKey
from splatexp.system.signals import StopSignals

ESCAPE = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from splatexp.system.keyboard import EscapeKey
with EscapeKey() as escape:
    print("ready", flush=True)
    until, seen = time.monotonic() + 20, 0
    while time.monotonic() < until and not escape.pressed():
        seen += 1
        time.sleep(0.01)
    print("pressed" if time.monotonic() < until else "never", flush=True)
print("echo" if termios.tcgetattr(0)[3] & termios.ECHO else "mute", flush=True)
"""


def test_escape_in_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", ESCAPE], stdin=theirs, stdout=subprocess.PIPE, text=True, env=paths,
        start_new_session=True, cwd=tmp_path,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "ready\n"
        for keys in (b"abc", b"\x1b[A", b"\x1bOP", b"x"):  # letters, an arrow, F1
            os.write(ours, keys)
            time.sleep(0.1)
        assert child.poll() is None
        os.write(ours, b"\x1b")
        assert child.stdout.read() == "pressed\necho\n"
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.stdout.close()
        child.wait()
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_no_key_is_read(monkeypatch):
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        with EscapeKey() as escape:
            assert not escape.pressed()
    monkeypatch.setattr(sys, "stdin", None)
    with EscapeKey() as escape:
        assert not escape.pressed()


def test_escape_counts_as_the_first_ctrl_c(monkeypatch):
    keys = iter([False, True])
    with StopSignals() as signals:
        signals.defer = True
        monkeypatch.setattr(EscapeKey, "pressed", lambda self: next(keys))
        assert [signals.poll(), signals.poll(), signals.poll()] == [0, signal.SIGINT, signal.SIGINT]
