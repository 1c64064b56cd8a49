"""Plots as SVG text. Colours come from the style sheet of the page, so that they follow its theme.

A series is a small integer: 0 is the baseline. Its colour is the CSS class `s<number>`. Series differ in
marker and dashes too, so that no plot relies on colours alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

NUM_COLOURS = 8  # besides that of the baseline
MARKER_RADIUS = 4.5  # px
CHARACTER_WIDTH = 6.5  # mean width of a character of a label, px
INTERVAL_WIDTH = 200  # px
SHAPES = (
    "M-1,0A1,1 0 1,0 1,0A1,1 0 1,0 -1,0Z",  # circle
    "M-.9,-.9H.9V.9H-.9Z",  # square
    "M0,-1.2L1.1,.8H-1.1Z",  # triangle up
    "M0,-1.25L1.25,0L0,1.25L-1.25,0Z",  # diamond
    "M0,1.2L1.1,-.8H-1.1Z",  # triangle down
    "M-.4,-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",  # plus
    "M0,-1.2L1.14,-.37L.7,.97H-.7L-1.14,-.37Z",  # pentagon
    "M-1.3,-.8H1.3V.8H-1.3Z",  # bar
)
Box = tuple[float, float, float, float]  # left, top, right, bottom
DASHES = ("", "", "7 3", "2 2.5", "9 3 2 3")  # stroke-dasharray of a series


def element(name: str, *inside: str, **attributes: str | float | None) -> str:
    """Return an SVG element with the children `inside`.

    Attributes are escaped, numbers rounded to a tenth of a px, and attributes that are None left out. `css`
    is the attribute "class", and `_` in a name stands for a hyphen.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            said = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            words.append(f'{"class" if key == "css" else key.replace("_", "-")}="{escape(said)}"')
    return f"<{' '.join(words)}>{''.join(inside)}</{name}>" if inside else f"<{' '.join(words)}/>"


def text_element(text: str, x: float, y: float, anchor: str | None = None, css: str = "tick") -> str:
    """Return a text element."""
    return element("text", escape(text), css=css, x=float(x), y=float(y), text_anchor=anchor)


@dataclass
class Scale:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float  # position of `low`, px
    end: float  # position of `high`, px
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, px."""
        low, high, at = self._of(self.low), self._of(self.high), self._of(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return about `count` round values within the scale."""
        if self.log:
            found = [m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5)]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) >= 2:
                return found[:: math.ceil(len(found) / count)]
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]

    def _of(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


def fit_scale(
    values: Iterable[float], start: float, end: float, log: bool = False, pad: float = 0.07
) -> Scale:
    """Return a scale that contains all values, with a margin of the fraction `pad` at its ends."""
    found = list(values)
    low, high = min(found), max(found)
    if log and low > 0:
        room = (high / low) ** pad if high > low else 1.1
        return Scale(low / room, high * room, start, end, True)
    room = (high - low) * pad if high > low else abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room, start, end)


def format_tick(value: float) -> str:
    """Format a number for an axis, such as 60k, 1.5M or 0.02."""
    for unit, letter, least in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}".replace("-", "−")
    return f"{value:.5g}".replace("-", "−")


@dataclass
class Panel:
    """A plot: axes, and what is drawn on them."""

    name: str  # read aloud by a screen reader
    x: Scale
    y: Scale
    x_label: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)  # labels must not overlap these
    crossed: list[Box] = field(default_factory=list)  # labels avoid these where possible

    def point(self, series: int, x: float, y: float, tooltip: str, shape: int | None = None) -> None:
        """Draw a marker with a tooltip."""
        x, y = self.x(x), self.y(y)
        drawn = marker(series, x, y, series if shape is None else shape, tooltip)
        self.parts.append(drawn)
        self.taken.append((x - 6, y - 6, x + 6, y + 6))

    def bars(self, series: int, x: float, y: float, dx: float, dy: float) -> None:
        """Draw error bars of `dx` and `dy` to each side; 0 draws none."""
        at, up, cross = self.x(x), self.y(y), []
        if dx:
            left, right = self.x(x - dx), self.x(x + dx)
            self.crossed.append((left, up - 3, right, up + 3))
            cross.append(
                f"M{left:.1f},{up:.1f}H{right:.1f}M{left:.1f},{up - 3:.1f}v6M{right:.1f},{up - 3:.1f}v6"
            )
        if dy:
            top, low = self.y(y + dy), self.y(y - dy)
            self.crossed.append((at - 3, top, at + 3, low))
            cross.append(f"M{at:.1f},{top:.1f}V{low:.1f}M{at - 3:.1f},{top:.1f}h6M{at - 3:.1f},{low:.1f}h6")
        if cross:
            self.parts.append(element("path", css=f"bar {colour_class(series)}", d="".join(cross)))

    def line(self, series: int, at: Sequence[tuple[float, float]], name: str) -> None:
        """Draw a curve."""
        path = "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in at)
        title, dash = element("title", escape(name)), dash_pattern(series)
        self.parts.append(
            element("path", title, css=f"line {colour_class(series)}", d=path, stroke_dasharray=dash)
        )

    def band(self, series: int, at: Sequence[tuple[float, float, float]]) -> None:
        """Draw the area between two curves, from points (x, low, high)."""
        there = [f"{self.x(x):.1f},{self.y(low):.1f}" for x, low, _ in at]
        back = [f"{self.x(x):.1f},{self.y(high):.1f}" for x, _, high in reversed(at)]
        self.parts.append(
            element("path", css=f"band {colour_class(series)}", d=f"M{'L'.join(there + back)}Z")
        )

    def zero(self) -> None:
        """Draw the line y = 0."""
        self.parts.append(element("path", css="zero", d=f"M{self.x.start},{self.y(0):.1f}H{self.x.end}"))

    def label(self, series: int, x: float, y: float, text: str) -> None:
        """Draw a label beside a marker, if there is room for it."""
        wide, at, up = CHARACTER_WIDTH * len(text), self.x(x), self.y(y)
        right, left, centre = at + 8, at - 8 - wide, at - wide / 2
        sides = [(right, up), (left, up), (centre, up - 13), (centre, up + 13)]
        sides += [(place, up + step) for step in (-11, 11) for place in (right - 3, left + 3)]
        boxes = [(left, middle - 6, left + wide, middle + 6) for left, middle in sides]
        boxes = [b for b in boxes if self.x.start + 2 <= b[0] and b[2] <= self.x.end]
        boxes = [b for b in boxes if self.y.end <= b[1] and b[3] < self.y.start and _clear(b, self.taken)]
        if boxes:
            box = next((b for b in boxes if _clear(b, self.crossed)), boxes[0])
            self.taken.append(box)
            ends, css = box[0] < at - wide, f"name {colour_class(series)}"
            self.parts.append(
                text_element(text, box[2] if ends else box[0], box[1] + 10, "end" if ends else None, css)
            )

    def svg(self) -> str:
        """Return the plot as an SVG element."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        grid = []
        for value in self.y.ticks():
            at = self.y(value)
            grid += [element("path", css="grid", d=f"M{left},{at:.1f}H{right}")]
            grid += [text_element(format_tick(value), left - 6, at + 4, "end")]
        for value in self.x.ticks():
            at = self.x(value)
            grid += [element("path", css="grid", d=f"M{at:.1f},{top}V{bottom}")]
            grid += [text_element(format_tick(value), at, bottom + 15, "middle")]
        grid += [text_element(self.x_label, (left + right) / 2, self.height - 5, "middle", "axis")]
        box = f"0 0 {self.width} {self.height}"
        return element("svg", *grid, *self.parts, css="plot", viewBox=box, role="img", aria_label=self.name)


def _clear(box: Box, others: Sequence[Box]) -> bool:
    """Return whether a box overlaps none of `others`."""
    return all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in others)


def colour_class(series: int) -> str:
    """Return the CSS class with the colour of a series."""
    return "s0" if series == 0 else f"s{(series - 1) % NUM_COLOURS + 1}"


def dash_pattern(series: int) -> str | None:
    """Return the dashes of a series, or None for a solid line."""
    return DASHES[series % len(DASHES)] or None


def marker(series: int, x: float, y: float, shape: int, tooltip: str = "") -> str:
    """Return the marker of a series."""
    inside = [
        element("path", d=SHAPES[shape % len(SHAPES)]),
        *([element("title", escape(tooltip))] if tooltip else []),
    ]
    place = f"translate({x:.1f},{y:.1f}) scale({MARKER_RADIUS})"
    return element("g", *inside, css=f"mark {colour_class(series)}", transform=place)


def legend_key(series: int, shape: int | None = None, line: bool = False) -> str:
    """Return the symbol of a series in a legend."""
    wide = 30 if line else 16
    css = f"line {colour_class(series)}"
    stroke = (
        [element("path", css=css, d=f"M1,8H{wide - 1}", stroke_dasharray=dash_pattern(series))]
        if line
        else []
    )
    drawn = marker(series, wide / 2, 8, series if shape is None else shape)
    return element("svg", *stroke, drawn, css="key", viewBox=f"0 0 {wide} 16", width=wide, aria_hidden="true")


def interval_bar(low: float, middle: float, high: float, bound: float, kind: str, text: str) -> str:
    """Draw a difference and its interval on an axis from -`bound` to `bound`; an end beyond it is an arrow.

    kind: CSS class. text: read aloud by a screen reader.
    """
    at = Scale(-bound, bound, 6, INTERVAL_WIDTH - 6)
    left, centre, right = (min(max(at(value), 3.0), INTERVAL_WIDTH - 3.0) for value in (low, middle, high))
    path = f"M{left:.1f},13H{right:.1f}"
    path += "M8,8L2,13L8,18" if low < -bound else f"M{left:.1f},9v8"
    path += f"M{INTERVAL_WIDTH - 8},8l6,5l-6,5" if high > bound else f"M{right:.1f},9v8"
    drawn = [
        element("path", css="zero", d=f"M{INTERVAL_WIDTH / 2},0V26"),
        element("path", css="whisker", d=path),
    ]
    drawn += [element("circle", cx=centre, cy=13, r="4.5")] if abs(middle) <= bound else []
    return element(
        "svg", *drawn, css=f"interval {kind}", viewBox=f"0 0 {INTERVAL_WIDTH} 26", role="img", aria_label=text
    )


def interval_axis(bound: float) -> str:
    """Return the axis of `interval_bar`."""
    at = Scale(-bound, bound, 6, INTERVAL_WIDTH - 6)
    ticks = []
    for value in at.ticks(4):
        if abs(value) < bound * 0.93:
            ticks += [text_element(format_tick(value), at(value), 11, "middle")]
            ticks += [element("path", css="grid", d=f"M{at(value):.1f},14V18")]
    return element("svg", *ticks, css="ruler", viewBox=f"0 0 {INTERVAL_WIDTH} 18", aria_hidden="true")
