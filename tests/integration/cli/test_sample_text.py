"""The command `sample` with a language model, and SampleLogger's texts."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from tests.helpers.command import TINY, fails, read_rows
from zoo import TransformerLM
from zoo.callbacks import SampleLogger
from zoo.checkpoints.reading import load_model
from zoo.cli.main import main
from zoo.datamodules import Text
from zoo.hub.texts import decode_stream
from zoo.tokenizers import ByteTokenizer

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def test_text_is_shown_and_nothing_is_written_without_out(checkpoint, capsys):
    main(["sample", "--ckpt_path", checkpoint("text"), "--prompt", "Wör", "--max_new_tokens", "40"])
    shown = capsys.readouterr().out
    text, said = shown.rsplit("\n", 2)[0], shown.rstrip("\n").rsplit("\n", 1)[1]
    assert text.startswith("Wör")
    assert len(text) == 3 + 40
    assert said == "1 text of TransformerLM"
    assert not list(Path().iterdir())


def test_the_file_holds_what_was_shown_and_the_seed_repeats_it(checkpoint, capsys):
    shown, options = [], ["--n", "2", "--max_new_tokens", "30"]
    for name, seed in (("a.txt", "5"), ("b.txt", "5"), ("c.txt", "6")):
        main(["sample", "--ckpt_path", checkpoint("text"), *options, "--seed", seed, "--out", name])
        shown.append(capsys.readouterr().out)
    a, b, c = (Path(f"{name}.txt").read_text(encoding="utf-8") for name in "abc")
    assert a == b != c
    assert shown[0].startswith(a)
    assert shown[0].endswith("2 texts of TransformerLM in a.txt\n")
    first, second = a.rstrip("\n").split("\n" + "-" * 40 + "\n")
    assert first != second, "each text has random numbers of its own"


def test_temperature_0_is_greedy_decoding(checkpoint, capsys):
    main(["sample", "--ckpt_path", checkpoint("text"), "--prompt", "W", "--max_new_tokens", "12", "--temperature", "0"])
    model = load_model(checkpoint("text"))
    tokens = model.tokenizer.encode("W")[None]
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(2)], dim=1)
    assert capsys.readouterr().out.startswith(model.decode(tokens)[0])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("text", "--out text.png", "--out text.png is not a file for text; let it end in .txt"),
        ("text", "--prompt 7", "the character '7' is not in the text"),
        ("text", "--top_k 0", "top_k is 0; it must be at least 1"),
        ("text", "--temperature -1", "temperature is -1.0; it must be 0 or more"),
        ("text", "--labels [1]", "--labels has no effect on a TransformerLM: leave it out"),
        ("text", "--interpolate 5", "--interpolate has no effect on a TransformerLM"),
        ("text", "--solver euler", "--solver has no effect on a TransformerLM"),
        ("text", "--n 0", "--n is 0; it must be at least 1"),
        ("gan", "--prompt a", "--prompt has no effect on a GAN: leave it out"),
        ("gan", "--out a.txt", "--out a.txt is for text; let it end in .png, .npz or .gif"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_nothing_is_written(checkpoint, kind, options, message, capsys):
    line = fails(capsys, "sample", "--ckpt_path", checkpoint(kind), *options.split())
    assert line.startswith(message)
    assert not list(Path().iterdir())


def test_an_existing_file_is_not_overwritten(checkpoint, capsys):
    Path("a.txt").write_text("mine")
    assert "a.txt exists already" in fails(
        capsys, "sample", "--ckpt_path", checkpoint("text"), "--out", "a.txt"
    )  # fmt: skip
    assert Path("a.txt").read_text() == "mine"


def test_a_character_of_several_tokens_is_shown_once_it_is_complete():
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode("aß🙂b").tolist()
    assert list(decode_stream(tokens, tokenizer.decode)) == ["a", "ß", "🙂", "b"]
    assert "".join(decode_stream([*tokens, 255, 255, 255, 255, 65], tokenizer.decode)).endswith("\ufffdA")
    assert list(decode_stream(tokens[:2], tokenizer.decode)) == ["a", "\ufffd"], (
        "an incomplete character is shown as such"
    )


def test_sample_logger_writes_text_to_disk_and_to_a_logger_that_takes_it(tmp_path):
    class Shelf(CSVLogger):
        rows: list = []

        def log_text(self, key, columns=None, data=None, step=None):
            self.rows.append((key, columns, data, step))

    (tmp_path / "text.txt").write_text("Wörter und Sätze.\n" * 50, encoding="utf-8")
    data = Text(str(tmp_path / "text.txt"), "characters", context_length=16)
    model = TransformerLM(data.input_shape, data.num_classes, data.tokenizer_description, layers=1, width=16, heads=2)
    logger = Shelf(tmp_path, name="", version="run")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callback = SampleLogger(n=3, every_n_steps=2)
    Trainer(accelerator="cpu", max_steps=4, limit_val_batches=0, logger=logger, callbacks=[callback], **quiet).fit(
        model, data
    )
    files = sorted((tmp_path / "run" / "samples").iterdir())
    assert [file.name for file in files] == ["step_0000000.txt", "step_0000002.txt", "step_0000004.txt"]
    assert [step for *_, step in logger.rows] == [0, 2, 4]
    key, columns, rows, _ = logger.rows[1]
    assert (key, columns) == ("samples", ["step", "text"])
    assert [row[0] for row in rows] == [2, 2, 2]
    assert files[1].read_text(encoding="utf-8") == ("\n" + "-" * 40 + "\n").join(row[1] for row in rows) + "\n"
    assert all(len(row[1]) == 256 for row in rows)


def test_the_recipe_runs_on_any_text_and_keeps_its_texts(tmp_path, monkeypatch, cheap_reports):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "my text.txt").write_text("some words, and then some more\n" * 200)
    main(["fit", "--config", "transformer.yaml", "--data.path=my text.txt", "--data.tokenizer=characters",
          "--model.layers=1", "--model.width=32", "--model.heads=2", *TINY, "--trainer.max_steps=4",
          "--trainer.val_check_interval=2"])  # fmt: skip
    folder = tmp_path / "runs" / "transformer" / "version_0"
    assert len(list((folder / "samples").glob("*.txt"))) == 2
    rows = read_rows(folder)
    assert {"val/loss", "val/perplexity", "val/bits_per_byte", "train/tokens_per_second"} <= set(rows[0])
    tables = list((folder / "wandb").glob("offline-run-*/files/media/table/*.json"))
    assert len(tables) == 2
