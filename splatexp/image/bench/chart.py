"""A plot of rate-distortion curves as a PNG, drawn with Pillow: a logarithmic axis of rates, a curve and a
mark per codec.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

FINE = 3  # supersampling: the plot is drawn FINE times as large, then reduced
WIDTH, HEIGHT = 620, 440  # px of a panel
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 40, 48
PAPER, INK, SOFT, RULE = (255, 255, 255), (28, 30, 34), (98, 102, 110), (226, 228, 232)
COLOURS = {"gsi": (200, 60, 20), "jpeg": (90, 96, 106), "webp": (24, 118, 190), "avif": (20, 136, 96)}
MARKS = {"gsi": "circle", "jpeg": "square", "webp": "triangle", "avif": "diamond"}
TICKS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20)
Point = tuple[float, float]


@dataclass
class Panel:
    """One plot: curves by codec, each with a name and points (bpp, value)."""

    title: str
    curves: dict[str, tuple[str, Sequence[Point]]] = field(default_factory=dict)


def draw_chart(panels: Sequence[Panel], caption: str = "") -> bytes:
    """Return the panels side by side as the bytes of a PNG; panels without points are left out.

    Raises: ValueError where no panel has any points.
    """
    panels = [panel for panel in panels if any(points for _, points in panel.curves.values())]
    if not panels:
        raise ValueError("panels: expected some points, got none")
    size = (WIDTH * len(panels) * FINE, (HEIGHT + 26 * bool(caption)) * FINE)
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    for number, panel in enumerate(panels):
        _Plot(pen, panel, number * WIDTH).draw()
    if caption:
        pen.text((LEFT * FINE, (HEIGHT + 2) * FINE), caption, SOFT, _font(12))
    image = image.resize((size[0] * 2 // FINE, size[1] * 2 // FINE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


class _Plot:
    def __init__(self, pen: ImageDraw.ImageDraw, panel: Panel, left: float):
        self.pen, self.panel = pen, panel
        points = [point for _, curve in panel.curves.values() for point in curve]
        rates, values = [point[0] for point in points], [point[1] for point in points]
        self.low, self.high = math.log(min(rates) / 1.12), math.log(max(rates) * 1.12)
        room = max((max(values) - min(values)) * 0.06, 1e-3)
        self.least, self.most = min(values) - room, max(values) + room
        self.box = (left + LEFT, TOP, left + WIDTH - RIGHT, HEIGHT - BOTTOM)

    def draw(self) -> None:
        left, top, right, bottom = self.box
        self._text(self.panel.title, left, top - 26, INK, 15)
        for rate in TICKS:
            if self.low <= math.log(rate) <= self.high:
                x = self._x(rate)
                self._line([(x, top), (x, bottom)], RULE, 1)
                self._text(f"{rate:g}", x, bottom + 7, SOFT, 12, "ma")
        for value in self._steps():
            y = self._y(value)
            self._line([(left, y), (right, y)], RULE, 1)
            self._text(f"{value:g}", left - 7, y, SOFT, 12, "rm")
        self._line([(left, top), (left, bottom), (right, bottom)], SOFT, 1)
        self._text("bits per pixel (logarithmic)", (left + right) / 2, bottom + 24, SOFT, 12, "ma")
        shown = [(codec, *curve) for codec, curve in self.panel.curves.items() if curve[1]]
        for codec, _, points in shown:
            self._curve(codec, sorted(points))
        y = bottom - 18 * len(shown)  # lower right, where no curve goes
        box = (right - 138, y - 12, right - 6, bottom - 6)
        self.pen.rectangle([edge * FINE for edge in box], PAPER)
        for codec, name, _ in shown:
            colour, x = COLOURS.get(codec, INK), right - 128
            self._line([(x, y), (x + 28, y)], colour, 2.6 if codec == "gsi" else 1.6)
            self._mark(MARKS.get(codec, "circle"), x + 14, y, colour, 4)
            self._text(name, x + 38, y, INK, 13, "lm")
            y += 18

    def _curve(self, codec: str, points: Sequence[Point]) -> None:
        colour, at = COLOURS.get(codec, INK), [(self._x(rate), self._y(value)) for rate, value in points]
        self._line(at, colour, 2.6 if codec == "gsi" else 1.6)
        for x, y in at:
            self._mark(MARKS.get(codec, "circle"), x, y, colour, 4.6 if codec == "gsi" else 3.4)

    def _mark(self, kind: str, x: float, y: float, colour: tuple[int, int, int], r: float) -> None:
        shapes = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
            "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        }
        if kind == "circle":
            self.pen.ellipse([(x - r) * FINE, (y - r) * FINE, (x + r) * FINE, (y + r) * FINE], colour)
        else:
            self.pen.polygon([((x + r * dx) * FINE, (y + r * dy) * FINE) for dx, dy in shapes[kind]], colour)

    def _steps(self) -> list[float]:
        rough = (self.most - self.least) / 7
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.least / step), math.floor(self.most / step)
        return [round(number * step, 10) for number in range(first, last + 1)]

    def _x(self, rate: float) -> float:
        share = (math.log(rate) - self.low) / (self.high - self.low)
        return self.box[0] + share * (self.box[2] - self.box[0])

    def _y(self, value: float) -> float:
        share = (value - self.least) / (self.most - self.least)
        return self.box[3] + share * (self.box[1] - self.box[3])

    def _line(self, at: Sequence[Point], colour: tuple[int, int, int], width: float) -> None:
        scaled = [(x * FINE, y * FINE) for x, y in at]
        self.pen.line(scaled, colour, round(width * FINE), joint="curve")

    def _text(
        self, text: str, x: float, y: float, colour: tuple[int, int, int], size: int, anchor: str = "la"
    ) -> None:
        self.pen.text((x * FINE, y * FINE), text, colour, _font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * FINE)
