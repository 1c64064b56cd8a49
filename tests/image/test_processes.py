"""Encodings in processes of their own: what they warn of, how they die, how they are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from splatexp.image import tasks
from splatexp.image.files import FilePair, run_each
from splatexp.io import image_file

COMMAND = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND += "from splatexp.image.__main__ import main; raise SystemExit(main())"


@pytest.fixture
def child(tmp_path, monkeypatch):
    """Has a shell script take the place of Python."""

    def take(script: str) -> None:
        (tmp_path / "child").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "child").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "child"))

    return take


def test_what_it_warns_of_comes_through(child):
    child('echo "warning: quality: expected 60 dB, reached 38" >&2; echo "$4 -> $5"')
    found, said = [FilePair(Path(f"{name}.png"), Path(f"{name}.gsi")) for name in "ab"], []
    with pytest.warns(UserWarning) as warned:
        processes = tasks.EncoderProcesses()
        assert not run_each(
            found, lambda p: processes.encode(p, []), 2, lambda *line: said.append(line), "", processes.stop
        )
    assert sorted(said) == [("a.png -> a.gsi", False), ("b.png -> b.gsi", False)]
    expected = [f"{name}.png: quality: expected 60 dB, reached 38" for name in "ab"]
    assert sorted(str(warning.message) for warning in warned) == expected


@pytest.mark.parametrize(
    "script, why",
    [
        ("echo half >&2; kill -KILL $$", "was killed by SIGKILL"),
        ("exit 3", "ended with status 3"),
        ("echo more >&2; echo error: a word >&2; exit 2", "a word"),
    ],
)
def test_how_it_failed_is_said_in_words(child, script, why):
    child(script)
    with pytest.raises(ValueError, match=f"^{why}$"):
        tasks.EncoderProcesses().encode(FilePair(Path("a.png"), Path("a.gsi")), [])


def test_one_that_does_not_stop_is_killed(child, monkeypatch, tmp_path):
    child("trap '' INT; touch started; while true; do sleep 0.05; done")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "STOP_SECONDS", 0.2)
    processes, found = (
        tasks.EncoderProcesses(),
        [FilePair(Path(f"{name}.png"), Path(f"{name}.gsi")) for name in "ab"],
    )
    ended = []

    def stopping(pair: FilePair) -> str:
        if pair.source.name == "a.png":
            return processes.encode(pair, [])
        _until(lambda: Path("started").exists())
        raise SystemExit  # as an interruption would, in the thread that waits

    def end() -> None:
        processes.stop()
        ended.append(True)

    with pytest.raises(SystemExit):
        run_each(found, stopping, 2, lambda *line: None, "", end)
    assert ended and not processes._running
    with pytest.raises(ValueError, match="stopped"):
        processes.encode(found[0], [])


def test_more_threads_than_any_machine_has_are_refused():
    from splatexp.image.encode import check_settings

    for words in (["threads=1024"], ["quality=40", "threads=0"], ["bpp=0.001"]):
        check_settings(words)
    with pytest.raises(ValueError, match=r"threads: expected a number in \[0, 1024\], got 100000"):
        check_settings(["threads=100000"])
    with pytest.raises(ValueError, match="quality: expected a number in"):
        check_settings(["quality=100"])


@pytest.mark.slow
def test_an_interruption_of_a_folder_ends_all_and_leaves_nothing(tmp_path):
    for name in "abc":
        image_file.write_image(
            tmp_path / "photos" / f"{name}.png", np.random.default_rng(0).random((40, 40, 3))
        )
    words = ["encode", "photos", "new", "bpp=1", "steps=1000000", "jobs=2"]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], cwd=tmp_path, env=settings,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task")
    _until(lambda: len(_children(children)) == 2)
    time.sleep(1)
    there = _children(children)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert len(there) == 2 and not [pid for pid in there if Path(f"/proc/{pid}").exists()]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "b.png", "c.png", "photos"]


def _children(tasks: Path) -> list[str]:
    return [pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


def _until(happened) -> None:
    limit = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.02)
