"""Folders of images: layouts, file formats, and unreadable files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.datamodules import ImageFolder
from zoo.datamodules.image_folder import choose_size
from zoo.errors import UserError
from zoo.pictures.decoding import decode_files, decode_image, prepare_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save_image(path: Path, color=RED, size=(8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def save_images(folder: Path, count: int, color=RED) -> None:
    for i in range(count):
        save_image(folder / f"{i:03}.png", color)


def decode(path: Path, size: int = 8, channels: int = 3, **options) -> np.ndarray:
    """Pixels, int (size, size, channels), decoded as by the data module."""
    ((x, indices, problems),) = decode_files([path], (size, size), channels, **options)
    assert (indices, problems) == ([0], {})
    return x[0].permute(1, 2, 0).int().numpy()


# --- layouts


def test_subfolders_are_classes_in_sorted_order(tmp_path):
    for name, color in {"zebra": RED, "ant": GREEN, "10": BLUE, "9": WHITE}.items():
        save_images(tmp_path / name, 5, color)
    data = ImageFolder(str(tmp_path), image_size=4)
    assert data.class_names == ("10", "9", "ant", "zebra")
    assert data.num_classes == 4
    assert data.input_shape == (3, 4, 4)
    data.setup()
    colors = torch.tensor([BLUE, WHITE, GREEN, RED]) / 127.5 - 1
    for split in ("train", "val", "test"):
        x, y = data.split(split)
        assert torch.equal(x, colors[y][:, :, None, None].expand(-1, 3, 4, 4))
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [16, 2, 2]


def test_a_flat_folder_is_one_class_with_the_name_of_the_folder(tmp_path):
    save_images(tmp_path / "holiday", 10)
    data = ImageFolder(str(tmp_path / "holiday"), test_size=3, val_size=2)
    assert data.num_classes == 1
    assert data.class_names == ("holiday",)
    data.setup()
    assert [len(data.split(name)[0]) for name in ("train", "val", "test")] == [5, 2, 3]
    assert data.split("test")[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("classes", [("cat", "dog"), ("",)])
def test_train_and_test_folders_are_the_splits(tmp_path, classes):
    for name in classes:
        save_images(tmp_path / "train" / name, 6, RED)
        save_images(tmp_path / "test" / name, 2, GREEN)
    save_images(tmp_path / "val" / "neither", 1)  # ignored
    data = ImageFolder(str(tmp_path))
    assert data.class_names == (classes if classes[0] else (tmp_path.name,))
    data.setup()
    assert len(data.load_split(train=True)[0]) == 6 * len(classes)
    assert (data.load_split(train=True)[0][:, 0] == 255).all()
    test = data.split("test")
    assert len(test[0]) == 2 * len(classes)
    assert (test[0][:, 1] == 1).all()


def test_a_held_out_test_split_is_disjoint_and_the_same_for_every_seed(tmp_path):
    for i in range(20):
        save_image(tmp_path / f"{i:02}.png", (i, 0, 0))
    splits = []
    for seed in (0, 1):
        data = ImageFolder(str(tmp_path), test_size=0.25, val_size=5, seed=seed)
        data.setup()
        splits.append(
            {
                name: {int((i + 1) * 127.5 + 0.5) for i in data.split(name)[0][:, 0, 0, 0]}
                for name in ("train", "val", "test")
            }
        )
    for split in splits:
        assert [len(part) for part in split.values()] == [10, 5, 5]
        assert set.union(*split.values()) == set(range(20))
    assert splits[0]["test"] == splits[1]["test"]
    assert splits[0]["val"] != splits[1]["val"]


def test_names_with_spaces_and_of_other_scripts_work(tmp_path):
    names = ["big cat", "кошка", "猫 (2)"]
    for name in names:
        save_images(tmp_path / "my images" / name, 3)
    save_image(tmp_path / "my images" / names[0] / "été 1.PNG")
    data = ImageFolder(str(tmp_path / "my images"), test_size=1, val_size=1)
    assert data.class_names == tuple(sorted(names))
    assert len(data.load_split(train=True)[0]) == 9


def test_hidden_files_and_folders_and_other_files_are_ignored(tmp_path):
    save_images(tmp_path / "cat", 4)
    save_image(tmp_path / "cat" / ".thumb.png")
    save_image(tmp_path / "cat" / ".thumbs" / "a.png")
    save_image(tmp_path / ".cache" / "a.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "model.h5").write_text("no image")
    (tmp_path / "list.csv").write_text("no image")
    data = ImageFolder(str(tmp_path), test_size=1, val_size=1)
    assert data.class_names == ("cat",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.load_split(train=True)[0]) + len(data.load_split(train=False)[0]) == 4


@pytest.fixture
def alphabets(tmp_path) -> Path:
    """Folders as of Omniglot: an alphabet, a character, images; 4 of each character."""
    for number, name in enumerate(("Greek/alpha", "Greek/beta", "Latin/a", "Latin/deep/er/b")):
        save_images(tmp_path / name, 4, (60 * number, 0, 0))
    return tmp_path


def test_nested_folders_belong_to_the_class_of_the_first_level(alphabets):
    data = ImageFolder(str(alphabets), test_size=1)
    assert data.class_names == ("Greek", "Latin")
    x, y = data.load_split(train=True)
    assert y.bincount().tolist() in ([8, 7], [7, 8])
    assert torch.equal(y, (x[:, 0, 0, 0] >= 120).long()), "shades 0 and 60 are Greek, 120 and 180 Latin"


def test_nested_folders_are_classes_by_their_paths(alphabets):
    data = ImageFolder(str(alphabets), classes="path", test_size=1)
    assert data.class_names == ("Greek/alpha", "Greek/beta", "Latin/a", "Latin/deep/er/b")
    x, y = data.load_split(train=True)
    assert torch.equal(x[:, 0, 0, 0].long(), 60 * y)
    for split in ("train", "test"):
        for name in data.class_names:
            save_images(alphabets / "both" / split / name, 3)
    split = ImageFolder(str(alphabets / "both"), classes="path")
    assert split.class_names == data.class_names
    split.setup("test")
    assert split.split("test")[1].tolist() == [label for label in range(4) for _ in range(3)]


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    save_images(tmp_path / "elsewhere", 3)
    save_images(tmp_path / "root" / "cat", 3)
    (tmp_path / "root" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "again").symlink_to(tmp_path / "root")
    data = ImageFolder(str(tmp_path / "root"), test_size=1)
    assert len(data.load_split(train=True)[0]) == 5


# --- sizes


@pytest.mark.parametrize(
    ("side", "size"),
    [(3, 8), (8, 8), (11, 8), (16, 16), (28, 28), (30, 28), (33, 32), (47, 40), (105, 64), (4000, 64)],
)
def test_the_size_is_chosen_by_the_shorter_side(side, size):
    assert choose_size([(side, side)]) == choose_size([(3 * side, side)]) == choose_size([(side, side + 5)]) == size


def test_the_size_is_chosen_by_the_median_and_can_be_given(tmp_path):
    for number, side in enumerate((16, 17, 18, 200, 300)):
        save_image(tmp_path / f"{number}.png", size=(side, side + 4))
    (tmp_path / "bad.png").write_bytes(b"bad")
    assert ImageFolder(str(tmp_path)).input_shape == (3, 16, 16)
    assert ImageFolder(str(tmp_path), image_size=5, channels=1).input_shape == (1, 5, 5)


def test_icons_are_not_enlarged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    data = ImageFolder(str(tmp_path), test_size=1, val_size=1)
    data.setup()
    seen = torch.cat([data.split(name)[0] for name in ("train", "val", "test")])
    assert {image.tobytes() for image in pixels} == {
        image.tobytes() for image in seen.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    }


def test_one_line_says_what_is_found_and_what_is_done_with_it(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("zoo.datamodules.image_folder.rank_zero_info", lines.append)
    for number in range(12):
        save_image(tmp_path / f"{number % 2}" / f"{number}.png", size=(20, 30))
    data = ImageFolder(str(tmp_path), fit="pad", background="black", channels=1)
    data.setup("fit")
    data.setup("test")
    assert lines == [
        "ImageFolder: 12 images of 20x30 pixels in 2 classes (classes: first); black borders (fit: pad) to 20x20 "
        "pixels (image_size), grey (channels: 1), black below transparency (background)"
    ]
    save_image(tmp_path / "0" / "large.png", size=(50, 40))
    assert "13 images with shorter sides of 20 to 40 pixels in 2 classes" in ImageFolder(str(tmp_path)).describe()


def test_preprocessing_is_known_before_setup_and_makes_the_same_pixels(tmp_path):
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "0.png")
    save_images(tmp_path, 9)
    data = ImageFolder(str(tmp_path), image_size=12, fit="pad", background="#102030", test_size=1)
    values = data.preprocessing
    assert values == {
        "size": [12, 12], "channels": 3, "fit": "pad", "background": [16, 32, 48], "range": [-1.0, 1.0]
    }  # fmt: skip
    with Image.open(tmp_path / "0.png") as image:
        pixels = prepare_image(image, values["size"], values["channels"], values["fit"], tuple(values["background"]))
    x, _ = data.load_split(train=True)
    assert (x == torch.from_numpy(pixels).permute(2, 0, 1)).flatten(1).all(1).any()
    assert (pixels == (16, 32, 48)).all()


# --- order


def test_many_files_are_decoded_in_the_order_of_their_names(tmp_path):
    for i in range(200):
        save_image(tmp_path / f"{i:03}.png", (i, 0, 0), size=(2, 2) if i % 3 else (300, 200))
    x, _ = ImageFolder(str(tmp_path), image_size=2, test_size=1).load_split(train=True)
    shades = x[:, 0, 0, 0].int()
    assert len(x) == 199
    assert (shades.diff() > 0).all()


# --- kinds of files


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "bmp", "webp", "tif", "tga", "ppm", "gif"])
def test_image_formats_are_read(tmp_path, ending):
    pixels = decode(save_image(tmp_path / f"a.{ending}", (200, 100, 50)))
    assert np.abs(pixels - (200, 100, 50)).max() <= 6  # within the error of lossy formats


def test_a_file_with_the_wrong_ending_is_read(tmp_path):
    image = save_image(tmp_path / "a.png", BLUE)
    assert (decode(image.rename(tmp_path / "a.jpg")) == BLUE).all()


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_images_are_cropped_to_the_centered_square(tmp_path, size):
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (10, 0, 20, 10) if size[0] == 30 else (0, 10, 10, 20))
    image.save(tmp_path / "a.png")
    for side, edge in ((5, 1), (10, 0), (40, 8)):  # the filter reaches over the edge, as in resizing before cropping
        pixels = decode(tmp_path / "a.png", side)
        assert (pixels[edge : side - edge, edge : side - edge] == GREEN).all()
        assert (pixels[..., 1] > 127).all()


def test_pad_keeps_the_whole_image_and_stretch_its_content(tmp_path):
    image = Image.new("RGB", (40, 20), RED)
    image.paste(GREEN, (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    padded = decode(tmp_path / "a.png", 40, fit="pad", background=BLUE)
    assert (padded[:10] == BLUE).all() and (padded[30:] == BLUE).all()
    assert (padded[10:30, :16] == RED).all() and (padded[10:30, 24:] == GREEN).all()
    stretched = decode(tmp_path / "a.png", 40, fit="stretch")
    assert (stretched[:, :16] == RED).all() and (stretched[:, 24:] == GREEN).all()
    grey = decode(tmp_path / "a.png", 40, channels=1, fit="pad", background=GREEN)
    assert (grey[:10] == 150).all(), "the luma of green"


def test_downscaling_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255  # thinner than a pixel of the result: an even grey, not black or white
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert np.abs(decode(tmp_path / "a.png", 8) - 127.5).max() < 16


@pytest.mark.parametrize("block", [4, 40])
def test_a_large_jpeg_decodes_like_its_png(tmp_path, block):
    """JPEG is decoded at a reduced size, but not below the size of the result."""
    shades = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)  # one to a pixel of the result
    image = Image.fromarray(shades.repeat(block, axis=0).repeat(block, axis=1))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decode(tmp_path / "a.png", 16) - decode(tmp_path / "a.jpg", 16)).max() <= 8


def test_an_image_of_the_right_size_is_not_changed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), pixels)


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (decode(tmp_path / "a.gif") == RED).all()


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_shades(tmp_path, ending):
    Image.fromarray(np.full((8, 8), 100 * 257, dtype=np.uint16)).save(tmp_path / f"a.{ending}")
    assert (decode(tmp_path / f"a.{ending}") == 100).all()
    assert (decode(tmp_path / f"a.{ending}", channels=1) == 100).all()


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, ending):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a.{ending}")
    assert np.abs(decode(tmp_path / f"a.{ending}") - RED).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_are_white(tmp_path, mode):
    """The left half is transparent black, the right half opaque black."""
    image, options = Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    if mode == "P":
        pixels = np.zeros((8, 8), dtype=np.uint8)
        pixels[:, 4:] = 1
        image = Image.fromarray(pixels)
        image.putpalette([9, 9, 9, 0, 0, 0])
        options = {"transparency": 0}
    elif mode in ("RGB", "L"):  # one color is transparent
        image = Image.new(mode, (8, 8), "red" if mode == "RGB" else 7)
        image.paste(0, (4, 0, 8, 8))
        options = {"transparency": RED if mode == "RGB" else 7}
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", **options)
    for channels in (1, 3):
        pixels = decode(tmp_path / "a.png", channels=channels)
        assert (pixels[:, :4] == 255).all()
        assert (pixels[:, 4:] == 0).all()


def test_the_color_below_transparency_can_be_chosen(tmp_path):
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", background=(1, 2, 3)) == (1, 2, 3)).all()


def test_half_transparent_pixels_are_blended_with_white(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.abs(decode(tmp_path / "a.png") - (255, 127, 127)).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_other_modes_become_color_or_grey(tmp_path, mode):
    image = (
        Image.fromarray(np.full((8, 8), 65535, np.uint16))
        if mode == "I;16"
        else Image.new("RGB", (8, 8), WHITE).convert(mode)
    )
    image.save(tmp_path / "a.tif")
    assert (decode(tmp_path / "a.tif", channels=1) == 255).all()
    assert (decode(tmp_path / "a.tif") == 255).all()


def test_grey_has_the_weights_of_luma(tmp_path):
    pixels = decode(save_image(tmp_path / "a.png", GREEN), channels=1)
    assert pixels.shape == (8, 8, 1)
    assert (pixels == 150).all()


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (7, 7)), (6, (0, 7)), (8, (7, 0))])
def test_exif_rotation_is_applied(tmp_path, orientation, corner):
    image = Image.new("RGB", (64, 64))
    image.paste(WHITE, (0, 0, 16, 16))  # top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    pixels = decode(tmp_path / "a.jpg")
    shown = {c: pixels[c].mean() > 127 for c in [(0, 0), (0, 7), (7, 0), (7, 7)]}
    assert [c for c, white in shown.items() if white] == [corner]


# --- what cannot be read


def jpeg_bytes(size=(64, 64)) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "jpeg")
    return buffer.getvalue()


def damage(path: Path) -> Path:
    """Writes a file that cannot be read, damaged as its name says."""
    if path.stem == "truncated":
        path.write_bytes(jpeg_bytes()[:2000])
    elif path.stem == "cut":
        save_image(path, size=(64, 64))
        path.write_bytes(path.read_bytes()[:-30])
    elif path.stem == "empty":
        path.write_bytes(b"")
    elif path.stem == "text":
        path.write_text("<html>404</html>")
    elif path.stem == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    elif path.stem == "floats":
        Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(path)
    elif path.stem == "wide":
        Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(path)
    elif path.stem == "dangling":
        path.symlink_to(path.parent / "nowhere")
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "truncated"),
        ("cut.png", ""),
        ("empty.png", "not an image"),
        ("text.jpg", "not an image"),
        ("postscript.jpg", "not an image"),
        ("floats.tif", "floats"),
        ("wide.tif", "more than 16 bits"),
    ],
)
def test_unreadable_files_are_skipped_and_named(tmp_path, name, reason):
    save_images(tmp_path / "images", 5)
    damage(tmp_path / "images" / name)
    save_images(tmp_path / "test", 1)
    (tmp_path / "images").rename(tmp_path / "train")
    data = ImageFolder(str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        x, y = data.load_split(train=True)
    assert len(x) == len(y) == 5
    assert (x[:, 0] == 255).all()
    assert (x[:, 1:] == 0).all()
    (warning,) = caught
    message = str(warning.message)
    assert "1 of 6 images cannot be read" in message
    assert str(tmp_path / "train" / name) in message
    assert reason in message
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_paths_are_those_of_the_samples_without_unreadable_files(tmp_path, cache):
    for i in range(30):
        save_image(tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png", (i, 0, 0))
    for i in (0, 7, 16, 20):
        (tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png").write_bytes(b"bad")
    for _ in range(2):  # a cache on disk is built, and opened
        data = ImageFolder(str(tmp_path / "images"), test_size=0.3, cache=cache, cache_dir=str(tmp_path / "caches"))
        data.setup()
        for split in ("train", "val", "test"):
            red = data.dataset(split).first(30)[0][:, 0, 0, 0].tolist()
            assert [int(path.stem) for path in data.paths(split)] == red
        assert sum(len(data.paths(split)) for split in ("train", "val", "test")) == 26


def test_many_unreadable_files_are_one_warning_with_the_first_and_the_number(tmp_path):
    save_images(tmp_path / "b class", 4, GREEN)
    save_images(tmp_path / "a class", 4, RED)
    for i in range(90):
        (tmp_path / "a class" / f"bad{i:02}.png").write_bytes(b"bad")
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        out = ImageFolder(str(tmp_path), test_size=1).load_split(train=True)
    (warning,) = caught
    assert "of 97 images cannot be read" in str(warning.message)
    assert "bad00.png" in str(warning.message)
    assert "bad02.png" in str(warning.message)
    assert "bad04.png" not in str(warning.message)
    assert " more" in str(warning.message)
    assert torch.equal(out[0][:, 1] == 255, (out[1] == 1)[:, None, None].expand(-1, 8, 8))  # labels stay with images


@pytest.mark.parametrize("limit", [50, 20])  # 64 pixels: Pillow warns above the limit, refuses above twice the limit
def test_decompression_bombs_are_skipped(tmp_path, monkeypatch, limit):
    save_images(tmp_path, 4)
    for name in ("000.png", "001.png", "002.png"):
        save_image(tmp_path / name, size=(4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    data = ImageFolder(str(tmp_path), test_size=1)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        x, _ = data.load_split(train=True)
    assert len(x) == 2
    assert f"003.png (more than {limit} pixels)" in str(caught[0].message)
    assert len(caught) == 1


def test_decoding_a_damaged_image_raises(tmp_path):
    with pytest.raises(OSError, match="truncated"):
        decode_image(damage(tmp_path / "truncated.jpg"), (8, 8), 3)


# --- folders that cannot be used


def assert_refused(path: Path, *parts: str, **options) -> None:
    """Asserts that building or setup fails with one line that contains the path and the parts."""
    with pytest.raises(UserError) as caught:
        ImageFolder(str(path), **options).setup()
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist; point root"):
        ImageFolder(str(tmp_path / "no where"))
    assert_refused(tmp_path / "no where")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    assert_refused(save_image(tmp_path / "a.png"), "is a file, not a folder")


def test_an_empty_folder_is_named_with_the_layouts(tmp_path):
    assert_refused(tmp_path, "has no images", "<class>/")
    (tmp_path / "notes.txt").write_text("no image")
    assert_refused(tmp_path, "has no images", "<class>/")


def test_a_class_without_images_is_named(tmp_path):
    save_images(tmp_path / "cat", 5)
    (tmp_path / "dog").mkdir()
    assert_refused(tmp_path, str(tmp_path / "dog"), "has no images")


def test_a_train_folder_without_a_test_folder_is_refused(tmp_path):
    save_images(tmp_path / "train" / "cat", 5)
    assert_refused(tmp_path, "has train, but not both train and test", "train/<class>/ and test/<class>/")
    save_images(tmp_path / "bus", 5)
    assert ImageFolder(str(tmp_path)).class_names == ("bus", "train"), "beside another class, train is one too"


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_without_readable_images_is_named(tmp_path, split):
    for folder in ("train", "test"):
        save_images(tmp_path / folder / "cat", 5)
        save_images(tmp_path / folder / "dog", 5)
    for path in (tmp_path / split / "dog").iterdir():
        path.write_bytes(b"")
    assert_refused(tmp_path, str(tmp_path / split / "dog"), "no readable image")


def test_a_folder_without_readable_images_is_named(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    assert_refused(tmp_path, "none of the 9 images", "not an image")


def test_classes_that_differ_between_train_and_test_are_named(tmp_path):
    for name in ("train/cat", "train/dog", "test/cat", "test/hund"):
        save_images(tmp_path / name, 2)
    assert_refused(tmp_path, "dog, hund", str(tmp_path / "train"), str(tmp_path / "test"))


def test_images_beside_class_folders_are_refused(tmp_path):
    save_images(tmp_path / "cat", 2)
    save_image(tmp_path / "a.png")
    assert_refused(tmp_path, "both images and folders")


@pytest.mark.parametrize("test_size", [10, 0.001])
def test_test_size_that_leaves_a_split_empty_is_refused(tmp_path, test_size):
    save_images(tmp_path, 10)
    assert_refused(tmp_path, f"test_size {test_size} holds out", "of 10 images", test_size=test_size)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"channels": 2},
        {"test_size": 0},
        {"fit": "squeeze"},
        {"classes": "last"},
        {"background": "whit"},
    ],
)
def test_invalid_options_are_named(tmp_path, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is "):
        ImageFolder(str(tmp_path), **options)
