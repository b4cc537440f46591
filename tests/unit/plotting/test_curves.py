"""Curves of metrics."""

from matplotlib.layout_engine import ConstrainedLayoutEngine

from zoo.plotting.curves import plot_curves


def test_a_floor_is_in_the_panel_of_its_metric_and_one_point_is_enough():
    fd = {"val/fd": [(10, 5.0), (20, 3.0)]}
    one, with_floor, two = (
        plot_curves(metrics) for metrics in (fd, {**fd, "val/fd_floor": [(10, 1.0)]}, {**fd, "train/loss": [(1, 0.5)]})
    )
    assert one.shape == with_floor.shape
    assert (one != with_floor).any(), "the dashed line"
    assert two.shape[1] > 1.5 * one.shape[1], "a second panel"
    assert min(image.std() for image in (one, with_floor, two)) > 5


def test_margins_are_fixed_and_leave_room_for_the_numbers(monkeypatch):
    """Matplotlib's own layout takes as long as all the rest, in a figure that is drawn again and again."""
    monkeypatch.delattr(ConstrainedLayoutEngine, "execute")
    values = {"tiny": 1.234e-7, "large": 1.2345e5, "near": 1e-3, "negative": -1234.5}
    image = plot_curves({f"train/{name}": [(0, value), (100_000, 1.01 * value)] for name, value in values.items()})
    frame = (image[:3], image[-3:], image[:, :3], image[:, -3:])
    assert all((edge == 255).all() for edge in frame), "no text is cut off"
    assert (image != 255).any()
