"""Images as arrays and files."""

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.errors import UserError
from zoo.plotting.figures import new_figure
from zoo.plotting.images import image_grid, save_gif, save_npz, save_png, show_images, to_uint8


def test_bytes_cover_the_range_from_minus_1_to_1():
    x = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(4, 1, 1, 1)
    assert to_uint8(x).ravel().tolist() == [0, 128, 255, 255]


def test_each_image_is_in_its_cell_of_the_grid():
    images = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 1, 8, 8)
    image = image_grid(images, columns=3, cell=16, gap=2)
    assert image.shape == (2 * 18 + 2, 3 * 18 + 2, 3)
    centers = image[[10, 28]][:, [10, 28, 46], 0]
    assert centers.ravel().tolist() == to_uint8(images)[:, 0, 0, 0].tolist()
    assert (image[0] == 255).all(), "white between the images"


def test_the_grid_keeps_colors():
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert image_grid(red)[10, 10].tolist() == [255, 0, 0]


def test_existing_files_are_not_overwritten_unasked(tmp_path):
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_text("existing")
    for save in (
        lambda: save_png(tmp_path / "a.png", image),
        lambda: save_gif(tmp_path / "a.png", [image]),
        lambda: save_npz(tmp_path / "a.png", torch.zeros(1, 1, 2, 2)),
    ):
        with pytest.raises(UserError, match=r"a\.png exists already"):
            save()
    assert (tmp_path / "a.png").read_text() == "existing"
    save_png(tmp_path / "a.png", image, overwrite=True)
    assert (np.asarray(Image.open(tmp_path / "a.png")) == image).all()


def test_npz_of_images_is_bytes_with_channels_last_and_labels(tmp_path):
    save_npz(tmp_path / "a.npz", torch.ones(3, 3, 4, 5), torch.tensor([1, 2, 3]))
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["arr_0"].shape == (3, 4, 5, 3) and arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [1, 2, 3]


def test_npz_of_points_is_float32(tmp_path):
    save_npz(tmp_path / "a.npz", torch.tensor([[0.25, -3.0]], dtype=torch.float64))
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["arr_0"].dtype == np.float32 and arrays["arr_0"].tolist() == [[0.25, -3.0]]
    assert arrays.files == ["arr_0"], "there are no labels"


def test_an_animation_has_all_its_frames(tmp_path):
    frames = [np.full((8, 8, 3), 40 * k, dtype=np.uint8) for k in range(5)]
    save_gif(tmp_path / "deep" / "animation.gif", frames)
    animation = Image.open(tmp_path / "deep" / "animation.gif")
    assert animation.n_frames == 5
    animation.seek(3)
    assert abs(int(np.asarray(animation.convert("RGB")).mean()) - 120) < 8


def test_png_of_few_colors_keeps_rare_ones(tmp_path):
    image = np.full((200, 200, 3), 255, dtype=np.uint8)
    image[:, :, 0] = image[:, :, 1] = np.arange(200)[:, None]  # many hues of one color
    image[0, 0] = (204, 121, 167)
    save_png(tmp_path / "all.png", image)
    save_png(tmp_path / "few.png", image, colors=32)
    with Image.open(tmp_path / "few.png") as few:
        found = np.asarray(few.convert("RGB")).astype(int)
    assert np.abs(found[0, 0] - (204, 121, 167)).max() < 16
    assert len(np.unique(found.reshape(-1, 3), axis=0)) <= 32


def test_names_are_at_the_middle_of_their_images():
    _, (ax,) = new_figure(1)
    black, white = -torch.ones(3, 1, 8, 8), torch.ones(3, 1, 8, 8)
    show_images(ax, [black, white], ["first", "second"], ["black", "white"], "a title")
    (image,) = ax.get_images()
    pixels = image.get_array()
    assert pixels.shape == (2 * 34 + 2, 3 * 34 + 2, 3), "each pixel is enlarged to 4x4"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["first", "second"]
    middle = int(ax.get_xticks()[0])
    assert [pixels[int(y), middle].tolist() for y in ax.get_yticks()] == [[0, 0, 0], [255, 255, 255]]
    assert ax.get_title() == "a title"
