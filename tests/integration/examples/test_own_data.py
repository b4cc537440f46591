"""The example of a diffusion model of data of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.command import TINY


@pytest.fixture
def example(enter, monkeypatch):
    """The example with fewer images."""
    example = enter("own_data")
    import shapes

    draw_split = shapes.draw_split
    monkeypatch.setattr(shapes, "draw_split", lambda n, seed: draw_split(min(n, 40), seed))
    monkeypatch.setattr(shapes.Shapes.__init__, "__defaults__", (40, 20))  # train_size, batch_size
    return example


@pytest.mark.usefixtures("cheap_reports")
def test_without_reference_and_split_it_trains_with_one_line_on_what_is_left_out(example, caplog):
    script, comparable, _ = example.commands
    caplog.set_level("INFO")
    example.run(script, "--max_steps", "1")
    lines = [message for message in caplog.messages if "leaves out" in message]
    assert lines == [
        "Diffusion on Shapes leaves out the floor of val/fd and mean and deviation of the data from more than the "
        "first batch (no reference()), the comparison with the ideal denoiser and the search for copies of training "
        "data (no split())"
    ]
    assert len(list(Path("runs/own_data/version_0/samples").glob("step_*.png"))) == 2

    caplog.clear()
    example.run(comparable, "--max_steps", "1")
    assert not [message for message in caplog.messages if "leaves out" in message]
    header = Path("runs/own_data/version_1/metrics.csv").read_text().split("\n")[0].split(",")
    assert {"val/fd", "val/fd_floor", "val/excess", "val/near_copies"} <= set(header)


@pytest.mark.usefixtures("cheap_reports")
def test_the_command_line_takes_the_data_by_its_import_path(example):
    fit = example.commands[-1]
    example.run(
        fit,
        *TINY,
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--data.batch_size=20",
        "--model.network.widths=[8]",
    )
    checkpoint = torch.load("runs/diffusion/version_0/checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["input_shape"] == [1, 16, 16]
    assert checkpoint["hyper_parameters"]["num_classes"] == 3


@pytest.mark.parametrize(("corners", "area"), [(60, math.pi), (4, 2), (3, 3 * 3**0.5 / 4)])
def test_shapes_have_their_area(corners, area, example):
    from shapes import draw_shape

    drawn = np.asarray(draw_shape(corners, 8, 8, 6, 0.3)).sum() / 255
    assert drawn == pytest.approx(area * 6**2, rel=0.1)  # Pillow fills the pixels on the border


def test_splits_are_in_range_and_differ(example):
    from shapes import ComparableShapes

    data = ComparableShapes()
    data.setup("fit")
    x, y = data.split("train")
    assert x.shape == (40, 1, 16, 16) and x.min() == -1 and x.max() == 1
    assert set(y.tolist()) == {0, 1, 2} and y.dtype == torch.int64
    assert torch.equal(data.reference(5), x[:5])
    assert not torch.equal(data.split("val")[0], x)


@pytest.mark.slow
@pytest.mark.usefixtures("cheap_pictures")
def test_shapes_get_better(enter):
    example = enter("own_data")
    import train

    torch.manual_seed(0)

    assert example.commands[0] == "python train.py"
    first, last = (train.main(["--max_steps", str(steps)]).callback_metrics["val/fd"] for steps in (1, 100))
    assert last < first / 5, (first, last)
