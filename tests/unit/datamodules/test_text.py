"""Text as data: windows, splits, tokenizers and errors."""

import tracemalloc

import pytest
import torch

from zoo.datamodules import Text, text, text_files
from zoo.datamodules.text import TokenWindows
from zoo.datamodules.text_files import read_text
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


# --- the cache on disk

STORY = "Ein Käfer — 甲虫 🐞 — läuft über das Wörterbuch.\n\n  Dann ruht er.\nEr zählt: 1, 2, 3!\n"


@pytest.fixture
def library(tmp_path) -> str:
    """A folder of two texts, with characters of one to four bytes, line breaks of Windows, and a picture."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "a.txt").write_bytes((STORY * 30).replace("\n", "\r\n").encode())
    (folder / "b.txt").write_text(STORY[::-1] * 20, encoding="utf-8")
    (folder / "c.png").write_bytes(b"\x89PNG\xff\xfe")
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*not text")
@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_memory_and_disk_have_the_tokens_of_the_whole_text(library, tmp_path, monkeypatch, tokenizer, piece):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers", reason="byte-pair encoding is optional")
    monkeypatch.setattr(text_files, "PIECE", piece)
    monkeypatch.setattr(text_files.safe_pieces, "__defaults__", (piece,))
    options = {"tokenizer": tokenizer, "vocab_size": 300, "test_size": 0.2, "context_length": 8}
    whole = (STORY * 30) + "\n" + (STORY[::-1] * 20)
    for cache in ("memory", "disk", "disk"):
        data = Text(library, cache=cache, cache_dir=str(tmp_path / "caches"), **options)
        parts = [data.split(name) for name in ("train", "val", "test")]
        texts = [data.tokenizer.decode(part.tolist()) for part in parts]
        assert "".join(texts) == whole
        for part, words in zip(parts, texts, strict=True):
            assert torch.equal(part, data.tokenizer.encode(words)), "as if it were encoded at once"
        expected = [0.7, 0.1, 0.2]
        assert [len(text) / len(whole) for text in texts] == pytest.approx(expected, abs=0.03)
        x, y = next(iter(data.val_dataloader()))
        assert x.dtype == torch.int64
        assert torch.equal(x[0], parts[1][:8]) and torch.equal(y[0], parts[1][1:9])
    assert len(list((tmp_path / "caches").glob("Text-*"))) == 1


def test_no_character_is_cut_between_two_splits(tmp_path):
    (tmp_path / "a.txt").write_text("甲" * 100, encoding="utf-8")
    for share in (0.1, 0.105, 0.11, 0.115):
        data = Text(str(tmp_path / "a.txt"), val_size=share, test_size=share)
        lengths = [len(data.split(name)) for name in ("train", "val", "test")]
        assert all(length % 3 == 0 for length in lengths)
        assert sum(lengths) == 300


def test_a_text_is_cut_for_byte_pairs_only_where_a_line_break_is_a_word():
    pieces = text_files.safe_pieces("a\n\nb\nc \nd\n e\nf", 1)
    assert list(pieces) == ["a\n\nb\n", "c \nd\n e\n", "f"]


@pytest.mark.filterwarnings("ignore:.*not text")
def test_an_existing_cache_is_used_until_the_text_changes(library, tmp_path, monkeypatch):
    def open_text(**options) -> Text:
        return Text(library, cache="disk", cache_dir=str(tmp_path / "caches"), **options)

    open_text()
    with monkeypatch.context() as patched:
        patched.setattr(text_files, "_encode", None)
        open_text()
        open_text(val_size=0.3, test_size=0.1)  # other cuts of the same bytes
        with pytest.warns(UserWarning, match="1 of 3 files are not text and are skipped, the first is .*c.png"):
            open_text()
    (tmp_path / "library" / "d.txt").write_text("more")
    assert open_text().tokenizer.decode(open_text(test_size=0.01).split("test")[-5:].tolist()) == "\nmore"


def test_only_a_large_text_goes_to_disk_by_itself(book, tmp_path, monkeypatch):
    for bound, caches in ((1000, 0), (999, 1)):
        monkeypatch.setattr(text, "LARGE_TEXT", bound)
        Text(book, cache_dir=str(tmp_path / "caches"))
        assert len(list(tmp_path.glob("caches/Text-*"))) == caches


@pytest.mark.parametrize("tokenizer", ["bytes", "characters"])
def test_a_text_is_never_in_memory_as_a_whole(tmp_path, tokenizer):
    line = "The text has a hundred bytes a line, so that its size is easily told; it is read in pieces of 1 MB.\n"
    with (tmp_path / "large.txt").open("w") as file:
        file.writelines([line * 1000] * 250)  # 25 MB
    pieces_only = 20 * 10**6 if tokenizer == "characters" else 6 * 10**6  # a list of a piece's tokens is larger
    tracemalloc.start()
    data = Text(str(tmp_path / "large.txt"), tokenizer, cache="disk", cache_dir=str(tmp_path / "caches"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < pieces_only
    assert data.tokenizer.decode(next(iter(data.val_dataloader()))[0][0].tolist()) in 2 * line


@pytest.mark.parametrize(("size", "name"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")])
def test_tokens_take_as_few_bytes_as_possible(size, name):
    assert text_files.smallest_dtype(size) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.txt"}, "nowhere.txt does not exist; point path to a text file"),
        ({"tokenizer": "words"}, "tokenizer is 'words'; choose one of bytes, characters, bpe"),
        ({"context_length": 0}, "context_length is 0; it must be at least 1"),
        ({"val_size": 1.0}, "val_size 1.0 and test_size 0.0 must be fractions that leave some text"),
        ({"cache": "tape"}, "cache is 'tape'; choose one of auto, memory, disk"),
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


def test_windows_start_anywhere_in_training_and_at_multiples_of_their_length_in_validation(tmp_path):
    (tmp_path / "text.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 900))), encoding="utf-8")
    data = Text(str(tmp_path / "text.txt"), "characters", context_length=8, batch_size=100, val_size=0.1)
    ((x, _),) = data.train_dataloader()  # each character is its own place in the text
    assert (x[:, 0] % 8 != 0).any()
    assert [x[0, 0].item() for x, _ in [data.val_dataloader().dataset[k] for k in range(3)]] == [810, 818, 826]
