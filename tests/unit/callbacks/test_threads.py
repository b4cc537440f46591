"""The number of CPU threads that follows from the first batch, and what a run leaves of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks import threads as module
from zoo.callbacks.threads import ChooseThreads, count_multiply_adds, useful_threads
from zoo.datamodules import Digits
from zoo.errors import UserError


@pytest.fixture
def threads(monkeypatch):
    """Stands in for torch's setting, of eight threads: a list of what has been set."""
    settings = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: settings[-1])
    monkeypatch.setattr(torch, "set_num_threads", settings.append)
    return settings


class Seen(Callback):
    """Keeps the number of threads of each batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.counts.append(torch.get_num_threads())
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def train(callback: ChooseThreads, steps: int, width: int = 8) -> list[int]:
    """Trains an MLP; returns the number of threads of each batch."""
    seen = Seen()
    trainer = quiet_trainer(max_steps=steps, limit_val_batches=0, callbacks=[callback, seen])
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=width, depth=1), datamodule=Digits(batch_size=100))
    return seen.counts


@pytest.mark.parametrize(("million", "expected"), [(0, 1), (2.2, 1), (7.4, 1), (7.6, 2), (37.7, 4), (240, 17)])
def test_threads_have_at_least_two_thirds_of_the_gain_that_their_number_promises(million, expected):
    count = useful_threads(million * 1e6)
    assert count == expected

    def efficiency(n: int) -> float:
        shared = 3 * million * 1e6 / module.RATE
        return (module.SERIAL + shared) / (module.SERIAL + shared / n) / n

    assert count == 1 or efficiency(count) >= 2 / 3
    assert efficiency(count + 1) < 2 / 3


def test_multiply_adds_of_layers_are_half_the_flops_that_torch_counts():
    network = nn.Sequential(
        nn.Linear(12, 64),
        nn.Unflatten(1, (4, 4, 4)),
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 9, 2),
    )
    counts: list[float] = []
    handles = count_multiply_adds(network, counts)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(5, 12))
    assert len(counts) == len(handles) == 4
    assert 2 * sum(counts) == counter.get_total_flops()
    for handle in handles:
        handle.remove()
    network(torch.randn(5, 12))
    assert len(counts) == 4


def test_small_layers_train_with_one_thread_and_the_run_says_so(threads, caplog):
    caplog.set_level("INFO")
    callback = ChooseThreads()
    assert train(callback, steps=3) == [1, 1, 1]
    assert torch.get_num_threads() == 8  # afterwards
    assert callback.state_dict() == {"threads": 1}
    mean = (64 * 8 + 8 * 10) * 100 / 2 / 1e6  # of both layers, with batches of 100
    assert f"Training with 1 of 8 threads: a layer has {mean:,.1f} million multiply-adds" in caplog.text
    assert "--threads" in caplog.text


@pytest.mark.parametrize(("serial", "expected"), [(3e-6, 4), (1e-9, 8)])
def test_layers_that_have_work_for_them_get_threads_after_the_first_batch(
    threads, caplog, monkeypatch, serial, expected
):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "SERIAL", serial)
    monkeypatch.setattr(module, "RATE", 3 * 29_600 / (5 * 3e-6))  # so that p / s is 5 for the larger of both
    assert train(ChooseThreads(), steps=3) == [1, expected, expected]
    assert ("of 8 threads" in caplog.text) == (expected < 8)


def test_a_resumed_run_has_the_number_of_the_checkpoint_from_its_first_batch(threads):
    for held, expected in ((3, 3), (32, 8)):
        callback = ChooseThreads()
        callback.load_state_dict({"threads": held})
        assert train(callback, steps=2) == [expected, expected]
        assert callback.state_dict() == {"threads": held}


def test_a_checkpoint_holds_the_number(threads, monkeypatch, tmp_path):
    path, data = tmp_path / "last.ckpt", Digits(batch_size=100)
    monkeypatch.setattr(module, "SERIAL", 1e-9)
    trainer = quiet_trainer(max_steps=2, limit_val_batches=0, callbacks=[ChooseThreads()])
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=8, depth=1), datamodule=data)
    trainer.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["callbacks"]["ChooseThreads"] == {"threads": 8}
    monkeypatch.setattr(module, "SERIAL", 1.0)  # by which it would be 1
    seen = Seen()
    trainer = quiet_trainer(max_steps=3, limit_val_batches=0, callbacks=[ChooseThreads(), seen])
    trainer.fit(MLPClassifier((1, 8, 8), 10, width=8, depth=1), datamodule=data, ckpt_path=path, weights_only=True)
    assert seen.counts == [8]


@pytest.mark.parametrize("held", [None, "3", -1, 2.5])
def test_a_damaged_number_is_refused(held):
    with pytest.raises(UserError, match=r"the number of threads in the checkpoint is .*, not a whole number"):
        ChooseThreads().load_state_dict({"threads": held})


def test_the_number_is_left_alone_if_the_user_has_chosen_it(threads):
    assert train(ChooseThreads(active=False), steps=2) == [8, 8]
    assert threads == [8]


@pytest.mark.parametrize(("accelerator", "processes"), [(CUDAAccelerator(), 1), (CPUAccelerator(), 2)])
def test_it_is_left_alone_on_gpus_and_with_several_processes(threads, accelerator, processes):
    trainer = SimpleNamespace(world_size=processes, accelerator=accelerator)
    ChooseThreads().setup(trainer, nn.Linear(1, 1), "fit")
    assert threads == [8]


def test_a_compiled_network_has_all_threads_and_no_hooks(threads):
    class Compiling(ChooseThreads):
        def on_fit_start(self, trainer, pl_module):
            pl_module.network.compile(backend="eager")
            super().on_fit_start(trainer, pl_module)
            pl_module.network._compiled_call_impl = None

    assert train(Compiling(), steps=2) == [8, 8]


def test_a_run_that_fails_leaves_the_number_as_it_was(threads):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(ChooseThreads(), steps=9)
    assert torch.get_num_threads() == 8
