"""The page itself: viser's server, what all clients share on it, and what each has of its own."""

from __future__ import annotations

import io
import logging
import threading
import time
import warnings
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from splatexp.cameras.pinhole import focus
from splatexp.cameras.turntable import upright
from splatexp.viewer.browser import thumbnail
from splatexp.viewer.client import Client
from splatexp.viewer.curves import PANELS, Curves
from splatexp.viewer.ports import free_port
from splatexp.viewer.pose import FRAMES, SECONDS, flight, frustum_size, pose_of, target_of

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.viewer.render_modes import Picture
    from splatexp.viewer.session import Live

THUMB = 96  # px, photographs on the frusta
SHARP, COARSE = 88, 60  # JPEG quality
INK = (255, 196, 61)
LINE = "#ffc43d"
BACK, ABOVE = 1.7, 0.35  # where everybody begins: so much farther away than the first camera, and higher


class Served:
    """A `Page` on viser.

    Raises: OSError, ValueError with one line where host or port cannot be had.
    """

    def __init__(self, live: Live, host: str, port: int, training: bool = True):
        from rich.console import Console

        self.live, self.training = live, training
        colour = np.array(live.scene.background or (0.0, 0.0, 0.0))
        self.backdrop = np.full((2, 2, 3), (255 * colour).round(), np.uint8)
        self.cameras = [view.camera for view in live.scene.train]
        self.clients: dict[int, Client] = {}
        self._building = threading.Lock()
        taken = free_port(host, port)
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # what is no browser is no matter
        with redirect_stdout(io.StringIO()):  # a banner
            self.server = _server(host, taken)
        taken = self.server.get_port()
        at = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{taken}"
        busy = f" (port {port} is busy)" if taken != port else ""
        Console(stderr=True).out(f"viewer: {at}{busy}", highlight=False)
        self.port, self.address = taken, at
        self._scene()
        self._panel()
        self.server.on_client_connect(self._connected)
        self.server.on_client_disconnect(self._gone)

    def show(self, client: int, picture: Picture, sharp: bool) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].show(picture, SHARP if sharp else COARSE)

    def give(self, client: int, rows: dict[str, np.ndarray]) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].give(rows)

    def tell(self, client: int, title: str, text: str) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].tell(title, text)

    def status(self, text: str, paused: bool) -> None:
        """See `Page`."""
        text += " · **paused**" if paused else ""
        if self._status.content != text:
            self._status.content = text
        if self.training and self._pause.label != (label := "Resume" if paused else "Pause"):
            self._pause.label = label

    def draw(self, curves: Curves) -> None:
        """See `Page`."""
        for name, plot in self._plots.items():
            steps, values = curves.panel(name)
            if len(steps) and (len(plot.data[0]) != len(steps) or plot.data[0][-1] != steps[-1]):
                plot.data, plot.visible = (steps, values), True

    def aim(self, cameras: list[Camera]) -> None:
        """See `Page`."""
        for frustum, camera, before in zip(self.frusta, cameras, self.cameras, strict=True):
            if not torch.equal(camera.viewmats, before.viewmats) or not torch.equal(camera.Ks, before.Ks):
                pose = pose_of(camera)
                frustum.wxyz, frustum.position, frustum.fov = pose.wxyz, pose.position, pose.fov
        self.cameras = cameras

    def close(self) -> None:
        """See `Page`."""
        # it would wait for farewells, seconds where a client does not read; there is no public door to that
        links = getattr(getattr(self.server, "_websock_server", None), "_live_connections", {})
        for link in list(links.values()):
            self.server.get_event_loop().call_soon_threadsafe(link.transport.abort)
        with redirect_stdout(io.StringIO()):  # it says that it has stopped
            self.server.stop()

    def fly(self, client: int, index: int) -> None:
        """Take a client to where a photograph was taken, and show that beside it."""
        found = self.clients.get(client)
        if found is None:
            return
        camera, view = found.handle.camera, self.live.scene.train[index]
        start, flights = found.pose(), found.take_off()
        end = pose_of(self.cameras[index], camera.aspect)
        found.photo(view)
        for pose in flight(start, end):
            if client not in self.clients or flights != found.flights:
                return
            with found.handle.atomic():
                camera.wxyz, camera.position, camera.fov = pose.wxyz, pose.position, pose.fov
            time.sleep(SECONDS / FRAMES)
        with found.handle.atomic():
            camera.look_at = target_of(end, self.cameras)
        found.hide(f"/cameras/{index:04d}", end.position, self.size)

    def _scene(self) -> None:
        """The frusta of all cameras, and where everybody begins."""
        scene, extent = self.server.scene, self.live.scene.extent
        scene.set_up_direction(upright(self.cameras).numpy())
        scene.world_axes.visible = False
        self.size = frustum_size(self.cameras, extent)
        scene.add_frame("/cameras", show_axes=False)
        self.frusta = []
        for index, view in enumerate(self.live.scene.train):
            pose = pose_of(view.camera)
            frustum = scene.add_camera_frustum(
                f"/cameras/{index:04d}", pose.fov, view.camera.width / view.camera.height, scale=self.size,
                thickness=1.5, thickness_units="screen", color=INK, image=thumbnail(view, THUMB),
                wxyz=pose.wxyz, position=pose.position, cast_shadow=False, receive_shadow=False,
            )  # fmt: skip
            self.frusta.append(frustum)
            frustum.on_click(lambda event, index=index: self.fly(event.client.client_id, index))
        first, begin = pose_of(self.cameras[0], 1.5), self.server.initial_camera
        target = target_of(first, self.cameras)
        away, up = first.position - target, upright(self.cameras).numpy()
        begin.position = target + BACK * away + ABOVE * np.linalg.norm(away) * up
        begin.look_at = target
        begin.fov, begin.near, begin.far = first.fov, 0.01 * self.size, 1e3 * extent

    def _panel(self) -> None:
        """What all clients share beside the picture."""
        import viser

        gui, live = self.server.gui, self.live
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        gui.set_panel_label("splatexp")
        gui.main_panel.dock_right()
        self._status = gui.add_markdown("...", order=0)
        if self.training:
            self._pause = gui.add_button("Pause", icon=viser.Icon.PLAYER_PAUSE, order=1)
            step = gui.add_button("One step", icon=viser.Icon.PLAYER_SKIP_FORWARD, order=2)
            self._pause.on_click(lambda _: live.controls.pause(not live.controls.paused))
            step.on_click(lambda _: live.controls.step())
        self.folders = {
            name: gui.add_folder(name, order=7 + place, expand_by_default=name != "Crop")
            for place, name in enumerate(("Cameras", "Crop", "Curves"))
        }
        self._plots: dict[str, Any] = {}
        with self.folders["Curves"]:
            for name, title in PANELS.items():
                line = {"label": title, "stroke": LINE, "width": 2}
                look = {"stroke": "#c1c2c5", "grid": {"stroke": "#373a40"}}
                axes = (look, look | {"size": 64})  # px, room for 1,000,000
                data = live.curves.panel(name)
                self._plots[name] = gui.add_uplot(
                    data, ({"label": "step"}, line), title=title, scales={"x": {"time": False}}, axes=axes,
                    legend={"show": False}, height=170, padding=(8, 24, 0, 0), visible=len(data[0]) > 0,
                )  # fmt: skip

    def _connected(self, handle: Any) -> None:
        self.live.turns.join(handle.client_id)
        with self._building:  # a folder of the panel takes in one at a time
            self.clients[handle.client_id] = Client(handle, self)
        if handle.client_id not in self.server.get_clients():  # and gone already
            self._gone(handle)

    def _gone(self, handle: Any) -> None:
        self.clients.pop(handle.client_id, None)
        self.live.turns.leave(handle.client_id)

    def room(self) -> tuple[np.ndarray, np.ndarray]:
        """A box [low, high] around what the cameras look at."""
        points = self.live.scene.points
        if points is not None and len(points) > 9:
            low, high = np.percentile(points.numpy(), (2, 98), axis=0)
            return low, high
        middle, half = focus(self.cameras).numpy(), 0.5 * self.live.scene.extent
        return middle - half, middle + half


def _server(host: str, port: int) -> Any:
    """Viser's server; it opens no tunnel to the outside, whoever asks for it."""
    import viser

    # a client may go at any moment, and what was meant for it goes nowhere
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection", UserWarning)

    class Local(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> str | None:
            return None

    return Local(host=host, port=port, verbose=False)
