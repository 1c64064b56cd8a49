"""Memory that runs out, disks that are full, numbers that are not, and kills at any moment."""

import json
import os
import pickle
import random
import signal
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from splatexp.config.build import build, compose
from splatexp.gaussians.splats import Splats
from splatexp.losses.photometric import Loss
from splatexp.run.checkpoint import list_checkpoints, load_checkpoint
from splatexp.system import memory
from splatexp.system.signals import StoppedBySignal, StopSignals

SMALL = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
SMALL += [
    "data.cache=false",
    "evaluate.turntable=false",
    "evaluate.renders=false",
    "tracker=[csv]",
    "threads=1",
]


@cache
def config(*words):
    return compose([*SMALL, *words])


def made(*words):
    return build(config(*words))


def failing(monkeypatch, cls, name, at, error):
    """The method raises in its calls number `at` (from 1)."""
    before, calls = getattr(cls, name), []

    def call(self, *values, **more):
        calls.append(1)
        if len(calls) in at:
            raise error
        return before(self, *values, **more)

    monkeypatch.setattr(cls, name, call)


def tensors_of(folder):
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[0][1])[0]


def equal(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("where", ["drawing", "backward", "between"])
def test_out_of_memory_saves_advises_and_can_be_resumed(where, tmp_path, monkeypatch, capsys):
    words = ["steps=12", "checkpoint.every=100", "optimizer.shN_update_every=1"]
    made(*words, "checkpoint.every=12")(tmp_path / "whole")
    with monkeypatch.context() as patch:
        error = MemoryError("std::bad_alloc")
        if where == "drawing":
            failing(patch, Loss, "__call__", [8], error)
        elif where == "backward":
            failing(patch, torch.Tensor, "backward", [8], error)
        else:  # the watch, asked before every look
            looks = iter([*[None] * 6, 5 << 20])
            patch.setattr(memory.MemoryWatch, "__call__", lambda self, want: next(looks))
        with pytest.raises(MemoryError) as told:
            made(*words)(tmp_path / "run")
    said = str(told.value)
    reason = {"between": "the next step would leave 5 MiB, less than memory.reserve_mb"}.get(
        where, "std::bad_alloc"
    )
    assert f"out of memory at step 7 ({reason})" in said and "\n" not in said
    assert "resume=auto continues from" in said and "densify.max_gaussians=" in said and "oom=shrink" in said
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0][0] == 7
    made(*words, "resume=auto", "checkpoint.every=12")(tmp_path / "run")
    equal(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "run"))


def test_half_a_step_is_not_saved(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        failing(patch, Splats, "apply", [3], MemoryError("apply"))
        with pytest.raises(MemoryError, match=r"continues from .*step_00000006"):
            made("steps=12", "checkpoint.every=3", "densify.every=2", "densify.start=2", "densify.stop=0")(
                tmp_path
            )
    made("steps=12", "densify.every=2", "densify.start=2", "densify.stop=0", "resume=auto")(tmp_path)


def test_nothing_to_go_on_from_is_said(tmp_path, monkeypatch, capsys):
    failing(monkeypatch, Splats, "apply", [1], MemoryError("apply"))
    with pytest.raises(MemoryError, match="no checkpoint was written"):
        made("steps=12", "checkpoint.every=0", "densify.every=2", "densify.start=2", "densify.stop=0")(
            tmp_path
        )


def test_shrink_goes_on_with_less_and_the_record_says_so(tmp_path, monkeypatch, capsys):
    failing(monkeypatch, Loss, "__call__", [4, 9], MemoryError("std::bad_alloc"))
    with pytest.warns(UserWarning, match="out of memory at step .*; continuing with") as told:
        result = made("steps=12", "oom=shrink", "data.size=160", "data.points=3000", "log_every=1")(tmp_path)
    assert len(told) == 2 and len(result["run"]["oom_reductions"]) == 2
    first = result["run"]["oom_reductions"][0]
    assert first["step"] == 3 and first["setting"] in ("densify.max_gaussians", "schedule.min_downscale")
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    last = dict(zip(names, rows[-1].split(","), strict=True))
    for each in result["run"]["oom_reductions"]:
        if each["setting"] == "schedule.min_downscale":
            assert int(last["downscale"]) >= each["to"]
        else:
            assert int(last["num_gaussians"]) <= each["to"] < 3000
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["run"]["oom_reductions"]
        == result["run"]["oom_reductions"]
    )


def test_shrink_goes_back_to_the_last_checkpoint_when_a_step_was_half_done(tmp_path, monkeypatch, capsys):
    failing(monkeypatch, Splats, "apply", [3], MemoryError("apply"))
    words = [
        "steps=12",
        "checkpoint.every=3",
        "densify.every=2",
        "densify.start=2",
        "densify.stop=0",
        "data.points=2000",
    ]
    with pytest.warns(UserWarning, match="back to step 6; continuing with"):
        result = made(*words, "oom=shrink")(tmp_path)
    assert result["num_gaussians"] > 0 and len(result["run"]["oom_reductions"]) == 1


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    before = Loss.__call__

    def sick(self, *values, **more):
        terms = before(self, *values, **more)
        calls.append(1)
        return terms | ({"bad": torch.tensor(float("nan"))} if len(calls) == 8 else {})

    calls = []
    monkeypatch.setattr(Loss, "__call__", sick)
    with pytest.raises(FloatingPointError, match=r"step 7: the loss is not finite \(.*l1=0\..*bad=nan"):
        made("steps=12", "checkpoint.every=3")(tmp_path)
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [6, 3]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, capsys):
    from splatexp.train.optimizer import Adam

    before = Adam.step

    def sick(self, splats, step, **more):
        before(self, splats, step, **more)
        if step == 4:
            splats.means.data[:2] = float("inf")  # far away: no picture shows it
            splats.sh0.data[0] = float("nan")

    monkeypatch.setattr(Adam, "step", sick)
    with pytest.raises(FloatingPointError, match="not finite.*2 rows of means, 1 rows of sh0"):
        made("steps=12", "checkpoint.every=3")(tmp_path)
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [3]


def test_a_full_disk_loses_nothing_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    import splatexp.run.checkpoint

    real, calls = splatexp.run.checkpoint.atomic_write, []

    def full(path):
        calls.append(path)
        if len(calls) in (3, 4):
            raise OSError(28, "No space left on device", str(path))
        return real(path)

    monkeypatch.setattr(splatexp.run.checkpoint, "atomic_write", full)
    with pytest.warns(UserWarning, match="no checkpoint at step (9|12): No space left") as told:
        made("steps=15", "checkpoint.every=3")(tmp_path)
    assert len(told) == 2 and [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [15, 6]


def test_the_second_signal_is_not_waited_for():
    with StopSignals() as signals:
        signals.defer = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.caught == signal.SIGINT
        with pytest.raises(StoppedBySignal) as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.code == 143
    again = pickle.loads(pickle.dumps(stopped.value))  # as it comes from a worker
    assert again.code == 143 and str(again) == str(stopped.value)
    with StopSignals(), pytest.raises(StoppedBySignal) as stopped:  # not while it trains: at once
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.code == 143


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing(tmp_path, capfd):
    """Some kills here; KILLS=100 for as many. The run saves at every step, so that most hit a save."""
    kills, dice = int(os.environ.get("KILLS", 12)), random.Random(0)
    words = ["steps=40", "checkpoint.every=1", "log_every=2", "densify.every=5", "densify.start=4"]
    made(*words)(tmp_path / "whole")
    whole, last, hit, begun = tensors_of(tmp_path / "whole"), 0, 0, 0
    folder = tmp_path / "run"
    while hit < kills:
        child = os.fork()
        if not child:  # what it prints, nobody reads
            try:
                made(*words, "resume=auto")(folder)
            finally:
                os._exit(0)
        time.sleep(dice.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        steps = [step for step, _ in list_checkpoints(folder / "checkpoints")] if folder.exists() else []
        if steps:
            assert steps[0] >= last, "a checkpoint is gone"
            load_checkpoint(list_checkpoints(folder / "checkpoints")[0][1])
            last = steps[0]
        if os.WIFSIGNALED(status):
            hit += 1
        if last == 40:  # it got to the end: the same bits, and once more
            equal(whole, tensors_of(folder))
            begun += 1
            folder, last = tmp_path / f"run{begun}", 0
    made(*words, "resume=auto")(folder)
    equal(whole, tensors_of(folder))
    assert Path(folder, "metrics.json").exists()
    strip = [
        [row.split(",")[0] for row in (place / "metrics.csv").read_text().splitlines()]
        for place in (tmp_path / "whole", folder)
    ]
    assert strip[0] == strip[1]


def test_short_of_memory_there_is_a_checkpoint_before_rows_move(tmp_path, monkeypatch, capsys):
    words = ["checkpoint.every=100", "densify.every=4", "densify.start=2", "densify.stop=0", "steps=12"]
    failing(monkeypatch, Splats, "apply", [2], MemoryError("apply"))
    for module in ("splatexp.system.memory", "splatexp.run.checkpointer"):
        monkeypatch.setattr(f"{module}.available_memory", lambda want=0: 9 << 20)
    with pytest.raises(MemoryError, match=r"continues from .*step_00000007"):
        made(*words, "data.points=3000")(tmp_path)
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [7, 3]


def test_out_of_memory_after_training_says_where_to_go_on(tmp_path, monkeypatch, capsys):
    def no_room(*_):
        raise MemoryError("Unable to allocate 109. MiB")

    with monkeypatch.context() as patch:
        patch.setattr("splatexp.run.run.save_ply", no_room)
        with pytest.raises(MemoryError, match=r"out of memory \(Unable.*continues from .*step_00000006"):
            made("steps=6", "checkpoint.every=3")(tmp_path)
    assert made("steps=6", "resume=auto")(tmp_path)["num_gaussians"] > 0
