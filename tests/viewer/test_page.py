"""The page as it is served: clients by websocket, as a browser would be, without one."""

import socket
import threading
import time

import numpy as np
import pytest
import torch

from splatexp.commands.view import open_latest
from splatexp.config.build import build, compose
from splatexp.run.checkpoint import list_checkpoints, load_checkpoint
from splatexp.run.checkpointer import Checkpointer
from splatexp.viewer import ViewerSettings
from splatexp.viewer.pose import camera_pose
from splatexp.viewer.serve import serve_viewer

viser = pytest.importorskip("viser", reason="the extra `viewer` is not installed")
SMALL = ["data.size=48", "data.train_views=5", "data.test_views=2", "data.points=150", "data.samples=1"]
SMALL += [
    "data.cache=false",
    "evaluate.turntable=false",
    "evaluate.renders=false",
    "tracker=[csv]",
    "threads=1",
]
SMALL += ["job_cache=", "log_every=2"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(*words):
    return build(compose([*SMALL, *words]))


def free():
    with socket.create_server(("127.0.0.1", 0)) as place:
        return place.getsockname()[1]


class Browser(threading.Thread):
    """A client that looks around: it sends where it stands and counts the pictures that it gets.

    greedy: it reads them; else it never does, and lets them pile up. looks: places where it goes, then it
    vanishes, unless it stays.
    """

    def __init__(self, port, greedy=True, looks=10_000, stays=False):
        super().__init__(daemon=True)
        self.port, self.greedy, self.looks, self.stays = port, greedy, looks, stays
        self.pictures, self.failed = 0, None
        self.done = threading.Event()
        self.start()

    def run(self):
        import msgspec
        from websockets.sync.client import connect

        end = time.monotonic() + 60
        while True:
            try:
                protocols = [f"viser-v{viser.__version__}"]
                link = connect(
                    f"ws://127.0.0.1:{self.port}", subprotocols=protocols, max_size=None, compression=None,
                    ping_interval=None, max_queue=None if self.greedy else 1,
                )  # fmt: skip
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        try:
            look = 0
            while not self.done.is_set() and (look < self.looks or self.stays):
                if look < self.looks:
                    link.send(msgspec.msgpack.encode(self.camera(0.01 * look)))
                look += 1
                while self.greedy:
                    try:
                        data = link.recv(timeout=0.03)
                    except TimeoutError:
                        break
                    self.pictures += sum(map(is_picture, _messages(data)))
                time.sleep(0.01)
        except Exception as error:  # the server has closed
            self.failed = error
        link.socket.close()  # vanishes without a word

    @staticmethod
    def camera(angle):
        eye = 4 * np.array([np.cos(angle), np.sin(angle), 0.3])
        return {
            "type": "ViewerCameraMessage", "wxyz": [1.0, 0.0, 0.0, 0.0], "position": eye.tolist(), "fov": 0.8,
            "near": 0.01, "far": 100.0, "image_height": 60, "image_width": 80, "look_at": [0.0, 0.0, 0.0],
            "up_direction": [0.0, 0.0, 1.0],
        }  # fmt: skip


def _messages(data):
    import msgspec
    import zstandard

    size = int.from_bytes(data[8:16], "little")
    plain = zstandard.ZstdDecompressor().decompress(data[16 : 16 + size])
    return msgspec.msgpack.decode(plain)["messages"]


def is_picture(message):
    return message["type"] == "BackgroundImageMessage" and message["rgb_data"] is not None


def tensors_of(folder):
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[0][1])[0]


def test_twenty_clients_do_not_stop_a_run_nor_change_its_bits(tmp_path, capfd, monkeypatch):
    words = ["steps=60", "densify.every=20", "densify.start=10", "checkpoint.every=60"]
    plain = made(*words)(tmp_path / "plain")
    port = free()
    clients = [Browser(port, greedy=index % 5 != 4, looks=20 if index < 4 else 10_000) for index in range(20)]
    run = made(*words, "viewer=true", f"viewer.port={port}", "viewer.refresh_seconds=0.01")
    seen, keep = [], Checkpointer.__call__

    def slowly(self, step, splats):  # so that every client comes before the last step
        time.sleep(0.05 if sum(each.pictures > 0 for each in clients) < 14 else 0)
        seen.append(step)
        keep(self, step, splats)

    monkeypatch.setattr(Checkpointer, "__call__", slowly)
    try:
        result = run(tmp_path / "serve_viewer")
    finally:
        for each in clients:
            each.done.set()
        for each in clients:
            each.join(20)
    assert seen == list(range(60)) and result["psnr"] == plain["psnr"]
    assert sum(each.pictures > 0 for each in clients) >= 10
    one, other = tensors_of(tmp_path / "plain"), tensors_of(tmp_path / "serve_viewer")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    said = capfd.readouterr()
    assert f"viewer: http://127.0.0.1:{port}" in said.err
    assert "Traceback" not in said.err and "viser" not in said.out


@pytest.fixture
def served(tmp_path):
    """A page without a run, its Gaussians, and a browser that looks at it."""
    run = made("steps=3")
    scene, state = run.prepare(tmp_path)
    settings = ViewerSettings(enabled=True, port=free(), refresh_seconds=0.0)
    with serve_viewer(settings, scene, run.raster, tmp_path, 3, run.camera) as session:
        yield session, state.splats


def until(condition, session, splats):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        session.render_pending(1, splats, training=False)
        time.sleep(0.01)


def test_a_client_that_does_not_read_gets_the_newest_picture_alone(served):
    session, splats = served
    slow = Browser(session.page.port, greedy=False)
    until(lambda: len(session.page.clients) == 1, session, splats)
    client = next(iter(session.page.clients.values()))
    buffer = client.handle._websock_connection.get_message_buffer()
    waiting = []
    big = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)  # does not fit into any socket
    for _ in range(60):
        client.handle.scene.set_background_image(big, format="png")
        waiting.append(sum("Background" in type(each).__name__ for each in buffer.message_from_id.values()))
        time.sleep(0.01)
    assert max(waiting) == 1
    slow.done.set()
    until(lambda: not session.page.clients and not len(session.queue), session, splats)


def test_a_click_on_a_camera_flies_there_and_controls_reach_the_run(served):
    session, splats = served
    browser = Browser(session.page.port, looks=1, stays=True)
    until(lambda: browser.pictures > 0 or len(session.page.clients) == 1, session, splats)
    number, client = next(iter(session.page.clients.items()))
    session.page.fly_to_camera(number, 2)
    end = camera_pose(session.scene.train[2].camera, 80 / 60)
    assert np.allclose(client.handle.camera.position, end.position, atol=1e-5)
    assert abs(client.handle.camera.wxyz @ end.wxyz) > 1 - 1e-6
    assert client._photo.visible and client._photo.label == session.scene.train[2].name
    client._mode.value = "depth"
    client.request_view()
    until(lambda: "world units" in client._legend.content, session, splats)
    client._renderer.value = "browser"
    client.request_view()
    until(lambda: client._splats is not None, session, splats)
    assert session.page.server.request_share_url() is None  # nothing leaves this machine
    session.page.fly_to_camera(99, 0)  # somebody who has gone
    browser.done.set()


def test_what_a_folder_shows(tmp_path):
    from splatexp.config.build import save_config

    words = [*SMALL, "steps=6", "checkpoint.every=4"]
    folder = tmp_path / "run"
    save_config(compose(words), folder, [])
    with pytest.raises(FileNotFoundError, match="expected a checkpoint or a point_cloud.ply"):
        open_latest(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_latest(tmp_path / "nowhere")
    build(compose(words))(folder)
    *_, splats, step, ages = open_latest(folder)
    assert (step, ages) == (6, True) and len(splats) > 0
    list_checkpoints(folder / "checkpoints")[0][1].unlink()
    *_, step, ages = open_latest(folder)
    assert (step, ages) == (6, False)  # the .ply is newer than what is left
    (folder / "point_cloud.ply").unlink()
    *_, step, ages = open_latest(folder)
    assert (step, ages) == (4, True)
