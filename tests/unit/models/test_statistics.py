"""Batch normalization of averaged networks, measured on training samples before they are validated and saved."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import zoo
from tests.unit.training import quiet_trainer
from zoo import GAN, Diffusion, MLPClassifier, ResNetClassifier
from zoo.datamodules import Digits
from zoo.datamodules.augment import Augment
from zoo.models.classifier import Classifier
from zoo.testing import check_model


def classifier(*shape: int, lr: float = 0.5, **options: Any) -> Classifier:
    shape = shape or (1, 8, 8)
    units = torch.Size(shape).numel()
    layers = [nn.Flatten(), nn.Linear(units, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)]
    options = {"ema_half_life": 20_000, "optimizer": partial(torch.optim.SGD, lr=lr, momentum=0.9)} | options
    return Classifier(shape, 10, nn.Sequential(*layers), lr_scheduler=None, **options)


def statistics(model: Any) -> list[torch.Tensor]:
    norm = next(m for m in model.ema.network.modules() if isinstance(m, nn.BatchNorm1d))
    return [norm.running_mean.clone(), norm.running_var.clone()]


class Recorder(Callback):
    """Keeps the statistics at each validation."""

    def __init__(self) -> None:
        self.statistics: list[list[torch.Tensor]] = []

    def on_validation_end(self, trainer, pl_module):
        self.statistics.append(statistics(pl_module))


@pytest.mark.parametrize("seed", [0, 1])
def test_from_the_first_epoch_on_the_average_validates_like_the_trained_network(seed):
    class Compare(Callback):
        def on_validation_end(self, trainer, pl_module):
            x, y = trainer.datamodule.split("val")
            with torch.no_grad():
                raw = (pl_module.network(x).argmax(1) == y).float().mean().item()
            assert trainer.callback_metrics["val/acc"] > raw - 0.01
            assert trainer.callback_metrics["val/loss"] < 2, "the loss of chance is 2.3"

    torch.manual_seed(seed)
    sgd = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
    options = {"ema_half_life": 20_000, "optimizer": sgd, "lr_scheduler": None}
    model = ResNetClassifier((1, 8, 8), 10, depth=20, widths=[8, 8, 8], **options)
    trainer = quiet_trainer(max_epochs=2, limit_train_batches=15, callbacks=[Compare()])
    trainer.fit(model, datamodule=Digits(val_size=400, batch_size=64))


def test_statistics_in_checkpoints_and_after_training_are_those_of_the_averaged_weights(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    model = classifier()
    data = Digits(batch_size=32)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, limit_train_batches=9, callbacks=[Save()])
    trainer.fit(model, datamodule=data)
    assert not model.ema.stale
    # No augmentation, so the statistics are those of the training samples, here in other batches.
    x = data.split("train")[0]
    for averaged in (zoo.load(tmp_path / "middle.ckpt", network=model.network).ema.network, model.ema.network):
        hidden = averaged[1](x.flatten(1))
        torch.testing.assert_close(averaged[2].running_mean, hidden.mean(0), atol=0.2, rtol=0.1)
        torch.testing.assert_close(averaged[2].running_var, hidden.var(0), atol=0.1, rtol=0.3)


def test_measuring_changes_neither_random_states_nor_augmentation_nor_training():
    losses: list[list[float]] = []
    for half_life in (0, 1000):

        class Keep(Callback):
            def on_before_backward(self, trainer, pl_module, loss):
                losses[-1].append(loss.item())

            def on_validation_end(self, trainer, pl_module):
                losses[-1] += [random.random(), np.random.rand(), torch.rand(()).item()]

        losses.append([])
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        data = Digits(batch_size=32, augment=Augment(crop=1, cutout=3))
        trainer = quiet_trainer(max_epochs=2, limit_train_batches=6, val_check_interval=3, callbacks=[Keep()])
        trainer.fit(classifier(ema_half_life=half_life), datamodule=data)
    assert losses[0] == losses[1] and len(losses[0]) == 12 + 4 * 3


class Squares(Dataset):
    """Samples in the order of their classes, with noise of their own at each access."""

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return torch.full((4,), index / 40.0) + np.random.randn() + random.random() + torch.rand(()), index // 40


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.randn(4), 1)] * 64)


def fit(dataset: Any, **options: Any) -> tuple[Any, Recorder]:
    model, recorder = classifier(4, lr=0.0), Recorder()
    trainer = quiet_trainer(max_epochs=2, callbacks=[recorder], **options)
    trainer.fit(model, DataLoader(dataset, batch_size=40), DataLoader(Squares(), batch_size=100))
    return model, recorder


def test_samples_of_any_dataset_are_measured_in_random_order_and_by_the_same_random_numbers():
    model, recorder = fit(Squares())
    first, second = recorder.statistics
    assert all(a.equal(b) for a, b in zip(first, second, strict=True)), "the weights have not changed"
    rows = torch.stack([Squares()[i][0] for i in range(400)])
    hidden = model.ema.network[1](rows)
    torch.testing.assert_close(first[0], hidden.mean(0), atol=0.5, rtol=0.2)
    torch.testing.assert_close(first[1], hidden.var(0), atol=0.5, rtol=0.3)


def test_without_samples_by_index_the_statistics_are_those_of_the_trained_network():
    model, _ = fit(Stream())
    assert statistics(model)[0].equal(model.network[2].running_mean)


class NormGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 64))

    def forward(self, z, labels=None):
        return self.layers(z).tanh().view(-1, 1, 8, 8)


class NormDenoiser(NormGenerator):
    def __init__(self) -> None:
        super().__init__()
        self.layers[0] = nn.Linear(65, 16)

    def forward(self, x, c_noise, labels=None):
        return self.layers(torch.cat([x.flatten(1), c_noise[:, None]], 1)).view_as(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GAN((1, 8, 8), latent_dim=4, generator=NormGenerator(), discriminator="mlp"),
        lambda: Diffusion((1, 8, 8), network=NormDenoiser(), steps=2, excess_samples=0),
    ],
    ids=["GAN", "Diffusion"],
)
def test_own_networks_of_generative_models_are_measured_on_noise(make):
    torch.manual_seed(0)
    model, recorder = make(), Recorder()
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=6, limit_val_batches=1, callbacks=[recorder])
    trainer.fit(model, datamodule=Digits(batch_size=32))
    mean, variance = recorder.statistics[0]
    owner = model.generator if isinstance(model, GAN) else model.denoiser.network
    assert not model.ema.stale
    assert not mean.equal(owner.layers[1].running_mean)
    if isinstance(model, GAN):
        layer = model.ema.network.layers[0]
        torch.testing.assert_close(mean, layer.bias.detach(), atol=0.15, rtol=0.1)  # of z ~ N(0, 1)
        torch.testing.assert_close(variance, layer.weight.detach().square().sum(1), atol=0.1, rtol=0.2)


def test_a_classifier_with_averaged_statistics_resumes_exactly_and_agrees_on_all_ranks():
    checks = ["resume", "checkpoint", "processes"]
    data = partial(Digits, batch_size=32, val_size=101, augment=Augment(crop=1))
    options = {"width": 16, "depth": 2, "batch_norm": True, "ema_half_life": 100}
    check_model(MLPClassifier, data, checks=checks, **options)
