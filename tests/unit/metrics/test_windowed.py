"""Means over a window of batches, and throughput."""

import copy
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything

from tests.unit.models.test_classifier import fit, quiet, small_classifier
from tests.unit.training import LossRecorder, MemoryLogger
from zoo.datamodules import Digits
from zoo.metrics import WindowedMetrics, windowed
from zoo.metrics.windowed import Throughput, log_is_due


@pytest.fixture
def clock(monkeypatch):
    """A clock by which one second passes between two readings."""
    seconds = count()
    monkeypatch.setattr(windowed, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))


def module_at(batch: int, log_every_n_steps: int, world_size: int = 1):
    """A module in training whose Trainer has this number of batches behind it; keeps what it logs in `logged`."""
    loop = SimpleNamespace(total_batch_idx=batch - 1)
    trainer = SimpleNamespace(log_every_n_steps=log_every_n_steps, fit_loop=loop, world_size=world_size)
    logged: dict[str, float] = {}
    return SimpleNamespace(
        trainer=trainer,
        logged=logged,
        log_dict=lambda values, prog_bar=False: logged.update(values),
        optimizers=lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25),
    )


def test_logging_is_due_at_the_last_batch_of_every_window_and_never_with_period_0():
    assert [batch for batch in range(1, 10) if log_is_due(module_at(batch, 3))] == [3, 6, 9]
    assert not any(log_is_due(module_at(batch, 0)) for batch in range(1, 10))


def test_throughput_counts_the_units_of_all_ranks_since_the_last_reading(clock):
    throughput = Throughput()
    throughput.update(10)
    throughput.update(30)
    assert throughput.per_second(world_size=2) == 80
    throughput.update(5)
    assert throughput.per_second(world_size=1) == 5


def test_means_are_weighted_by_the_units_of_each_batch_and_logged_once_per_window(clock):
    metrics = WindowedMetrics("tokens")
    first, second = module_at(1, 2), module_at(2, 2)
    metrics.update(30, loss=torch.tensor(1.0), acc=torch.tensor(0.5))
    metrics.log(first)
    assert not first.logged
    metrics.update(10, loss=torch.tensor(5.0), acc=torch.tensor(1.0))
    metrics.log(second)
    assert second.logged == pytest.approx(
        {"train/loss": 2.0, "train/acc": 0.625, "train/lr": 0.25, "train/tokens_per_second": 40}
    )
    assert not metrics.sums and metrics.count == 0


def test_an_unfinished_window_is_restored():
    metrics, other = WindowedMetrics("images"), WindowedMetrics("images")
    metrics.update(30, loss=torch.tensor(1.0))
    other.load_state_dict(metrics.state_dict())
    module = module_at(2, 2)
    other.update(10, loss=torch.tensor(5.0))
    other.log(module)
    assert module.logged["train/loss"] == pytest.approx(2.0)
    assert metrics.count == 30, "the state is a copy"


def test_means_keep_no_graph_and_are_in_float32():
    metrics = WindowedMetrics("images")
    metrics.update(2, loss=torch.ones((), requires_grad=True, dtype=torch.bfloat16) * 3)
    assert metrics.sums["loss"].dtype == torch.float32
    assert not metrics.sums["loss"].requires_grad


@pytest.mark.parametrize("period", [2, 3])
def test_training_loss_and_accuracy_are_means_over_the_window(period):
    seed_everything(0, verbose=False)
    model, losses, logger = small_classifier(), LossRecorder(), MemoryLogger()
    network = copy.deepcopy(model.network)
    data = Digits(batch_size=500, drop_last=False)  # batches of 500, 500, 200
    fit(model, 6, data, callbacks=[losses], logger=logger, log_every_n_steps=period)
    optimizer, values = torch.optim.SGD(network.parameters(), 0.1), []
    for x, y in losses.batches:
        logits = network(x)
        loss = -logits.log_softmax(1)[torch.arange(len(y)), y]
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        values.append((loss.sum().item(), (logits.argmax(1) == y).sum().item(), len(y)))
    assert [n for _, _, n in values] == [500, 500, 200] * 2
    loss, accuracy = logger.column("train/loss"), logger.column("train/acc")
    assert list(loss) == list(accuracy) == list(range(period - 1, 6, period))
    for step in loss:
        total, hits, n = np.sum(values[step + 1 - period : step + 1], axis=0)
        assert loss[step] == pytest.approx(total / n, rel=1e-5)
        assert accuracy[step] == pytest.approx(hits / n, rel=1e-6)


def test_images_per_second_are_those_of_the_window_also_after_resuming(clock, tmp_path):
    path = tmp_path / "model.ckpt"
    for steps, ckpt_path in ((4, None), (8, path)):
        logger = MemoryLogger()
        trainer = quiet(max_steps=steps, logger=logger, log_every_n_steps=2)
        trainer.fit(small_classifier(), datamodule=Digits(batch_size=32), ckpt_path=ckpt_path)
        trainer.save_checkpoint(path)
        assert logger.column("train/images_per_second") == {steps - 3: 64, steps - 1: 64}
