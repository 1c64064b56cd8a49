"""Trackers: what they write, and that none of them can fail a run."""

import csv
import socket
import warnings

import numpy as np
import pytest
from command import python

from splatexp.tracking import Console, Csv, TensorBoard, Trackers, WandB

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def use(tracker, folder, exit_code=0):
    tracker.start({"steps": 20, "seed": 0}, folder)
    tracker.log(9, {"loss": 0.5, "psnr": 20.0})
    tracker.log(19, {"loss": 0.25, "psnr": 23.0, "late": 1.0})
    tracker.log(19, {"test_psnr": 22.0})
    tracker.image(19, "view", PICTURE)
    tracker.finish(exit_code)


def test_csv_has_a_row_for_each_step_and_a_column_for_each_name(tmp_path):
    use(Csv(), tmp_path)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "loss", "psnr", "late", "test_psnr"]
    assert [row["step"] for row in rows] == ["9", "19"]
    assert rows[0]["late"] == "" and rows[1]["late"] == "1.0" and rows[1]["test_psnr"] == "22.0"


def test_csv_rows_are_on_disk_at_once(tmp_path):
    tracker = Csv()
    tracker.start({"steps": 3}, tmp_path)
    for step in range(3):
        tracker.log(step, {"loss": step / 2})
        assert (tmp_path / "metrics.csv").read_text().splitlines()[-1] == f"{step},{step / 2}"


def test_tensorboard_holds_curves_and_pictures(tmp_path):
    use(TensorBoard(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        names = events.Tags()["scalars"]
        curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
        assert curves["loss"] == [(9, 0.5), (19, 0.25)] and curves["test_psnr"] == [(19, 22.0)]
        assert events.Tags()["images"] == ["view"]


@pytest.mark.filterwarnings("default")
def test_wandb_works_offline_and_says_nothing(tmp_path, capfd, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no such file"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    monkeypatch.delenv("WANDB_ERROR_REPORTING")  # so that what the tracker sets is gone after the test
    asked, look_up = [], socket.getaddrinfo

    def watched(host, *rest, **more):
        asked.append(host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    for folder in (tmp_path / "a", tmp_path / "b"):  # two runs in one process, as in a sweep
        folder.mkdir()
        use(WandB(), folder)
        assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    seen = capfd.readouterr()
    assert not seen.out and not seen.err
    assert set(asked) <= {"localhost", "127.0.0.1"}


def test_wandb_goes_online_only_with_a_key(tmp_path, monkeypatch):
    from splatexp.tracking import _logged_in

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert not _logged_in()
    file.write_text("machine api.example.org login user password p\n")
    assert not _logged_in()
    file.write_text("machine api.wandb.ai login user password p\n")
    assert _logged_in()
    file.write_text("machine")
    assert not _logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert _logged_in()


def test_the_console_speaks_where_there_is_no_terminal(tmp_path, capfd):
    use(Console(seconds=3600), tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == str(tmp_path)
    assert lines[1].startswith("10/20  loss 0.5") and lines[2].startswith("20/20  loss 0.25")


class Broken:
    """Raises in one of its calls."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def __getattr__(self, name):
        def call(*values):
            self.calls.append(name)
            if name == self.where:
                raise RuntimeError(f"{name} failed\nand more")

        return call


@pytest.mark.parametrize("where", ["start", "log", "image", "finish"])
def test_a_tracker_that_raises_is_dropped_once_and_the_others_go_on(tmp_path, where):
    broken = Broken(where)
    with pytest.warns(UserWarning, match=f"tracker bad is dropped, the run goes on: {where} failed$") as seen:
        use(Trackers({"bad": broken, "csv": Csv()}), tmp_path)
    assert len(seen) == 1
    assert broken.calls.count(where) == 1 and broken.calls[-1] == where
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_nothing_heavy_is_imported_before_it_is_used(tmp_path):
    heavy = ("wandb", "tensorboard", "torch", "rich", "PIL", "scipy", "torchmetrics", "lpips", "gsplat")
    code = f"import sys, splatexp.tracking; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"
