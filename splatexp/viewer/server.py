"""The server of the page: a viser server with the controls and the scene that all clients share."""

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

from splatexp.cameras.pinhole import focus_point
from splatexp.cameras.turntable import estimate_up
from splatexp.viewer.browser import thumbnail
from splatexp.viewer.client import Client
from splatexp.viewer.curves import CURVES, CurveHistory
from splatexp.viewer.ports import free_port
from splatexp.viewer.pose import (
    FLIGHT_FRAMES,
    FLIGHT_SECONDS,
    camera_pose,
    frustum_size,
    interpolate_poses,
    orbit_target,
)

if TYPE_CHECKING:
    from splatexp.cameras.pinhole import Camera
    from splatexp.viewer.render_modes import RenderedView
    from splatexp.viewer.session import ViewerSession

THUMBNAIL_SIZE = 96  # px, longer side of a photograph on a frustum
SHARP_QUALITY = 88  # JPEG quality of an image of full resolution
MOVING_QUALITY = 60  # JPEG quality while the camera moves
FRUSTUM_COLOUR = (255, 196, 61)
CURVE_COLOUR = "#ffc43d"
# a new client looks at the scene from farther away than the first camera, by these fractions of its distance
BACK = 1.7
ABOVE = 0.35


class ViewerServer:
    """A `Page` that a viser server serves.

    Raises: OSError, ValueError with one line for a host or port that cannot be used.
    """

    def __init__(self, session: ViewerSession, host: str, port: int, training: bool = True):
        from rich.console import Console

        self.session = session
        self.training = training
        colour = np.array(session.scene.background or (0.0, 0.0, 0.0))
        self.backdrop = np.full((2, 2, 3), (255 * colour).round(), np.uint8)
        self.cameras = [view.camera for view in session.scene.train]
        self.clients: dict[int, Client] = {}
        self._connecting = threading.Lock()
        # port scanners and the like are not worth a message
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        with redirect_stdout(io.StringIO()):  # viser prints a banner
            self.server = _server(host, free_port(host, port))
        self.port = self.server.get_port()
        self.address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{self.port}"
        busy = f" (port {port} is busy)" if self.port != port else ""
        Console(stderr=True).out(f"viewer: {self.address}{busy}", highlight=False)
        self._add_scene()
        self._add_panel()
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(self._disconnect)

    def show_image(self, client: int, view: RenderedView, sharp: bool) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].show_image(view, SHARP_QUALITY if sharp else MOVING_QUALITY)

    def send_gaussians(self, client: int, rows: dict[str, np.ndarray]) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].send_gaussians(rows)

    def notify(self, client: int, title: str, text: str) -> None:
        """See `Page`."""
        if client in self.clients:
            self.clients[client].notify(title, text)

    def update_status(self, text: str, paused: bool) -> None:
        """See `Page`."""
        text += " · **paused**" if paused else ""
        if self._status.content != text:
            self._status.content = text
        label = "Resume" if paused else "Pause"
        if self.training and self._pause.label != label:
            self._pause.label = label

    def update_curves(self, curves: CurveHistory) -> None:
        """See `Page`."""
        for name, plot in self._plots.items():
            steps, values = curves.curve(name)
            if len(steps) and (len(plot.data[0]) != len(steps) or plot.data[0][-1] != steps[-1]):
                plot.data = (steps, values)
                plot.visible = True

    def update_cameras(self, cameras: list[Camera]) -> None:
        """See `Page`."""
        for frustum, camera, before in zip(self.frusta, cameras, self.cameras, strict=True):
            if not torch.equal(camera.viewmats, before.viewmats) or not torch.equal(camera.Ks, before.Ks):
                pose = camera_pose(camera)
                frustum.wxyz = pose.wxyz
                frustum.position = pose.position
                frustum.fov = pose.fov
        self.cameras = cameras

    def close(self) -> None:
        """See `Page`."""
        # A closing handshake takes seconds with a client that does not read, so connections are aborted.
        # viser has no public function for that.
        connections = getattr(getattr(self.server, "_websock_server", None), "_live_connections", {})
        for connection in list(connections.values()):
            self.server.get_event_loop().call_soon_threadsafe(connection.transport.abort)
        with redirect_stdout(io.StringIO()):  # viser prints that it has stopped
            self.server.stop()

    def fly_to_camera(self, client_id: int, index: int) -> None:
        """Move a client's camera to where a photograph was taken, and show the photograph in the panel."""
        client = self.clients.get(client_id)
        if client is None:
            return
        camera = client.handle.camera
        start = client.pose()
        flight = client.start_flight()
        end = camera_pose(self.cameras[index], camera.aspect)
        client.show_photo(self.session.scene.train[index])
        for pose in interpolate_poses(start, end):
            if client_id not in self.clients or flight != client.flights:
                return
            with client.handle.atomic():
                camera.wxyz = pose.wxyz
                camera.position = pose.position
                camera.fov = pose.fov
            time.sleep(FLIGHT_SECONDS / FLIGHT_FRAMES)
        with client.handle.atomic():
            camera.look_at = orbit_target(end, self.cameras)
        client.hide(f"/cameras/{index:04d}", end.position, self.size)

    def _add_scene(self) -> None:
        """Add the frusta of all cameras, and set the camera of new clients."""
        scene = self.server.scene
        extent = self.session.scene.extent
        scene.set_up_direction(estimate_up(self.cameras).numpy())
        scene.world_axes.visible = False
        self.size = frustum_size(self.cameras, extent)
        scene.add_frame("/cameras", show_axes=False)
        self.frusta = []
        for index, view in enumerate(self.session.scene.train):
            pose = camera_pose(view.camera)
            frustum = scene.add_camera_frustum(
                f"/cameras/{index:04d}",
                pose.fov,
                view.camera.width / view.camera.height,
                scale=self.size,
                thickness=1.5,
                thickness_units="screen",
                color=FRUSTUM_COLOUR,
                image=thumbnail(view, THUMBNAIL_SIZE),
                wxyz=pose.wxyz,
                position=pose.position,
                cast_shadow=False,
                receive_shadow=False,
            )
            self.frusta.append(frustum)
            frustum.on_click(lambda event, index=index: self.fly_to_camera(event.client.client_id, index))
        first = camera_pose(self.cameras[0], 1.5)
        target = orbit_target(first, self.cameras)
        away = first.position - target
        up = estimate_up(self.cameras).numpy()
        initial = self.server.initial_camera
        initial.position = target + BACK * away + ABOVE * np.linalg.norm(away) * up
        initial.look_at = target
        initial.fov = first.fov
        initial.near = 0.01 * self.size
        initial.far = 1e3 * extent

    def _add_panel(self) -> None:
        """Add the part of the control panel that all clients share."""
        import viser

        gui = self.server.gui
        session = self.session
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        gui.set_panel_label("splatexp")
        gui.main_panel.dock_right()
        self._status = gui.add_markdown("...", order=0)
        if self.training:
            self._pause = gui.add_button("Pause", icon=viser.Icon.PLAYER_PAUSE, order=1)
            step = gui.add_button("Step", icon=viser.Icon.PLAYER_SKIP_FORWARD, order=2)
            self._pause.on_click(lambda _: session.controls.pause(not session.controls.paused))
            step.on_click(lambda _: session.controls.step())
        self.folders = {
            name: gui.add_folder(name, order=7 + index, expand_by_default=name != "Crop")
            for index, name in enumerate(("Cameras", "Crop", "Curves"))
        }
        self._plots: dict[str, Any] = {}
        with self.folders["Curves"]:
            for name, title in CURVES.items():
                line = {"label": title, "stroke": CURVE_COLOUR, "width": 2}
                axis = {"stroke": "#c1c2c5", "grid": {"stroke": "#373a40"}}
                data = session.curves.curve(name)
                self._plots[name] = gui.add_uplot(
                    data,
                    ({"label": "step"}, line),
                    title=title,
                    scales={"x": {"time": False}},
                    axes=(axis, axis | {"size": 64}),  # px, room for the label 1,000,000
                    legend={"show": False},
                    height=170,
                    padding=(8, 24, 0, 0),
                    visible=len(data[0]) > 0,
                )

    def _connect(self, handle: Any) -> None:
        self.session.queue.add_client(handle.client_id)
        with self._connecting:  # viser's folders are not safe against two threads
            self.clients[handle.client_id] = Client(handle, self)
        if handle.client_id not in self.server.get_clients():  # it has disconnected in the meantime
            self._disconnect(handle)

    def _disconnect(self, handle: Any) -> None:
        self.clients.pop(handle.client_id, None)
        self.session.queue.remove_client(handle.client_id)

    def scene_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the corners (low [3], high [3]) of a box around what the cameras look at."""
        points = self.session.scene.points
        if points is not None and len(points) > 9:
            low, high = np.percentile(points.numpy(), (2, 98), axis=0)
            return low, high
        middle, half = focus_point(self.cameras).numpy(), 0.5 * self.session.scene.extent
        return middle - half, middle + half


def _server(host: str, port: int) -> Any:
    """Return a viser server that never opens a public tunnel, whoever asks for one."""
    import viser

    # a client may disconnect at any moment, while messages for it are still queued
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection", UserWarning)

    class LocalServer(viser.ViserServer):
        def request_share_url(self, verbose: bool = True) -> str | None:
            return None

    return LocalServer(host=host, port=port, verbose=False)
