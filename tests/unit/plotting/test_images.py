"""Pictures of samples: right pixels in the right places, and nothing overwritten."""

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import UserError
from zoo.plotting.curves import plot_curves
from zoo.plotting.images import image_grid, save_gif, save_npz, save_png, to_uint8
from zoo.plotting.points import plot_points


def test_bytes_cover_the_range():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(4, 1, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 128, 255, 255]


def test_grid_puts_each_image_in_its_cell():
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 1, 8, 8)
    picture = image_grid(images, columns=3, cell=16, gap=2)
    assert picture.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    centers = picture[[10, 28]][:, [10, 28, 46], 0]
    assert centers.ravel().tolist() == to_uint8(images)[:, 0, 0, 0].tolist()
    assert (picture[0] == 255).all(), "white between the images"


def test_grid_of_colour_images_keeps_the_colours():
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert image_grid(red)[10, 10].tolist() == [255, 0, 0]


def test_points_are_plotted_where_they_are():
    corner = torch.tensor([[-1.0, -1.0]])
    picture = plot_points(corner + torch.zeros(500, 2), torch.cat([corner, -corner])).astype(int)
    red = (picture[..., 0] - picture[..., 2]) > 80
    red[:120, 250:] = False  # the legend
    rows, columns = np.nonzero(red)
    assert len(rows) > 3
    assert (rows > 350).all() and (columns < 150).all(), "at the lower left"


def test_curves_draw_floors_and_survive_a_single_point():
    picture = plot_curves({"val/fd": [(10, 5.0), (20, 3.0)], "val/fd_floor": [(10, 1.0)], "train/loss": [(1, 0.5)]})
    assert picture.std() > 5


def test_nothing_is_overwritten(tmp_path):
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_text("mine")
    for save in (
        lambda: save_png(tmp_path / "a.png", picture),
        lambda: save_gif(tmp_path / "a.png", [picture]),
        lambda: save_npz(tmp_path / "a.png", torch.zeros(1, 1, 2, 2)),
    ):
        with pytest.raises(UserError, match=r"a\.png is there already"):
            save()
    assert (tmp_path / "a.png").read_text() == "mine"


def test_raw_samples_are_bytes_with_channels_last_and_labels(tmp_path):
    save_npz(tmp_path / "a.npz", torch.ones(3, 3, 4, 5), torch.tensor([1, 2, 3]))
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["arr_0"].shape == (3, 4, 5, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [1, 2, 3]


def test_film_has_all_its_frames(tmp_path):
    frames = [np.full((8, 8, 3), 40 * k, dtype=np.uint8) for k in range(5)]
    save_gif(tmp_path / "deep" / "film.gif", frames)
    film = Image.open(tmp_path / "deep" / "film.gif")
    assert film.n_frames == 5
    film.seek(3)
    assert abs(int(np.asarray(film.convert("RGB")).mean()) - 120) < 8
