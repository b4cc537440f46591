"""The command `play`: its mistakes, each one line before anything is loaded or served, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
from types import SimpleNamespace

import pytest

from tests.helpers.command import fails
from zoo.cli import play
from zoo.cli.main import main
from zoo.play import serving

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=gan-digit"], "gan-digit is not a trained model of the zoo; did you mean gan-digits?"),
        (["--port=0"], "--port is 0; it must be between 1 and 65535"),
        (["--port=70000"], "--port is 70000; it must be between 1 and 65535"),
        (["--port=many"], "--port many is not possible; it must be of type int"),
        (["--device=gpu7"], "--device gpu7 is not available here"),
        (["--model_class=GAN"], "--model_class needs a checkpoint: give --ckpt_path, or leave it out"),
        (["--ckpt_path=nothing.ckpt"], "--ckpt_path nothing.ckpt is not a file"),
        (["--model=gan-digits", "--ckpt_path=a.ckpt"], "--model and --ckpt_path both name a model: leave one out"),
        (["--share=true"], "--share is not an option"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    assert message in fails(capsys, "play", f"--port={_free_port()}", *words)


def test_a_port_in_use_is_named_and_no_other_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind((serving.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert fails(capsys, "play", f"--port={port}") == f"--port {port} is in use: give another one"


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(play, "find_spec", lambda name: None)
    assert fails(capsys, "play") == 'play needs Gradio, which is not installed: pip install "lightning-zoo[play]"'


def test_a_model_that_the_page_can_do_nothing_with_is_named(capsys, checkpoint):
    line = fails(capsys, "play", f"--port={_free_port()}", "--ckpt_path", checkpoint("mlp"))
    assert line.startswith("the MLPClassifier does not know how pictures are brought to its input")


def test_ctrl_c_closes_the_page_and_ends_with_the_code_of_the_other_commands(capsys, monkeypatch):
    closed = []
    page = SimpleNamespace(close=lambda verbose: closed.append(verbose))
    monkeypatch.setattr(play, "_build", lambda given, name: page)
    monkeypatch.setattr(serving, "start", lambda page, port: f"http://127.0.0.1:{port}/")
    monkeypatch.setattr(play, "_wait", lambda: os.kill(os.getpid(), signal.SIGINT))
    port = _free_port()
    with pytest.raises(SystemExit) as stop:
        main(["play", f"--port={port}"])
    assert stop.value.code == 128 + signal.SIGINT
    assert closed == [False]
    out, error = capsys.readouterr()
    assert out == f"http://127.0.0.1:{port}/ has the page; Ctrl-C ends it\n"
    assert error == "zoo: stopped by SIGINT\n"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((serving.HOST, 0))
        return probe.getsockname()[1]
