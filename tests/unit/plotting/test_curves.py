"""Curves of metrics."""

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
