"""A client of the page: its own part of the control panel, and the view that it requests."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splatexp.viewer.browser import thumbnail
from splatexp.viewer.pose import Pose
from splatexp.viewer.render_queue import ViewRequest

if TYPE_CHECKING:
    from splatexp.data.scene import View
    from splatexp.viewer.render_modes import RenderedView
    from splatexp.viewer.session import ViewerSession

RASTERIZER = "run's rasterizer"  # the choices of "Renderer"
BROWSER = "browser"
PHOTO_SIZE = 400  # px, longer side of the photograph in the panel
UNHIDE_DISTANCE = 10.0  # in frustum sizes: beyond it from a hidden frustum a client sees it again


class SharedPage(Protocol):
    """The part of the page that all clients share."""

    session: ViewerSession
    backdrop: np.ndarray  # [2,2,3] uint8, background of a canvas on which the browser renders
    folders: Any
    scene_bounds: Any


class Client:
    """A connected client. viser calls its methods from many threads."""

    def __init__(self, handle: Any, page: SharedPage):
        self.handle = handle
        self.page = page
        self.id = handle.client_id
        self.flights = 0  # number of flights to a camera that have begun
        self._lock = threading.Lock()
        self._hidden: tuple[Any, np.ndarray, float] | None = None  # node, position, size of a frustum
        self._no_cameras: Any = None  # scene node that hides all frusta for this client
        self._splats: Any = None  # scene node of the Gaussians that the browser renders
        self._panel()
        handle.camera.on_update(self._moved)
        self.request_view()

    def pose(self) -> Pose:
        """Return the pose of the client's camera."""
        camera = self.handle.camera
        return Pose(np.array(camera.wxyz), np.array(camera.position), float(camera.fov))

    def request_view(self) -> None:
        """Request the view that the client's camera and controls show."""
        camera = self.handle.camera
        request = ViewRequest(
            camera=self.pose(),
            width=camera.image_width,
            height=camera.image_height,
            mode=self._mode.value,
            box=self._box() if self._crop.value else None,
            browser=self._renderer.value == BROWSER,
        )
        self.page.session.queue.request(self.id, request)

    def show_image(self, picture: RenderedView, quality: int) -> None:
        """Show an image behind everything else on the canvas; it replaces an image that is still unsent."""
        if self._splats is not None:
            self._splats.remove()
            self._splats = None
        self.handle.scene.set_background_image(picture.image, format="jpeg", jpeg_quality=quality)
        if self._legend.content != picture.legend:
            self._legend.content = picture.legend

    def send_gaussians(self, rows: dict[str, np.ndarray]) -> None:
        """Send Gaussians, see `gaussian_arrays`, which the browser renders itself."""
        if self._splats is None:
            self.handle.scene.set_background_image(self.page.backdrop, format="png")
        self._splats = self.handle.scene.add_gaussian_splats("/splats", **rows)
        self._legend.content = f"{len(rows['centers']):,} Gaussians, rendered here without view dependence"

    def notify(self, title: str, text: str) -> None:
        """Show a message for a few seconds."""
        self.handle.add_notification(title, text, auto_close_seconds=8)

    def show_photo(self, view: View) -> None:
        """Show a photograph in the panel."""
        self._photo.image = thumbnail(view, PHOTO_SIZE)
        self._photo.label = view.name
        self._photo.visible = True

    def start_flight(self) -> int:
        """Begin a flight to a camera, which ends any other, and return its number."""
        self.show_hidden()
        with self._lock:
            self.flights += 1
            return self.flights

    def hide(self, name: str, position: np.ndarray, size: float) -> None:
        """Hide the frustum in which the client stands, until it moves away."""
        self.show_hidden()
        node = self.handle.scene.add_frame(name, show_axes=False, visible=False)
        with self._lock:
            self._hidden = node, position, size

    def show_hidden(self) -> None:
        """Undo `hide`."""
        with self._lock:
            hidden, self._hidden = self._hidden, None
        if hidden is not None:
            hidden[0].remove()

    async def _moved(self, camera: Any) -> None:
        """Request a view after each move. viser awaits coroutines in the order of the moves."""
        if self._renderer.value != BROWSER:
            self.request_view()
        hidden = self._hidden
        if hidden is not None:
            _, position, size = hidden
            if np.linalg.norm(camera.position - position) > UNHIDE_DISTANCE * size:
                self.show_hidden()

    def _panel(self) -> None:
        """Add the client's own part of the control panel."""
        import viser

        gui, folders, session = self.handle.gui, self.page.folders, self.page.session
        self._mode = gui.add_dropdown("Mode", tuple(session.modes), initial_value="colour", order=3)
        self._legend = gui.add_markdown("", order=4)
        self._renderer = gui.add_dropdown(
            "Renderer", (RASTERIZER, BROWSER), initial_value=RASTERIZER, order=5
        )
        snapshot = gui.add_button("Snapshot", icon=viser.Icon.CAMERA, order=6)
        with folders["Cameras"]:
            shown = gui.add_checkbox("Show", True)
            blank = np.zeros((2, 2, 3), np.uint8)
            self._photo = gui.add_image(blank, format="jpeg", jpeg_quality=85, visible=False)
        low, high = (end.astype(np.float64) for end in self.page.scene_bounds())
        span = float(np.max(high - low)) or 1.0
        digits = math.ceil(2 - math.log10(span))
        center = np.round((low + high) / 2, digits)
        size = np.round(high - low, digits)
        with folders["Crop"]:
            self._crop = gui.add_checkbox("Enabled", False)
            self._center = gui.add_vector3("Center", tuple(center), step=span / 200)
            self._size = gui.add_vector3("Size", tuple(size), min=(0.0,) * 3, step=span / 200)
        self._frame = self.handle.scene.add_box(
            "/crop", color=(255, 255, 255), dimensions=(1.0, 1.0, 1.0), wireframe=True, visible=False
        )
        self._mode.on_update(lambda _: self.request_view())
        self._renderer.on_update(lambda _: self.request_view())
        for control in (self._crop, self._center, self._size):
            control.on_update(lambda _: self._update_crop())
        snapshot.on_click(lambda _: session.controls.request_snapshot(self.id))
        shown.on_update(lambda _: self._show_cameras(shown.value))

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and the upper corner of the box of the controls."""
        center = np.array(self._center.value)
        half = np.array(self._size.value) / 2
        return center - half, center + half

    def _update_crop(self) -> None:
        """Draw the box of the controls, and request a view with it."""
        low, high = self._box()
        self._frame.visible = self._crop.value
        self._frame.position = (low + high) / 2
        self._frame.dimensions = tuple(np.maximum(high - low, 1e-6))
        self.request_view()

    def _show_cameras(self, shown: bool) -> None:
        """Show all frusta, or none, to this client alone."""
        if self._no_cameras is not None:
            self._no_cameras.remove()
            self._no_cameras = None
        if not shown:
            self._no_cameras = self.handle.scene.add_frame("/cameras", show_axes=False, visible=False)
