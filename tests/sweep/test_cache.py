"""What sweeps remember: what makes two jobs one, and that only one process at a time has a job."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from splatexp.config.build import build, compose
from splatexp.data.transforms import Transforms
from splatexp.densify import NoDensification
from splatexp.evaluation.evaluate import EvaluationSettings
from splatexp.losses.photometric import Loss
from splatexp.provenance.fingerprint import fingerprint
from splatexp.run.checkpoint import CheckpointSettings
from splatexp.sweep.cache import JOB_FILE, JobCache, read_job_record, read_job_result
from splatexp.sweep.job_identity import job_id
from splatexp.system.memory import MemorySettings


@cache
def run():
    return build(compose(["threads=1"]))


def test_what_cannot_change_a_result_has_no_say():
    plain = job_id(run())
    same = {
        "threads": 2,
        "tracker": {},
        "log_every": 7,
        "checkpoint": CheckpointSettings(every=3),
        "resume": "auto",
    }
    same |= {
        "force": True,
        "job_cache": "elsewhere",
        "objective": ["ssim", "psnr"],
        "memory": MemorySettings(reserve_mb=9),
    }
    same |= {"data": replace(run().data, cache=False)}
    for name, value in same.items():
        assert job_id(replace(run(), **{name: value})) == plain, name


def test_what_can_change_a_result_or_its_files_has():
    other = {
        "seed": 1,
        "steps": 7,
        "densify": NoDensification(),
        "data": replace(run().data, size=56),
        "resume": "a/folder",
    }
    other |= {
        "evaluate": EvaluationSettings(renders=False),
        "loss": Loss(ssim=0.3),
        "regularizer": {},
        "oom": "shrink",
    }
    ids = [job_id(run()), *(job_id(replace(run(), **{name: value})) for name, value in other.items())]
    assert len(set(ids)) == len(ids) and all(len(each) == 16 for each in ids)


def test_what_a_sweep_varies_has_and_threads_where_time_counts():
    one, two = run(), replace(run(), threads=2)
    assert job_id(one, ["seed"]) == job_id(two, ["seed"]) == job_id(one)
    assert job_id(one, ["threads"]) != job_id(two, ["threads"])
    assert job_id(one, ["tracker.csv", "force"]) != job_id(one) == job_id(one, ["force", "+seed"])
    timed = [replace(each, objective=["psnr", "train_seconds"]) for each in (one, two)]
    assert job_id(timed[0]) != job_id(timed[1])


def test_data_count_by_their_files_wherever_they_lie(tmp_path):
    def folder(name):
        (tmp_path / name / "images").mkdir(parents=True)
        for file in ("images/a.png", "transforms.json"):
            (tmp_path / name / file).write_text("{}")
            os.utime(tmp_path / name / file, (1e9, 1e9))
        return tmp_path / name

    one, other = folder("one"), folder("other")
    ids = [job_id(replace(run(), data=Transforms(path=str(place)))) for place in (one, other)]
    assert ids[0] == ids[1] and fingerprint(one) == fingerprint(other)
    before = fingerprint(one)
    (one / ".hidden").write_text("x")
    (one / "multirun" / "run").mkdir(parents=True)
    (one / "multirun" / "run" / "metrics.json").write_text("{}")
    (one / "images" / "loop").symlink_to(one)
    (one / "nowhere").symlink_to(one / "no such file")
    assert fingerprint(one) == before
    os.utime(one / "images" / "a.png", (1e9, 2e9))
    assert fingerprint(one) != before and fingerprint(other) == before
    (other / "images" / "b.png").write_text("")
    assert fingerprint(other) != before
    assert fingerprint(one / "transforms.json") != fingerprint(one) and fingerprint(tmp_path / "none")


def test_notes_can_be_moved_with_what_they_tell_of(tmp_path):
    cache = JobCache(tmp_path / "multirun" / ".cache")
    assert cache.folder_of("a") is None
    with cache.lock("a"):
        cache.record("a", tmp_path / "multirun" / "day" / "0")
    assert cache.folder_of("a") == tmp_path / "multirun" / "day" / "0"
    (tmp_path / "multirun").rename(tmp_path / "moved")
    assert JobCache(tmp_path / "moved" / ".cache").folder_of("a") == tmp_path / "moved" / "day" / "0"
    (tmp_path / "moved" / ".cache" / "a.json").write_text("torn")
    assert JobCache(tmp_path / "moved" / ".cache").folder_of("a") is None


def test_a_job_is_finished_where_its_card_and_its_result_are(tmp_path):
    assert (
        read_job_result(None, "a") is None
        and read_job_result(tmp_path, "a") is None
        and read_job_record(tmp_path) == {}
    )
    (tmp_path / JOB_FILE).write_text('{"id": "a"}')
    assert read_job_result(tmp_path, "a") is None
    (tmp_path / "metrics.json").write_text('{"psnr": 3}')
    assert read_job_result(tmp_path, "a") == {"psnr": 3} and read_job_result(tmp_path, "b") is None
    (tmp_path / "metrics.json").write_text('{"psnr": ')
    assert read_job_result(tmp_path, "a") is None


HOLDS = """
import sys, time
from pathlib import Path
from splatexp.sweep.cache import JobCache
with JobCache(Path(sys.argv[1])).lock("a"):
    print("mine", flush=True)
    time.sleep(60)
"""


def holder(folder):
    """A process that has the job a."""
    paths = os.pathsep.join(filter(None, sys.path))
    words = [sys.executable, "-c", HOLDS, str(folder)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert process.stdout and process.stdout.readline() == "mine\n"
    return process


def test_a_process_waits_for_another_and_not_for_one_that_was_killed(tmp_path):
    process, told, cache = holder(tmp_path / "x" / "l"), [], JobCache(tmp_path / "x" / "l")
    with cache.lock("b"):
        pass
    threading.Timer(0.5, process.kill).start()
    began = time.monotonic()
    with cache.lock("a", lambda: told.append(process.poll())):
        assert time.monotonic() - began > 0.4 and process.wait() != 0
    assert told == [None]
    process.stdout.close()
    assert not (tmp_path / "x").exists()  # nothing was noted, and no lock is left behind


def test_many_take_turns_and_none_is_lost(tmp_path, monkeypatch):
    """A counter in a file, read and written back without care by threads that each open the lock."""
    count = tmp_path / "count"
    count.write_text("0")

    def add():
        for _ in range(10):
            with JobCache(tmp_path / "l").lock("a"):
                number = int(count.read_text())
                time.sleep(0.001)
                count.write_text(str(number + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    monkeypatch.setattr("splatexp.sweep.cache.RETRY_SECONDS", 0.001)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "40" and not (tmp_path / "l").exists()


def test_no_place_for_it_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "l"):
        with pytest.raises(OSError), JobCache(place).lock("a"):
            pass


def test_without_locks_it_goes_on_with_a_warning(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="the file system has no locks"), JobCache(tmp_path / "l").lock("a"):
        assert Path(tmp_path / "l" / "a.lock").exists()
