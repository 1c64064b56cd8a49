"""Trackers: what they write, what they make of an interruption, and that none of them can fail a run."""

import csv
import errno
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from support.command import python
from support.logs import events, told

from splatexp.io.append import AppendFile
from splatexp.tracking import Console, Csv, Session, TensorBoard, Tracker, Trackers, WandB
from splatexp.tracking.wandb import logged_in

PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
VIEWS = [{"view": "a,b", "psnr": 22.5, "lpips": None}, {"view": "c", "psnr": 23.5, "lpips": 0.25}]
ID = "0123456789abcdef"
CONFIG = {"steps": 50, "seed": 0, "optimizer": {"means": 1.6e-4, "betas": [0.9, 0.999]}}
FACTS = {"overrides": ["seed=0"], "code_sha256": "12ab", "hardware": {"cores": 2}}
METHODS = ["start", "log", "log_image", "log_table", "log_file", "finish"]


def session(folder, **values):
    return Session(
        **{"id": ID, "folder": folder, "config": CONFIG, "steps": 50, "provenance": FACTS} | values
    )


def scalars(step):
    """What a step logs: a name that comes late, another that comes once."""
    late = {"births": 3} if step >= 19 else {}
    return {"train/loss": 1 / (step + 1), "train/psnr": 20.0 + step / 3, "num_gaussians": 100 * step} | late


def use(tracker, folder, stop=50, finish=True, **values):
    """A run of 50 steps that logs every tenth, or what becomes of it up to `stop`."""
    tracker.start(session(folder, **values))
    for step in range(values.get("start", 0), stop):
        if (step + 1) % 10 == 0:
            tracker.log(step, scalars(step))
        if step == 29:
            tracker.log(step, {"eval/psnr": 21.0})
    if stop == 50:
        path = folder / "point_cloud.ply"
        path.write_bytes(b"ply" * 1000)
        tracker.log(49, {"eval/psnr": 22.0})
        tracker.log_image(49, "view", PICTURE)
        tracker.log_table(49, "per_view", VIEWS)
        tracker.log_file(path)
    if finish:
        tracker.finish(0 if stop == 50 else 143)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_tracker_may_ignore_everything(tmp_path):
    use(Tracker(), tmp_path)


def test_csv_has_a_row_for_each_step_and_a_column_for_each_name(tmp_path):
    use(Csv(), tmp_path)
    table = read_csv(tmp_path / "metrics.csv")
    assert list(table[0]) == ["step", "train/loss", "train/psnr", "num_gaussians", "births", "eval/psnr"]
    assert [row["step"] for row in table] == ["9", "19", "29", "39", "49"]
    assert [row["births"] for row in table] == ["", "3", "3", "3", "3"]
    assert [row["eval/psnr"] for row in table] == ["", "", "21.0", "", "22.0"]
    assert [float(row["train/psnr"]) for row in table] == [
        scalars(step)["train/psnr"] for step in range(9, 50, 10)
    ]


def test_csv_keeps_tables_of_their_own(tmp_path):
    use(Csv(), tmp_path)
    first = {"step": "49", "view": "a,b", "psnr": "22.5", "lpips": ""}
    assert read_csv(tmp_path / "per_view.csv") == [
        first,
        first | {"view": "c", "psnr": "23.5", "lpips": "0.25"},
    ]
    tracker = Csv()
    tracker.start(session(tmp_path, start=50))
    tracker.log_table(
        49, "per_view", VIEWS[1:]
    )  # the last measurement again: it takes the place of the first
    assert [row["view"] for row in read_csv(tmp_path / "per_view.csv")] == ["c"]


def test_csv_rows_are_on_disk_at_once_and_by_one_write(tmp_path, monkeypatch):
    written, add = [], AppendFile.append
    monkeypatch.setattr(AppendFile, "append", lambda end, line: (written.append(line), add(end, line)))
    tracker = Csv()
    tracker.start(session(tmp_path))
    for step in range(4):
        tracker.log(step, {"train/loss": step / 2, "lr": np.float32(0.5)})
        assert (tmp_path / "metrics.csv").read_text().splitlines()[-1] == f"{step},{step / 2},0.5"
    assert written == [b"1,0.5,0.5\n", b"2,1.0,0.5\n", b"3,1.5,0.5\n"]  # the first has widened the table


TAILS = [
    "",
    "39,0.0",
    "39,0.025,33.0,3900,3,2",
    "\0" * 30,
    '39,"',
    "39,1,2,3,4,\udcff\n",
    "\n\n",
    "x,1,2,3,4,5\n",
]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("start", [12, 20, 30])
def test_csv_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path, start, tail):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    use(Csv(), tmp_path / "whole")
    use(Csv(), tmp_path / "parts", stop=40, finish=False)
    with open(tmp_path / "parts/metrics.csv", "a", errors="surrogateescape") as file:
        file.write(tail)
    use(Csv(), tmp_path / "parts", start=start)
    for name in ("metrics.csv", "per_view.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.rglob("*.damaged*"))


def test_csv_forgets_columns_that_only_void_rows_had(tmp_path):
    use(Csv(), tmp_path)
    tracker = Csv()
    tracker.start(session(tmp_path, start=15))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[
        0
    ] == "step,train/loss,train/psnr,num_gaussians"
    assert len(read_csv(tmp_path / "metrics.csv")) == 1


@pytest.mark.filterwarnings("ignore:metrics.csv cannot be read")
def test_csv_that_ends_anywhere_can_be_resumed(tmp_path):
    use(Csv(), tmp_path, stop=30)
    path = tmp_path / "metrics.csv"
    data, whole = path.read_bytes(), read_csv(path)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        Csv().start(session(tmp_path, start=20))
        kept = read_csv(path)
        assert [row["step"] for row in kept] == ["9", "19"][: data[:end].count(b"\n")][: len(kept)]
        assert all(row.items() <= whole[index].items() for index, row in enumerate(kept))
        assert len(kept) == min(2, max(0, data[:end].count(b"\n") - 1))


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\0\1" * 50, b"PK\3\4", b"step,a,a\n1,2,3\n", b"loss\n1\n", b'"\n\n']
)
def test_a_damaged_csv_is_put_aside(tmp_path, data):
    (tmp_path / "metrics.csv").write_bytes(data)
    with pytest.warns(UserWarning, match="metrics.csv cannot be read; it was renamed to metrics.damaged.csv"):
        use(Csv(), tmp_path, start=20)
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == ["29", "39", "49"]
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == data


@pytest.mark.parametrize("before", [None, b"", b"\n"])
def test_csv_may_be_missing_or_empty_in_a_resumed_run(tmp_path, before):
    if before is not None:
        (tmp_path / "metrics.csv").write_bytes(before)
    use(Csv(), tmp_path, start=40)
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == ["49"]


@pytest.mark.parametrize("part", [0, 7])
def test_a_full_disk_costs_the_table_alone_and_a_resumption_heals_it(tmp_path, monkeypatch, part):
    add = AppendFile.append

    def full(end, line):
        add(end, line[:part])
        raise OSError(errno.ENOSPC, "No space left on device")

    run, whole = tmp_path / "run", tmp_path / "whole"
    run.mkdir(), whole.mkdir()
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="csv failed.*No space") as seen:
        trackers = Trackers({"csv": Csv()})
        trackers.start(session(run))
        trackers.log(9, scalars(9))
        trackers.log(19, scalars(19))
        patch.setattr(AppendFile, "append", full)
        for step in (29, 39):
            trackers.log(step, scalars(step))
        trackers.finish(1)
    assert len(seen) == 1
    use(Csv(), run, start=20)
    use(Csv(), whole)
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_write_that_had_no_room_is_an_error():
    with pytest.raises(OSError, match="No space left"):
        AppendFile(Path("/dev/full")).append(b"row\n")


def text(seen, name):
    """The texts of a name, by step."""
    return {event.step: event.tensor_proto.string_val[0].decode() for event in seen.Tensors(name)}


def test_tensorboard_holds_curves_pictures_settings_and_tables(tmp_path):
    use(TensorBoard(), tmp_path, finish=False)  # all is on disk before the end
    seen = events(tmp_path)
    assert set(seen.Tags()["scalars"]) == {*scalars(49), "eval/psnr"}
    for name in scalars(9):
        curve = [(event.step, event.value) for event in seen.Scalars(name)]
        assert curve == [(step, np.float32(scalars(step)[name])) for step in range(9, 50, 10)]
    assert [(event.step, event.value) for event in seen.Scalars("eval/psnr")] == [(29, 21), (49, 22)]
    assert [(image.step, image.width, image.height) for image in seen.Images("view")] == [(49, 6, 4)]
    told = {name: json.loads(text(seen, name)[0].strip("`json\n")) for name in ("config", "provenance")}
    assert told == {"config": CONFIG, "provenance": {"id": ID} | FACTS}
    table = "| view | psnr | lpips |\n| --- | --- | --- |\n| a,b | 22.5 |  |\n| c | 23.5 | 0.25 |"
    assert text(seen, "per_view") == {49: table}


def test_tensorboard_of_a_resumed_run_has_each_step_once(tmp_path):
    for stop, start in ((40, 0), (30, 20), (50, 25)):
        use(TensorBoard(), tmp_path, stop=stop, start=start)
    seen = events(tmp_path)
    assert [event.step for event in seen.Scalars("train/loss")] == [9, 19, 29, 39, 49]
    assert [event.step for event in seen.Scalars("eval/psnr")] == [29, 49]
    assert list(text(seen, "config")) == [0, 20, 25]
    use(TensorBoard(), tmp_path, stop=20)  # another run in the same folder
    assert [event.step for event in events(tmp_path).Scalars("train/loss")] == [9, 19]


def test_tensorboard_on_a_full_disk_is_dropped_and_says_nothing_else(tmp_path, monkeypatch, capfd):
    def full(end, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    trackers = Trackers({"tensorboard": TensorBoard()})
    trackers.start(session(tmp_path))
    monkeypatch.setattr(AppendFile, "append", full)
    with pytest.warns(UserWarning, match="tensorboard failed.*No space") as seen:
        trackers.log(9, scalars(9))
        trackers.log(19, scalars(19))
    assert len(seen) == 1 and not capfd.readouterr().err


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Nobody is logged in, and a home of its own; what is looked up on the network meanwhile."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")
    monkeypatch.delenv("WANDB_ERROR_REPORTING")  # so that what the tracker sets is gone after the test
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "no such file"))
    asked, look_up = [], socket.getaddrinfo

    def watched(host, *rest, **more):
        asked.append(host)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    import wandb

    yield asked
    wandb.teardown()


@pytest.mark.filterwarnings("default")
def test_wandb_offline_holds_all_of_a_run_and_says_nothing(tmp_path, capfd, offline):
    folder, home = tmp_path / "run", tmp_path / "home"
    folder.mkdir()
    use(WandB(project="p", entity="e", name="n", group="g", job_type="j", tags=["x", "y"]), folder)
    ((run, table, last, artifacts, exits),) = told(folder)
    assert (run.run_id, run.project, run.entity, run.display_name) == (ID, "p", "e", "n")
    assert (run.run_group, run.job_type, list(run.tags), exits) == ("g", "j", ["x", "y"], [0])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config.pop("_wandb") is not None and config == CONFIG | {"provenance": FACTS}
    logged = [(step, scalars(step)) for step in range(9, 50, 10)]
    logged[3:3], logged[6:] = [(29, {"eval/psnr": 21.0})], [(49, {"eval/psnr": 22.0})]
    assert [{"step": step} | values for step, values in logged] == [
        {name: value for name, value in row.items() if name[0] != "_"} for row in table[:7]
    ]
    assert [row["_step"] for row in table] == [9, 19, 29, 30, 39, 49, 50, 51, 52]
    assert {name: json.loads(last[name]) for name in scalars(49)} == scalars(49) and last["eval/psnr"] == "22"
    media = {name: value for row in table[7:] for name, value in row.items()}
    image, views = (
        next(folder.glob(f"wandb/offline-*/files/{media[f'{n}.path']}")) for n in ("view", "per_view")
    )
    assert image.read_bytes().startswith(b"\x89PNG") and media["view.height"] == 4
    assert json.loads(views.read_text())["data"] == [["a,b", 22.5, None], ["c", 23.5, 0.25]]
    kinds = {artifact.type: artifact for artifact in artifacts}
    assert list(kinds) == ["run_table", "model"] and kinds["model"].name == f"{ID}-point_cloud.ply"
    (entry,) = kinds["model"].manifest.contents
    assert entry.local_path == str(folder / "point_cloud.ply") and entry.size == 3000  # read where it lies
    (entry,) = kinds["run_table"].manifest.contents
    assert Path(entry.local_path).is_file() and folder in Path(entry.local_path).parents
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert capfd.readouterr() == ("", "") and set(offline) <= {"localhost", "127.0.0.1"}


@pytest.mark.filterwarnings("default")
def test_wandb_goes_on_offline_under_the_same_id_and_drops_nothing(tmp_path, capfd, offline):
    tracker = WandB(group="g")
    use(tracker, tmp_path, stop=40)
    tracker.start(session(tmp_path, start=20))
    tracker._next_step = 41  # as where the server has rows of void steps
    for step in (29, 39, 49):
        tracker.log(step, scalars(step))
    tracker.finish(0)
    (first, before, _, _, stopped), (second, after, _, _, ended) = told(tmp_path)
    assert first.run_id == second.run_id == ID and first.run_group == second.run_group == "g"
    assert (stopped, ended) == ([143], [0])
    assert [row["step"] for row in before] == [9, 19, 29, 29, 39]
    assert [(row["step"], row["_step"]) for row in after] == [(29, 41), (39, 42), (49, 49)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("default")
def test_wandb_without_a_network_is_offline(tmp_path, capfd, offline, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("splatexp.tracking.wandb.TIMEOUTS", {"init_timeout": 1})
    with pytest.warns(UserWarning, match="wandb is offline, `wandb sync` can upload the run later: ") as seen:
        use(Trackers({"wandb": WandB()}), tmp_path, stop=20)
    assert len([one for one in seen if one.category is UserWarning]) == 1
    ((run, table, _, _, exits),) = told(tmp_path)
    assert run.run_id == ID and [row["step"] for row in table] == [9, 19] and exits == [143]
    assert capfd.readouterr() == ("", "") and wandb.run is None


def test_wandb_goes_online_only_with_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    assert not logged_in()
    file.write_text("machine api.example.org login user password p\n")
    assert not logged_in()
    file.write_text("machine api.wandb.ai login user password p\n")
    assert logged_in()
    file.write_text("machine")
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert logged_in()


def test_the_console_speaks_where_there_is_no_terminal_and_of_what_matters(tmp_path, capfd):
    tracker = Console(interval_seconds=3600)
    tracker.start(session(tmp_path))
    many = {"lr_means": 1e-4, "loss_l1": 0.5, "footprint_mean": 3.0}
    tracker.log(
        9,
        many
        | {"train/ssim": 0.5, "train/loss": 0.25, "num_gaussians": 1_200_000, "steps_per_second": 12.3456789},
    )
    tracker.log(19, many | {"train/loss": 0.125})  # too early for another line
    tracker.log(19, {"eval/psnr": 22.0, "eval/ssim": 0.75})
    tracker.log(49, many)
    tracker.log(49, many | {"train/loss": 0.0625, "train/psnr": 30.0})
    tracker.start(session(tmp_path, start=20))
    assert capfd.readouterr().err.splitlines() == [
        str(tmp_path),
        "10/50  train/loss 0.25  train/ssim 0.5  num_gaussians 1,200,000  steps_per_second 12.346",
        "20/50  eval/psnr 22  eval/ssim 0.75",
        "50/50  train/loss 0.0625  train/psnr 30",
        f"{tmp_path}  from step 20",
    ]


class Broken:
    """Raises in some of its calls."""

    def __init__(self, *where, error=RuntimeError):
        self.where, self.error, self.calls = where, error, []

    def __getattr__(self, name):
        def call(*values):
            self.calls.append(name)
            if name in self.where:
                raise self.error(f"{name} failed\nand more")

        return call


@pytest.mark.parametrize("where", [*([name] for name in METHODS), METHODS], ids=lambda names: names[-1])
def test_a_tracker_that_raises_is_dropped_once_and_the_others_go_on(tmp_path, where):
    broken = Broken(*where)
    told_so = f"tracker bad failed and is removed, the run continues: {where[0]} failed$"
    with pytest.warns(UserWarning, match=told_so) as seen:
        use(Trackers({"bad": broken, "csv": Csv()}), tmp_path)
    assert len(seen) == 1
    assert broken.calls.count(where[0]) == 1 and broken.calls[-1] == where[0]
    assert len(read_csv(tmp_path / "metrics.csv")) == 5 and len(read_csv(tmp_path / "per_view.csv")) == 2


@pytest.mark.parametrize("where", METHODS)
def test_an_interruption_is_no_failure_of_a_tracker(tmp_path, where):
    trackers = Trackers({"hit": Broken(where, error=KeyboardInterrupt)})
    with pytest.raises(KeyboardInterrupt):
        use(trackers, tmp_path)
    assert list(trackers.active) == ["hit"]


def test_nothing_heavy_is_imported_before_it_is_used(tmp_path):
    heavy = ("wandb", "tensorboard", "torch", "rich", "PIL", "scipy", "torchmetrics", "lpips", "gsplat")
    code = f"import sys, splatexp.tracking; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"
