"""The command predict --texts: a line for each text, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from tests.helpers.checkpoints import save_untrained
from tests.helpers.command import fails
from zoo.checkpoints.format import TrainingData
from zoo.cli.main import main
from zoo.datamodules import Sequences


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Checkpoint of an untrained model of up to four digits."""
    torch.manual_seed(0)
    data = Sequences(digits=4)
    model = zoo.Seq2Seq(data.input_shape, data.num_classes, data.output_length, layers=1, width=16, heads=2)
    model.trained_on = TrainingData(data.class_names)
    path = tmp_path_factory.mktemp("texts") / "best.ckpt"
    save_untrained(model, path)
    return path


def test_each_text_gets_a_line_with_its_answer(path, capsys):
    main(["predict", "--ckpt_path", str(path), "--texts", "31", "2026", "--device", "cpu"])
    texts = ["31", "2026"]
    expected = [f"{text} -> {answer}" for text, answer in zip(texts, zoo.load(path).predict(texts), strict=True)]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--texts", "12345"], "'12345' has 5 characters; this model takes 1 to 4"),
        (["--texts", "1-2"], "'1-2' has '-'; this model knows the characters 0123456789+"),
    ],
)
def test_mistakes_are_one_line(path, words, message, capsys):
    assert message in fails(capsys, "predict", "--ckpt_path", str(path), *words)


def test_another_model_and_no_model_are_refused(path, capsys):
    assert "holds a GAN, which does not map texts" in fails(capsys, "predict", "--model", "gan-digits", "--texts", "1")
    assert "--ckpt_path or --model must be given" in fails(capsys, "predict", "--texts", "1")


def test_the_command_sample_says_what_the_model_does_instead(path, capsys):
    assert "holds a Seq2Seq, which is not a generative model; it maps texts to texts: predict --texts" in fails(
        capsys, "sample", "--ckpt_path", str(path)
    )
