"""One client of the page: its own part of the panel, and what it wants to see."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splatexp.viewer.browser import thumbnail
from splatexp.viewer.pose import Pose
from splatexp.viewer.render_queue import Wish

if TYPE_CHECKING:
    from splatexp.data.scene import View
    from splatexp.viewer.render_modes import Picture
    from splatexp.viewer.session import Live

HERE, BROWSER = "our rasterizer", "the browser"
PHOTO = 400  # px, the photograph in the panel
AWAY = 10.0  # of a frustum's size: a client that is farther from a hidden one sees it again


class SharedPage(Protocol):
    """The part of the page that all clients share."""

    live: Live
    backdrop: np.ndarray  # [2,2,3] uint8, behind everything
    folders: Any
    room: Any


class Client:
    """What is known of one client. viser calls into it from many threads."""

    def __init__(self, handle: Any, page: SharedPage):
        self.handle, self.page, self.id = handle, page, handle.client_id
        self.flights = 0
        self._lock = threading.Lock()
        self._hidden: tuple[Any, np.ndarray, float] | None = None  # node, position, size
        self._splats: Any = None
        self._panel()
        handle.camera.on_update(self._moved)
        self.ask()

    def pose(self) -> Pose:
        """Where it stands."""
        camera = self.handle.camera
        return Pose(np.array(camera.wxyz), np.array(camera.position), float(camera.fov))

    def ask(self) -> None:
        """Tell what it wants to see."""
        camera, browser = self.handle.camera, self._by.value == BROWSER
        size = camera.image_width, camera.image_height
        box = self._box() if self._crop.value else None
        self.page.live.turns.ask(self.id, Wish(self.pose(), *size, self._mode.value, box, browser))

    def show(self, picture: Picture, quality: int) -> None:
        """A picture behind everything else on its canvas; one that it has not got yet is dropped for it."""
        if self._splats is not None:
            self._splats.remove()
            self._splats = None
        self.handle.scene.set_background_image(picture.image, format="jpeg", jpeg_quality=quality)
        if self._legend.content != picture.legend:
            self._legend.content = picture.legend

    def give(self, rows: dict[str, np.ndarray]) -> None:
        """Gaussians that it draws itself."""
        if self._splats is None:
            self.handle.scene.set_background_image(self.page.backdrop, format="png")
        self._splats = self.handle.scene.add_gaussian_splats("/splats", **rows)
        self._legend.content = f"{len(rows['centers']):,} Gaussians drawn here, the lowest SH band alone"

    def tell(self, title: str, text: str) -> None:
        """A message."""
        self.handle.add_notification(title, text, auto_close_seconds=8)

    def photo(self, view: View) -> None:
        """Show a photograph in the panel."""
        self._photo.image = thumbnail(view, PHOTO)
        self._photo.label, self._photo.visible = view.name, True

    def take_off(self) -> int:
        """A flight begins, and ends any other.  Returns: its number."""
        self.show_hidden()
        with self._lock:
            self.flights += 1
            return self.flights

    def hide(self, name: str, position: np.ndarray, size: float) -> None:
        """Take the frustum in which it stands out of its sight, until it moves away."""
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
        """Called in the server's own thread: so in the order of the moves."""
        if self._by.value != BROWSER:
            self.ask()
        hidden = self._hidden
        if hidden is not None and np.linalg.norm(camera.position - hidden[1]) > AWAY * hidden[2]:
            self.show_hidden()

    def _panel(self) -> None:
        """Its own part of the panel."""
        import viser

        gui, folders, live = self.handle.gui, self.page.folders, self.page.live
        self._mode = gui.add_dropdown("Mode", tuple(live.modes), initial_value="colour", order=3)
        self._legend = gui.add_markdown("", order=4)
        self._by = gui.add_dropdown("Drawn by", (HERE, BROWSER), initial_value=HERE, order=5)
        shot = gui.add_button("Snapshot", icon=viser.Icon.CAMERA, order=6)
        with folders["Cameras"]:
            shown = gui.add_checkbox("Show", True)
            blank = np.zeros((2, 2, 3), np.uint8)
            self._photo = gui.add_image(blank, format="jpeg", jpeg_quality=85, visible=False)
        low, high = (end.astype(np.float64) for end in self.page.room())
        span = float(np.max(high - low)) or 1.0
        digits = math.ceil(2 - math.log10(span))
        middle, sides = np.round((low + high) / 2, digits), np.round(high - low, digits)
        with folders["Crop"]:
            self._crop = gui.add_checkbox("On", False)
            self._middle = gui.add_vector3("Middle", tuple(middle), step=span / 200)
            self._sides = gui.add_vector3("Sides", tuple(sides), min=(0.0,) * 3, step=span / 200)
        self._frame = self.handle.scene.add_box(
            "/crop", color=(255, 255, 255), dimensions=(1.0, 1.0, 1.0), wireframe=True, visible=False
        )
        self._mode.on_update(lambda _: self.ask())
        self._by.on_update(lambda _: self.ask())
        for part in (self._crop, self._middle, self._sides):
            part.on_update(lambda _: self._cropped())
        shot.on_click(lambda _: live.controls.shoot(self.id))
        shown.on_update(lambda _: self._see_cameras(shown.value))

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        middle, half = np.array(self._middle.value), np.array(self._sides.value) / 2
        return middle - half, middle + half

    def _cropped(self) -> None:
        low, high = self._box()
        self._frame.visible = self._crop.value
        self._frame.position, self._frame.dimensions = (low + high) / 2, tuple(np.maximum(high - low, 1e-6))
        self.ask()

    def _see_cameras(self, shown: bool) -> None:
        """All frusta, or none, for this client alone."""
        if self._curtain is not None:
            self._curtain.remove()
            self._curtain = None
        if not shown:
            self._curtain = self.handle.scene.add_frame("/cameras", show_axes=False, visible=False)

    _curtain: Any = None
