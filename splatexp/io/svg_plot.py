"""Plots as SVG text: colours and dashes come from the page's style sheet, so that they follow its theme.

A series is a small whole number: 0 is the baseline. Its colour is the class `s<number>`; its shape and dashes
differ from its neighbours' too, so that no plot is read by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = 8  # beside the baseline's
RADIUS = 4.5
LETTER = 6.5  # px of a letter of a label
INTERVAL = 200  # px that the bar of a difference is wide
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
DASHES = ("", "", "7 3", "2 2.5", "9 3 2 3")


def tag(name: str, *inside: str, **attributes: str | float | None) -> str:
    """An element: `inside` as it is, attributes escaped, numbers to a tenth of a px; those of None left out.

    `css` is its class, and `_` in a name is a hyphen.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            said = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            words.append(f'{"class" if key == "css" else key.replace("_", "-")}="{escape(said)}"')
    return f"<{' '.join(words)}>{''.join(inside)}</{name}>" if inside else f"<{' '.join(words)}/>"


def write(text: str, x: float, y: float, anchor: str | None = None, css: str = "tick") -> str:
    """Text in a plot."""
    return tag("text", escape(text), css=css, x=float(x), y=float(y), text_anchor=anchor)


@dataclass
class Scale:
    """Values onto pixels, linear or logarithmic."""

    low: float
    high: float
    start: float  # px of `low`
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = self._of(self.low), self._of(self.high), self._of(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within it."""
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


def spanning(
    values: Iterable[float], start: float, end: float, log: bool = False, pad: float = 0.07
) -> Scale:
    """A scale that holds all values, with some room at its ends."""
    found = list(values)
    low, high = min(found), max(found)
    if log and low > 0:
        room = (high / low) ** pad if high > low else 1.1
        return Scale(low / room, high * room, start, end, True)
    room = (high - low) * pad if high > low else abs(high) * 0.05 or 1.0
    return Scale(low - room, high + room, start, end)


def compact(value: float) -> str:
    """A number for an axis: 60k, 1.5M, 0.02."""
    for unit, letter, least in ((1e9, "G", 1e9), (1e6, "M", 1e6), (1e3, "k", 1e4)):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}".replace("-", "−")
    return f"{value:.5g}".replace("-", "−")


@dataclass
class Panel:
    """One plot: axes, and what is drawn on them."""

    name: str  # said aloud instead of the picture
    x: Scale
    y: Scale
    x_label: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)  # no label may touch these
    crossed: list[Box] = field(default_factory=list)  # nor these, if it can be helped

    def point(self, series: int, x: float, y: float, told: str, shape: int | None = None) -> None:
        """A mark; `told` is what it says when the pointer rests on it."""
        x, y = self.x(x), self.y(y)
        drawn = mark(series, x, y, series if shape is None else shape, told)
        self.parts.append(drawn)
        self.taken.append((x - 6, y - 6, x + 6, y + 6))

    def bars(self, series: int, x: float, y: float, dx: float, dy: float) -> None:
        """Error bars, `dx` and `dy` to each side; none where they are 0."""
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
            self.parts.append(tag("path", css=f"bar {colour(series)}", d="".join(cross)))

    def line(self, series: int, at: Sequence[tuple[float, float]], name: str) -> None:
        """A curve."""
        path = "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in at)
        title, dash = tag("title", escape(name)), dashes(series)
        self.parts.append(tag("path", title, css=f"line {colour(series)}", d=path, stroke_dasharray=dash))

    def band(self, series: int, at: Sequence[tuple[float, float, float]]) -> None:
        """The area between two curves: x, low, high."""
        there = [f"{self.x(x):.1f},{self.y(low):.1f}" for x, low, _ in at]
        back = [f"{self.x(x):.1f},{self.y(high):.1f}" for x, _, high in reversed(at)]
        self.parts.append(tag("path", css=f"band {colour(series)}", d=f"M{'L'.join(there + back)}Z"))

    def zero(self) -> None:
        """The line at which nothing differs."""
        self.parts.append(tag("path", css="zero", d=f"M{self.x.start},{self.y(0):.1f}H{self.x.end}"))

    def label(self, series: int, x: float, y: float, text: str) -> None:
        """A name beside a mark, where there is room; none where there is not."""
        wide, at, up = LETTER * len(text), self.x(x), self.y(y)
        right, left, centre = at + 8, at - 8 - wide, at - wide / 2
        sides = [(right, up), (left, up), (centre, up - 13), (centre, up + 13)]
        sides += [(place, up + step) for step in (-11, 11) for place in (right - 3, left + 3)]
        boxes = [(left, middle - 6, left + wide, middle + 6) for left, middle in sides]
        boxes = [b for b in boxes if self.x.start + 2 <= b[0] and b[2] <= self.x.end]
        boxes = [b for b in boxes if self.y.end <= b[1] and b[3] < self.y.start and _clear(b, self.taken)]
        if boxes:
            box = next((b for b in boxes if _clear(b, self.crossed)), boxes[0])
            self.taken.append(box)
            ends, css = box[0] < at - wide, f"name {colour(series)}"
            self.parts.append(
                write(text, box[2] if ends else box[0], box[1] + 10, "end" if ends else None, css)
            )

    def svg(self) -> str:
        """The whole plot."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        grid = []
        for value in self.y.ticks():
            at = self.y(value)
            grid += [tag("path", css="grid", d=f"M{left},{at:.1f}H{right}")]
            grid += [write(compact(value), left - 6, at + 4, "end")]
        for value in self.x.ticks():
            at = self.x(value)
            grid += [tag("path", css="grid", d=f"M{at:.1f},{top}V{bottom}")]
            grid += [write(compact(value), at, bottom + 15, "middle")]
        grid += [write(self.x_label, (left + right) / 2, self.height - 5, "middle", "axis")]
        box = f"0 0 {self.width} {self.height}"
        return tag("svg", *grid, *self.parts, css="plot", viewBox=box, role="img", aria_label=self.name)


def _clear(box: Box, others: Sequence[Box]) -> bool:
    """Whether it touches none of some boxes."""
    return all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in others)


def colour(series: int) -> str:
    """The class that gives a series its colour."""
    return "s0" if series == 0 else f"s{(series - 1) % COLOURS + 1}"


def dashes(series: int) -> str | None:
    """How its line is broken; None: not at all."""
    return DASHES[series % len(DASHES)] or None


def mark(series: int, x: float, y: float, shape: int, told: str = "") -> str:
    """The mark of a series."""
    inside = [tag("path", d=SHAPES[shape % len(SHAPES)]), *([tag("title", escape(told))] if told else [])]
    place = f"translate({x:.1f},{y:.1f}) scale({RADIUS})"
    return tag("g", *inside, css=f"mark {colour(series)}", transform=place)


def key(series: int, shape: int | None = None, line: bool = False) -> str:
    """What stands for a series in a legend."""
    wide = 30 if line else 16
    css = f"line {colour(series)}"
    stroke = [tag("path", css=css, d=f"M1,8H{wide - 1}", stroke_dasharray=dashes(series))] if line else []
    drawn = mark(series, wide / 2, 8, series if shape is None else shape)
    return tag("svg", *stroke, drawn, css="key", viewBox=f"0 0 {wide} 16", width=wide, aria_hidden="true")


def interval(low: float, middle: float, high: float, bound: float, kind: str, text: str) -> str:
    """A difference and its interval around 0, on an axis of -`bound` to `bound`; beyond it an arrow."""
    at = Scale(-bound, bound, 6, INTERVAL - 6)
    left, centre, right = (min(max(at(value), 3.0), INTERVAL - 3.0) for value in (low, middle, high))
    path = f"M{left:.1f},13H{right:.1f}"
    path += "M8,8L2,13L8,18" if low < -bound else f"M{left:.1f},9v8"
    path += f"M{INTERVAL - 8},8l6,5l-6,5" if high > bound else f"M{right:.1f},9v8"
    drawn = [tag("path", css="zero", d=f"M{INTERVAL / 2},0V26"), tag("path", css="whisker", d=path)]
    drawn += [tag("circle", cx=centre, cy=13, r="4.5")] if abs(middle) <= bound else []
    return tag(
        "svg", *drawn, css=f"interval {kind}", viewBox=f"0 0 {INTERVAL} 26", role="img", aria_label=text
    )


def ruler(bound: float) -> str:
    """The axis of `interval`."""
    at = Scale(-bound, bound, 6, INTERVAL - 6)
    ticks = []
    for value in at.ticks(4):
        if abs(value) < bound * 0.93:
            ticks += [write(compact(value), at(value), 11, "middle")]
            ticks += [tag("path", css="grid", d=f"M{at(value):.1f},14V18")]
    return tag("svg", *ticks, css="ruler", viewBox=f"0 0 {INTERVAL} 18", aria_hidden="true")
