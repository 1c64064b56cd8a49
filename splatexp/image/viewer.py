"""A page that shows a .gsi file in the browser: the decoder renders the visible part at the size at which it
is shown.
"""

from __future__ import annotations

import errno
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from splatexp.image.codec import decode, gsi, symbols
from splatexp.image.files import one_line
from splatexp.io import image_file

PORT, TRIED = 8090, 100  # the first port that is tried, and the number of ports
SCALE_MIN, SCALE_MAX = 1 / 64, 256
SIDE_MAX = 4096  # px of what is drawn at once
PAGE = Path(__file__).with_name("viewer.html")


class GsiPage:
    """A file, and the image that it was made of where that is known.

    Raises: OSError, ValueError for files that cannot be read, and for images of different sizes.
    """

    def __init__(self, path: Path, original: Path | None = None):
        self.path, self.size = path, path.stat().st_size
        try:
            self.file = gsi.load(path.read_bytes())
        except gsi.GsiError as error:
            raise gsi.GsiError(f"{path}: {error}") from error
        self.original = None if original is None else image_file.read_image(original)
        header = self.file.header
        if self.original and (self.original.width, self.original.height) != (header.width, header.height):
            got = f"{self.original.width} x {self.original.height}"
            raise ValueError(f"original: expected {header.width} x {header.height} px like {path}, got {got}")

    def about(self) -> dict[str, Any]:
        """Return the facts that the page shows."""
        header = self.file.header
        return {
            "name": self.path.name,
            "width": header.width,
            "height": header.height,
            "clear": header.channels in (2, 4),
            "bytes": self.size,
            "bpp": 8 * self.size / (header.width * header.height),
            "layers": [len(layer) for layer in self.file.layers],
            "truncation": self.file.truncation,
            "original": self.original is not None,
        }

    def render_png(self, scale: float, crop: tuple[int, int, int, int], layers: int) -> bytes:
        """Return a part of the image, `scale` times as large, as an 8-bit PNG; crop: its x, y, width and
        height.

        Raises: ValueError for a part that lies outside.
        """
        if not SCALE_MIN <= scale <= SCALE_MAX:
            raise ValueError(f"scale: expected a number in [{SCALE_MIN}, {SCALE_MAX}], got {scale}")
        if max(crop[2:]) > SIDE_MAX:
            raise ValueError(f"crop: expected at most {SIDE_MAX} px a side, got {crop[2]} x {crop[3]}")
        return _png(decode.decode(self.file, layers=layers, scale=scale, crop=crop))

    def original_png(self) -> bytes:
        """Return the original image as an 8-bit PNG.

        Raises: ValueError where it is not known.
        """
        if self.original is None:
            raise ValueError("original: expected an image, got none; say original=<image>")
        return _png(image_file.to_integers(self.original.pixels, 8))

    @cached_property
    def outlines(self) -> bytes:
        """Return the Gaussians as float32 rows of 6: x, y, axes (one standard deviation, px), angle,
        layer.
        """
        rows = []
        for number, layer in enumerate(self.file.layers):
            found = symbols.gaussians(self.file.header, layer)
            a, b, c = found.conics.astype(np.float64).T
            middle, half = (a + c) / 2, np.hypot((a - c) / 2, b)
            long, short = 1 / np.sqrt(np.maximum(middle - half, 1e-12)), 1 / np.sqrt(middle + half)
            angle = np.arctan2(middle - half - a, b + 1e-30)  # the direction in which it falls off least
            angle = np.where(np.abs(b) < 1e-12, np.where(a <= c, 0.0, np.pi / 2), angle)
            rows.append(np.stack([*found.means.T, long, short, angle, np.full(len(a), number)], -1))
        return np.concatenate([*rows, np.zeros((0, 6))]).astype("<f4").tobytes()


@contextmanager
def serve(path: Path, host: str = "127.0.0.1", port: int = PORT, original: str = "") -> Iterator[str]:
    """Serve the page of a file inside the context; yield its address, at the first free port from `port` on.

    Raises: OSError, ValueError, with one line.
    """
    shown = GsiPage(path, Path(original) if original else None)
    server = _server(host, port)
    server.shown = shown  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait() -> None:
    """Wait until the process is interrupted."""
    threading.Event().wait()


def _server(host: str, port: int) -> ThreadingHTTPServer:
    if not 0 <= port <= 65535:
        raise ValueError(f"port: expected a number in [0, 65535], got {port}")
    for candidate in range(port, min(port + TRIED, 65536)):
        try:
            return ThreadingHTTPServer((host, candidate), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"host: cannot listen on {host}:{candidate}: {error.strerror}") from error
    raise ValueError(f"port: expected a free port in [{port}, {port + TRIED - 1}], found none")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests; a request that cannot be answered gets status 400 and one line."""

    def do_GET(self) -> None:
        shown: GsiPage = self.server.shown  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        asked = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            if parts.path == "/":
                self._answer("text/html; charset=utf-8", PAGE.read_bytes())
            elif parts.path == "/about":
                self._answer("application/json", json.dumps(shown.about()).encode())
            elif parts.path == "/render":
                x, y, width, height = (int(asked[key]) for key in ("x", "y", "width", "height"))
                scale, layers = float(asked["scale"]), int(asked["layers"])
                self._answer("image/png", shown.render_png(scale, (x, y, width, height), layers))
            elif parts.path == "/original":
                self._answer("image/png", shown.original_png())
            elif parts.path == "/outlines":
                self._answer("application/octet-stream", shown.outlines)
            else:
                self._answer("text/plain", b"no such page\n", 404)
        except (KeyError, ValueError) as error:
            self._answer("text/plain", f"{one_line(error)}\n".encode(), 400)
        except (BrokenPipeError, ConnectionResetError):  # the page has asked for a new image already
            self.close_connection = True

    def _answer(self, kind: str, data: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _png(values: np.ndarray) -> bytes:
    """Return integers [H,W,D] as an 8-bit PNG that is written quickly rather than small."""
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    channels = values.shape[2]
    image = Image.fromarray(values[..., 0] if channels == 1 else values, image_file.MODES[channels])
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()
