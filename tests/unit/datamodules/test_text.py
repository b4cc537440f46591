"""Text as data: windows, splits, tokenizers and errors."""

import pytest
import torch

from zoo.datamodules import Text
from zoo.datamodules.text import TokenWindows, read_text
from zoo.errors import UserError


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "a book.txt"
    path.write_text("".join(chr(97 + index % 26) for index in range(1000)), encoding="utf-8")
    return str(path)


def test_targets_are_the_next_tokens(book):
    data = Text(book, "characters", context_length=16, batch_size=4)
    assert (data.input_shape, data.num_classes) == ((16,), 26)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        x, y = next(iter(loader))
        assert x.dtype == y.dtype == torch.int64
        assert x.shape[1] == y.shape[1] == 16
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(y, (x + 1) % 26), "each letter is followed by the next one"


def test_splits_are_consecutive_parts_of_the_text(book):
    data = Text(book, test_size=0.05, val_size=0.1)
    data.setup()
    parts = [data.split(name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [850, 100, 50]
    assert data.tokenizer.decode(torch.cat(parts).tolist()) == read_text(book)


def test_windows_cover_the_text_once_and_are_shifted_in_every_epoch_with_jitter():
    tokens = torch.arange(1001)
    still, moving = TokenWindows(tokens, 10, jitter=False), TokenWindows(tokens, 10, jitter=True)
    assert len(still) == 100
    x, _ = still.__getitems__(list(range(100)))
    assert torch.equal(x.flatten(), torch.arange(1000))
    starts = torch.stack([moving.__getitems__(list(range(100)))[0][:, 0] for _ in range(200)])
    offsets = starts - torch.arange(100) * 10
    assert offsets[:, :99].min() == 0
    assert offsets[:, :99].max() == 9
    assert starts.max() == 990, "the last window has a next token"
    assert offsets[:, :99].float().mean().item() == pytest.approx(4.5, abs=0.2)


def test_files_of_a_folder_are_read_in_the_order_of_names_and_the_first_unreadable_one_is_named(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt").write_text("third: ß")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.warns(UserWarning, match=r"1 of 4 files are not text .*picture.png \(not UTF-8\)"):
        assert read_text(str(tmp_path)) == "first\nsecond\nthird: ß"


def test_the_default_text_is_the_standard_library():
    text = read_text(None)
    assert len(text) > 1_000_000
    assert "class ArgumentParser(" in text
    assert Text().num_classes == 256


def test_byte_pairs_are_learned_from_the_training_text_only(tmp_path):
    pytest.importorskip("tokenizers", reason="byte-pair encoding is optional")
    (tmp_path / "a.txt").write_text("low lower lowest " * 90 + "zzyzx " * 30)
    data = Text(str(tmp_path / "a.txt"), "bpe", vocab_size=280, val_size=0.105)
    pieces = [data.tokenizer.decode([token]) for token in range(data.num_classes)]
    assert "low" in pieces or " low" in pieces
    assert not any("zz" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.txt"}, "nowhere.txt does not exist; point path to a text file"),
        ({"tokenizer": "words"}, "tokenizer is 'words'; choose one of bytes, characters, bpe"),
        ({"context_length": 0}, "context_length is 0; it must be at least 1"),
        ({"val_size": 1.0}, "val_size 1.0 and test_size 0.0 must be fractions that leave some text"),
        ({"test_size": 0.95}, "val_size 0.1 and test_size 0.95 must be fractions"),
    ],
)
def test_invalid_options_are_named(book, options, message):
    with pytest.raises(UserError, match=message):
        Text(**({"path": book} | options))


def test_too_little_text_is_named_with_the_fix(book, tmp_path):
    for stage, loader, options, message in (
        ("fit", "val_dataloader", {"context_length": 100}, "the val split has 100 tokens, not enough for one window"),
        (
            "fit",
            "train_dataloader",
            {"context_length": 64, "batch_size": 20},
            "batch_size 20 is larger than the 14 windows",
        ),
        ("test", "test_dataloader", {}, "there is no test split, because test_size is 0"),
    ):
        data = Text(book, **options)
        data.setup(stage)
        with pytest.raises(UserError, match=message):
            getattr(data, loader)()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "none").mkdir()
    for name in ("empty.txt", "bad.txt", "none"):
        with pytest.raises(UserError, match="there is no text to read"):
            Text(str(tmp_path / name))
