"""Every command ends by SIGTERM with 143 and by Ctrl-C with 130, in one line and without traces of a run not begun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.helpers.command import MLP, MLP_RUN
from zoo.cli.main import main
from zoo.distributed.signals import ENDING, Stopped

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

CHECKPOINTS = Path("runs/mlpclassifier/version_0/checkpoints")
DATA = ["--data=Digits", "--trainer.accelerator=cpu"]
RUNS = {"fit": MLP_RUN} | {command: [command, *MLP, *DATA] for command in ("validate", "test", "predict")}

EDIT = ["edit", "--image=a.png", "--task=denoise", "--sigma=1"]


class Signal(Callback):
    """Sends this process a signal in a hook.

    Args:
        hook: name of the hook.
        number: number of the signal.
    """

    def __init__(self, hook: str, number: int) -> None:
        setattr(self, hook, lambda *_, **__: os.kill(os.getpid(), number))


def stopped_in(command: str, hook: str, number: int, *options: str) -> None:
    callback = [f"--trainer.callbacks+={__name__}.Signal", f"--trainer.callbacks.hook={hook}"]
    with pytest.raises(Stopped) as stopped:
        main([*RUNS[command], *callback, f"--trainer.callbacks.number={int(number)}", *options])
    assert stopped.value.code == 128 + number


@pytest.mark.parametrize(
    ("command", "hook", "number"),
    [
        ("fit", "setup", signal.SIGTERM),
        ("fit", "on_sanity_check_start", signal.SIGINT),
        ("fit", "on_validation_batch_end", signal.SIGTERM),  # of the sanity check
        ("validate", "on_validation_batch_end", signal.SIGTERM),
        ("test", "on_test_batch_end", signal.SIGINT),
        ("predict", "on_predict_batch_end", signal.SIGTERM),
    ],
)
def test_what_is_not_training_ends_at_once_and_leaves_nothing(command, hook, number, checkpoint, capsys):
    trained = [] if command == "fit" else [f"--ckpt_path={checkpoint('mlp')}"]
    stopped_in(command, hook, number, *(trained or ["--trainer.num_sanity_val_steps=2"]))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo: ")]
    assert lines == [f"zoo: stopped by {signal.Signals(number).name}"]
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("hook", "step"),
    [("on_train_batch_start", 1), ("on_validation_start", 3), ("on_train_epoch_end", 6), ("on_train_end", 6)],
)
def test_a_signal_in_training_leaves_a_checkpoint_of_the_last_batch(hook, step):
    stopped_in("fit", hook, signal.SIGTERM)
    assert torch.load(CHECKPOINTS / "last.ckpt", weights_only=True)["global_step"] == step


def sends(number: int) -> Callable[..., Any]:
    def send(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)

    return send


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(
    ("command", "step"),
    [
        (["sample", "--ckpt_path=gan"], "zoo.cli.sample.render_samples"),
        (["sample", "--ckpt_path=letters", "--out=a.txt"], "zoo.cli.text.save_texts"),
        ([*EDIT, "--ckpt_path=unconditional_diffusion"], "zoo.hub.editing.load_image"),
        (["export", "--ckpt_path=mlp", "--out=a.onnx"], "zoo.cli.export.export"),
        (["predict", "--ckpt_path=mlp", "--images=a.png"], "zoo.hub.predicting.write_predictions"),
        (["list"], "zoo.cli.list.run_list"),
    ],
)  # fmt: skip
def test_commands_without_a_trainer_end_at_once_and_write_nothing(
    command, step, number, checkpoint, monkeypatch, capsys
):
    Path("a.png").touch()
    monkeypatch.setattr(step, sends(number))
    names = (word.removeprefix("--ckpt_path=") for word in command)
    words = [
        f"--ckpt_path={checkpoint(n)}" if f"--ckpt_path={n}" == w else w for w, n in zip(command, names, strict=True)
    ]
    with pytest.raises(Stopped) as stopped:
        main(words)
    assert stopped.value.code == 128 + number
    assert f"zoo: stopped by {signal.Signals(number).name}" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.png"]
