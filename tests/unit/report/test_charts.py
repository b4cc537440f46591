"""Charts: places of points and ticks, and what tells curves apart without color."""

from __future__ import annotations

import re

import pytest

from zoo.plotting.figures import PALETTE
from zoo.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, draw_chart


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_points_lie_where_their_steps_and_values_are():
    chart = draw_chart("loss", [Curve("loss", [(0, 0.0), (50, 10.0), (100, 5.0)])], steps=100)
    (x0, y0), (x1, y1), (x2, y2) = places(chart.lines[0].path)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT)
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.1), "linear: 5 is between 0 and 10"
    assert TOP < y1 < y0 < HEIGHT - BOTTOM, "a larger value is higher, and there is a margin"


def test_values_over_two_decades_have_a_logarithmic_axis_and_others_have_not():
    chart = draw_chart("fd", [Curve("fd", [(0, 1000.0), (1, 10.0), (2, 1.0)])], steps=2)
    (_, top), (_, middle), (_, low) = places(chart.lines[0].path)
    assert chart.logarithmic
    assert (low - middle) / (low - top) == pytest.approx(1 / 3, abs=0.01)
    assert [tick.text for tick in chart.up] == ["1", "10", "100", "1,000"]
    assert not draw_chart("fd", [Curve("fd", [(0, 1000.0), (1, -1.0)])], steps=1).logarithmic
    assert not draw_chart("fd", [Curve("fd", [(0, 99.0), (1, 1.0)])], steps=1).logarithmic


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0", "0.5", "1"]),
        (2e-4, 9e-4, ["0.0002", "0.0004", "0.0006", "0.0008"]),
        (-1.39, -1.2, ["-1.35", "-1.3", "-1.25", "-1.2"]),
        (12000.0, 55000.0, ["20,000", "30,000", "40,000", "50,000"]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low, high, texts):
    chart = draw_chart("x", [Curve("x", [(0, low), (1, high)])], steps=1)
    assert set(texts) <= {tick.text for tick in chart.up}
    assert all(TOP <= tick.place <= HEIGHT - BOTTOM for tick in chart.up)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30, 1e30])
def test_a_curve_of_one_point_or_of_one_value_is_drawn(value):
    chart = draw_chart("x", [Curve("x", [(5, value)])], steps=5)
    assert chart.lines[0].path == "" and chart.lines[0].marks
    assert "nan" not in draw_chart("x", [Curve("x", [(0, value), (9, value)])], steps=9).lines[0].path


def test_curves_of_one_color_differ_in_dashes_and_markers():
    points = [(0, 1.0), (1, 2.0)]
    lines = draw_chart("x", [Curve(f"run {k}", points, k) for k in range(2 * len(PALETTE))], steps=1).lines
    assert len({(line.color, line.dash) for line in lines}) == len(lines)
    assert len({line.dash for line in lines[:4]}) == 4, "also those of different colors"
    assert len({re.sub(r"[\d.]+ [\d.]+", "", line.key, count=1) for line in lines[:4]}) == 4, "four shapes of markers"


def test_a_floor_goes_across_and_is_named_with_its_value():
    chart = draw_chart("fd", [Curve("val/fd", [(0, 4.0), (9, 2.0)]), Curve("floor", [(9, 1.25)], floor=True)], 9)
    floor = chart.lines[1]
    assert floor.label == "floor 1.25"
    assert floor.path.startswith(f"M{LEFT} ") and floor.path.endswith(f"H{WIDTH - RIGHT}")
    assert chart.summary == "fd over optimizer steps: val/fd from 4 at step 0 to 2 at step 9; floor 1.25."
