"""Line charts as the numbers of an SVG drawing: axes, ticks and paths; the template draws them.

Drawn as SVG and not as a picture: text can be read aloud, searched and printed in any size, colors follow the page, and
a chart takes a few kilobytes and no matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from zoo.plotting.figures import PALETTE

WIDTH, HEIGHT = 440, 260  # units of the drawing, about a CSS pixel each
LEFT, RIGHT, TOP, BOTTOM = 60, 22, 12, 40  # margins
MARKED = 30  # points of a curve up to which each is marked
LOGARITHMIC = 100  # ratio of the largest to the least value from which the axis is logarithmic
SHAPES = 4  # of markers and of dashes
KEY = (15, 6)  # middle of a line in the legend


@dataclass(frozen=True)
class Curve:
    """A curve of a chart.

    Attributes:
        label: name in the legend.
        points: (step, value), finite.
        style: number of its color, dashes and marker.
        floor: whether it is a constant to compare with, such as the value of real data, drawn as a line across.
        best: index of the point to be marked as the best one; None for none.
    """

    label: str
    points: Sequence[tuple[int, float]]
    style: int = 0
    floor: bool = False
    best: int | None = None


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its place, and its number as text."""

    place: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve as it is drawn.

    Attributes:
        label: name in the legend.
        path: SVG path of the line; empty for a single point.
        marks: SVG path of the markers; empty if there are too many points.
        color: number of the color, in `PALETTE`; -1 for a floor, which is gray.
        dash: number of the pattern of dashes; 0 for none.
        key: SVG path of the marker in the legend; empty if there are none.
        best: place of the best point; None for none.
    """

    label: str
    path: str
    marks: str
    color: int
    dash: int
    key: str = ""
    best: tuple[float, float] | None = None


@dataclass(frozen=True)
class Chart:
    """A chart as it is drawn; places are in units of the drawing.

    Attributes:
        title: quantity on the vertical axis.
        summary: what a reader who does not see the chart should know.
        lines: curves.
        across: ticks of the horizontal axis, optimizer steps.
        up: ticks of the vertical axis.
        logarithmic: whether the vertical axis is logarithmic.
        width: width of the drawing.
        height: height of the drawing.
        frame: left, top, right and bottom of the area in which the curves are.
    """

    title: str
    summary: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]
    logarithmic: bool
    width: int = WIDTH
    height: int = HEIGHT
    frame: tuple[int, int, int, int] = field(default=(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))


def draw_chart(title: str, curves: Sequence[Curve], steps: int) -> Chart:
    """Lays out a chart.

    Args:
        title: quantity.
        curves: at least one curve that is no floor, each with at least one point.
        steps: end of the horizontal axis, which begins at 0; the same in all charts of a page.
    """
    values = [value for curve in curves for _, value in curve.points]
    logarithmic = min(values) > 0 and max(values) / min(values) > LOGARITHMIC
    low, high = _padded(min(values), max(values), logarithmic)
    last = max(1, steps)
    inverse = math.log10 if logarithmic else float

    def x(step: float) -> float:
        return LEFT + step / last * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        share = (inverse(value) - inverse(low)) / (inverse(high) - inverse(low))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    lines = []
    for curve in curves:
        if curve.floor:
            level = y(curve.points[-1][1])
            path = f"M{LEFT} {level:.1f}H{WIDTH - RIGHT}"
            lines.append(Line(f"{curve.label} {curve.points[-1][1]:.4g}", path, "", -1, 1))
            continue
        places = [(x(step), y(value)) for step, value in curve.points]
        marks = "".join(_marker(*place, curve.style) for place in places) if len(places) <= MARKED else ""
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places) if len(places) > 1 else ""
        best = None if curve.best is None else places[curve.best]
        key = _marker(*KEY, curve.style) if marks else ""
        lines.append(Line(curve.label, path, marks, curve.style % len(PALETTE), _dash(curve.style), key, best))
    up = _decades(low, high) if logarithmic else _ticks(low, high, 5)
    return Chart(
        title,
        _summary(title, curves),
        lines,
        [Tick(x(value), _whole(value)) for value in _ticks(0, last, 5) if value == int(value)],
        [Tick(y(value), _number(value)) for value in up],
        logarithmic,
    )


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """Ends of the vertical axis, a little beyond the values."""
    if logarithmic:
        margin = (high / low) ** 0.04
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, at most about `most`, between two ends."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between two ends, at most six of them."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0**power for power in powers[:: -(-len(powers) // 6)]]


def _number(value: float) -> str:
    if abs(value) < 1e-12:  # a multiple of a step that is not exactly zero
        return "0"
    if 1000 <= abs(value) < 1e6:
        return _whole(value)
    return f"{value:.4g}".replace("e+0", "e").replace("e-0", "e-")


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _dash(style: int) -> int:
    """Pattern of dashes: the first curves differ in it, and so do two of one color."""
    return (style + style // len(PALETTE)) % SHAPES


def _marker(x: float, y: float, style: int) -> str:
    """SVG path of a marker: circle, square, triangle, diamond."""
    shapes = (
        f"M{x - 3:.1f} {y:.1f}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
        f"M{x - 2.7:.1f} {y - 2.7:.1f}h5.4v5.4h-5.4z",
        f"M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z",
        f"M{x:.1f} {y - 3.8:.1f}l3.8 3.8l-3.8 3.8l-3.8 -3.8z",
    )
    return shapes[_dash(style)]


def _summary(title: str, curves: Sequence[Curve]) -> str:
    """What the curves say, in words."""
    said = []
    for curve in curves:
        (first, start), (last, end) = curve.points[0], curve.points[-1]
        if curve.floor:
            said.append(f"{curve.label} {end:.4g}")
        elif first == last:
            said.append(f"{curve.label} {end:.4g} at step {_whole(last)}")
        else:
            said.append(f"{curve.label} from {start:.4g} at step {_whole(first)} to {end:.4g} at step {_whole(last)}")
    return f"{title} over optimizer steps: {'; '.join(said)}."
