"""Watching a run without a browser: whose turn it is, pausing, curves, ports, settings."""

import socket
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from support import tiny

from splatexp.config.build import build, compose, load_run, save_config
from splatexp.config.schema import ConfigError
from splatexp.poses import POSE, SE3
from splatexp.provenance.identity import run_id
from splatexp.raster.backends import Reference
from splatexp.sweep.job_identity import job_id
from splatexp.viewer import ViewerSettings
from splatexp.viewer.curves import CurveHistory
from splatexp.viewer.ports import free_port
from splatexp.viewer.pose import camera_pose
from splatexp.viewer.render_queue import SETTLE_SECONDS, RenderQueue, ViewRequest
from splatexp.viewer.session import ViewerSession


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def queue(max_time_fraction=0.5, refresh_seconds=1.0, max_resolution=1000):
    made = RenderQueue(max_time_fraction, refresh_seconds, max_resolution, Clock())
    for client in (1, 2):
        made.add_client(client)
    return made


REQUEST = ViewRequest(width=400, height=200)


def test_only_the_newest_wish_counts_and_a_still_view_gets_sharp():
    made = queue()
    assert made.next_job(0, True) is None
    for _ in range(50):
        made.request(1, ViewRequest(width=9, height=9))
    made.request(1, REQUEST)
    first = made.next_job(0, True)
    assert (first.request, first.sharp) == (REQUEST, False)
    made.finish_job(first, 0, 0.4)  # far too slow: the next one on the way has fewer pixels
    made.clock.now += 0.4
    made.request(1, REQUEST)
    second = made.next_job(0, True)
    assert not second.sharp and second.width / second.height == pytest.approx(2, rel=0.05)
    assert second.width * second.height == pytest.approx(80_000 / 10, rel=0.1)
    made.finish_job(second, 0, 0.01)
    made.clock.now += 0.05
    assert made.next_job(0, True) is None  # it has what it asked for, for now
    made.clock.now += SETTLE_SECONDS
    last = made.next_job(0, True)
    assert (last.sharp, last.width, last.height) == (True, 400, 200)
    made.finish_job(last, 0, 0.01)
    made.clock.now += 100
    assert made.next_job(0, True) is None  # nothing has changed
    assert made.next_job(1, True).sharp  # a step has


def test_drawing_takes_its_share_and_goes_round():
    made, drawn = queue(max_time_fraction=0.25, refresh_seconds=0.5), []
    for client in (1, 2):
        made.request(client, REQUEST)
    for step in range(1000):
        made.clock.now += 0.01
        if turn := made.next_job(step, True):
            made.clock.now += 0.1
            made.finish_job(turn, step, 0.1)
            drawn.append(turn.client)
        made.request(1, REQUEST)  # one that never rests does not starve the other
    assert 0.1 * len(drawn) / made.clock.now == pytest.approx(0.25, abs=0.02)
    assert abs(drawn.count(1) - drawn.count(2)) <= 1
    made.request(2, REQUEST)
    assert made.next_job(0, True) is None and made.next_job(0, False) is not None  # nothing trains: no share
    made.remove_client(1)
    made.remove_client(2)
    made.clock.now += 3
    assert made.next_job(0, False) is None and made.seconds_without_clients() == 3 and len(made) == 0


def test_a_browser_that_draws_gets_gaussians_now_and_then():
    made = queue(max_resolution=100)
    made.request(1, ViewRequest(width=400, height=200, browser=True))
    turn = made.next_job(0, True)
    assert turn.sharp and (turn.width, turn.height) == (100, 50)
    made.finish_job(turn, 0, 0.1)
    made.clock.now += 2
    assert made.next_job(5, True) is None
    made.clock.now += 4
    assert made.next_job(5, True) is not None


def test_curves_stay_short_and_are_read_back(tmp_path):
    curves = CurveHistory()
    for step in range(5000):
        curves.log(step, {"num_gaussians": step, "train/psnr_mean": 20.0, "other": 1.0})
    curves.log(4999, {"eval/psnr": 30.0})
    steps, values = curves.curve("num_gaussians")
    assert 400 < len(steps) <= 1001 and steps[-1] == 5000 and (np.diff(steps) > 0).all()
    assert curves.latest == {"num_gaussians": 4999.0, "train/psnr_mean": 20.0, "eval/psnr": 30.0}
    assert [len(part) for part in curves.curve("eval/psnr")] == [1, 1]
    assert [len(part) for part in curves.curve("train/loss_mean")] == [0, 0]


class Paper:
    """A page that keeps what it was given."""

    def __init__(self):
        self.shown, self.told, self.said = [], [], []

    def show_image(self, client, picture, sharp):
        self.shown.append((client, picture.image.copy(), sharp))

    def send_gaussians(self, client, rows):
        self.shown.append((client, rows, True))

    def notify(self, client, title, text):
        self.told.append((title, text))

    def update_status(self, text, paused):
        self.said.append((text, paused))

    def update_curves(self, curves):
        pass

    def update_cameras(self, cameras):
        self.cameras = cameras


def session(folder, **more):
    made = ViewerSession(ViewerSettings(refresh_seconds=0.0), tiny.scene(), Reference(), folder, 9, **more)
    made.page = Paper()
    return made


def view_request(**more):
    return ViewRequest(camera_pose(tiny.cameras()[0]), 20, 16, **more)


def test_nobody_watching_costs_nothing_and_a_failure_is_told_once(tmp_path):
    made, splats = session(tmp_path), tiny.splats()
    made.after_step(0, splats)
    assert not made.page.said and made.queue.next_job(0, False) is None
    made.queue.add_client(5)
    for step in range(3):
        made.queue.request(5, view_request(mode="hue"))
        made.queue.free = 0
        made.after_step(step, splats)
    assert [title for title, _ in made.page.told] == ["Could not render"] and not made.page.shown
    made.queue.request(5, view_request())
    made.queue.free = 0
    made.after_step(3, splats)
    assert len(made.page.shown) == 1 and "**step 1** of 9" in made.page.said[0][0]


def test_pause_step_snapshot_and_going_on(tmp_path):
    stop = threading.Event()
    made, splats, done = session(tmp_path, stopping=stop.is_set), tiny.splats(), []
    made.queue.add_client(1)
    made.queue.request(1, view_request(mode="depth"))

    def loop():
        for step in range(9):
            made.after_step(step, splats)
            done.append(step)

    def reach(count):
        until = time.monotonic() + 20
        while len(done) < count and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(done) == count

    made.controls.pause(True)
    thread = threading.Thread(target=loop)
    thread.start()
    reach(0)
    made.controls.request_snapshot(1)
    made.controls.step()
    reach(1)
    made.controls.step(2)
    reach(3)
    assert made.page.said[-1][1] and made.page.shown
    assert (tmp_path / "snapshots" / "step_00000001_depth.png").is_file()
    stop.set()  # as Ctrl-C does
    thread.join(20)
    assert len(done) == 9


def test_cameras_that_learn_are_shown_where_they_are(tmp_path):
    poses, splats = SE3(start=0), tiny.splats()
    made = session(tmp_path, poses=poses)
    poses.rig(made.scene, splats, made.scene.train)  # as the loop does
    splats.shared[POSE].data[1] += 0.1
    given = [view.camera for view in made.scene.train]
    made.queue.add_client(1)
    made.queue.request(1, view_request(mode="error"))
    made.render_pending(1, splats, training=False)
    moved = [
        not torch.allclose(now.viewmats, before.viewmats, atol=1e-5)
        for now, before in zip(made.page.cameras, given, strict=True)
    ]
    assert moved == [False, True, False, False, False]
    assert made.scene.train[1].camera is made.page.cameras[1] and len(made.page.shown) == 1


def test_a_run_that_nobody_watches_any_more_does_not_stay_paused(tmp_path, monkeypatch):
    monkeypatch.setattr("splatexp.viewer.session.ABANDONED_SECONDS", 0.1)
    made = session(tmp_path)
    made.queue.add_client(1)
    made.controls.pause(True)
    made.queue.remove_client(1)
    began = time.monotonic()
    made.after_step(0, tiny.splats())
    assert 0.05 < time.monotonic() - began < 5 and not made.controls.paused


def test_a_busy_port_is_followed_by_the_next_free_one():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 20
    for host in ("203.0.113.7", "no such host"):
        with pytest.raises(ValueError, match=f"viewer.host: expected an address .* got '{host}'"):
            free_port(host, 8080)


def test_settings_and_what_they_have_no_say_in(tmp_path, monkeypatch):
    words = ["data.size=48", "data.cache=false"]
    plain, watched = (build(compose([*words, *more])) for more in ([], ["viewer=true", "viewer.port=9000"]))
    assert not plain.viewer.enabled and watched.viewer == ViewerSettings(enabled=True, port=9000)
    assert not build(compose(["viewer=false"])).viewer.enabled
    assert job_id(plain) == job_id(watched) == job_id(watched, ["viewer"])
    assert run_id(plain.config(), "x", "y") == run_id(watched.config(), "x", "y")
    for word, line in [
        ("viewer.prot=1", "viewer.prot: no such key; did you mean viewer.port"),
        ("viewer.port=0", "viewer.port: expected a number in [1, 65535], got 0"),
        ("viewer.max_time_fraction=1", "viewer.max_time_fraction: expected a number in [0.01, 0.99], got 1"),
        ("viewer.host=''", "viewer.host: expected the address"),
    ]:
        with pytest.raises(ConfigError) as told:
            build(compose([word]))
        assert line in str(told.value)
    monkeypatch.setattr("splatexp.viewer.settings.find_spec", lambda name: None)
    plain.viewer.check()
    with pytest.raises(ImportError, match=r"viewer: .*; pip install 'splatexp\[viewer\]'"):
        watched.prepare(tmp_path)


def test_older_runs_have_no_viewer_and_can_be_opened(tmp_path):
    save_config(compose(["viewer=true"]), tmp_path, [])
    assert load_run(tmp_path).viewer.enabled
    path = tmp_path / ".hydra" / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    del plain["viewer"]
    path.write_text(yaml.safe_dump(plain))
    assert not load_run(tmp_path).viewer.enabled
