"""The base of the classifiers: loss, training, predictions and their uncertainty, and checkpoints."""

from __future__ import annotations

import copy
import math
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.networks import mlps
from tests.unit.training import LossRecorder, MemoryLogger, quiet_trainer
from zoo import GAN, MLPClassifier, ResNetClassifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import classifier as classifier_module
from zoo.models.classifier import Classifier, mixup
from zoo.models.dropout import dropout_on
from zoo.optim import WarmupDecay
from zoo.seeding import stream_keys


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


def zero_lr(parameters):
    return sgd(parameters, lr=0.0)


def small(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 10))


def small_classifier(network: nn.Module | None = None, **options) -> Classifier:
    """A small classifier of digits with small_classifier SGD and a constant learning rate."""
    return Classifier((1, 8, 8), 10, network or small(), **({"optimizer": sgd, "lr_scheduler": None} | options))


def logits_classifier(classes: int = 4, **options) -> Classifier:
    """A classifier whose samples are their own logits."""
    return Classifier((classes,), classes, nn.Identity(), **options)


def quiet(**options) -> Trainer:
    """A quiet Trainer, by default without validation."""
    return quiet_trainer(**({"limit_val_batches": 0} | options))


def fit(model: Classifier, batches: int = 4, data: Digits | None = None, **options) -> Trainer:
    trainer = quiet(max_steps=batches, **options)
    trainer.fit(model, datamodule=data or Digits(batch_size=32))
    return trainer


def loader(*tensors: Tensor, batch_size: int = 10) -> DataLoader:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def digits(n: int = 16) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def softmax(logits: Tensor | np.ndarray) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, dtype=np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return np.array([-sum(q * math.log(q) for q in row if q > 0) for row in p])


# Any network


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        return self.left(x) + self.right(-x)


@pytest.mark.parametrize("make", [small, TwoHeads])
def test_any_network_is_trained(make):
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 10, make(), optimizer=lambda p: torch.optim.Adam(p, 0.01))
    trainer = fit(model, 80)
    (metrics,) = trainer.test(model, datamodule=Digits(), verbose=False)
    assert metrics["test/acc"] > 0.88


def test_losses_of_bfloat16_training_are_in_float32():
    model, losses = small_classifier(optimizer=lambda p: torch.optim.Adam(p, 0.01)), LossRecorder()
    dtypes = []
    model.network[-1].register_forward_hook(lambda module, x, y: dtypes.append(y.dtype))
    trainer = fit(model, 30, precision="bf16-mixed", callbacks=[losses])
    assert dtypes[0] == torch.bfloat16
    assert losses.losses[-1] < 0.7 * losses.losses[0]
    (metrics,) = trainer.test(model, datamodule=Digits(), verbose=False)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; it must be at least 0 and below 1"),
        ({"mixup": -0.1}, r"mixup is -0\.1; it must be 0 or more"),
        ({"ema_half_life": float("nan")}, "ema_half_life is nan"),
        ({"mc_samples": -1}, "mc_samples is -1"),
        ({"mc_samples": 8}, "mc_samples is 8, but the network has no dropout: all passes would be the same"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(UserError, match=message):
        small_classifier(**options)


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match="at least 2 classes, and the data has 1"):
        Classifier((1, 8, 8), 1, small())


# Metrics


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, eq. 3: sum over the bins of |B| / n * |acc(B) - conf(B)|, B being ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


def test_test_metrics_equal_their_formulas_over_uneven_batches():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(137, 4, generator=generator) * 2, torch.randint(4, (137,), generator=generator)
    (metrics,) = quiet().test(logits_classifier(), loader(logits, y), verbose=False)
    p, label = softmax(logits), y.numpy()
    one_hot = np.eye(4)[label]
    expected = {
        "test/acc": (p.argmax(1) == label).mean(),
        "test/nll": -np.log(p[np.arange(137), label]).mean(),
        "test/brier": ((p - one_hot) ** 2).sum(1).mean(),
        "test/ece": calibration_error(p.max(1), p.argmax(1) == label),
    }
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert expected["test/ece"] > 0.2, "large enough to depend on the bins"


def test_probabilities_of_one_are_in_the_last_calibration_bin():
    logits, y = torch.tensor([[200.0, 0, 0, 0], [4.6, 0, 0, 0]]), torch.tensor([1, 0])
    p = softmax(logits)
    (metrics,) = quiet().test(logits_classifier(), loader(logits, y), verbose=False)
    assert p.max(1)[0] == 1 and 14 / 15 < p.max(1)[1] < 1
    assert metrics["test/ece"] == pytest.approx(calibration_error(p.max(1), np.array([0, 1])), rel=1e-5)


def test_the_brier_score_ranges_from_0_to_2():
    p = torch.eye(3)
    assert classifier_module.brier_score(p, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    assert classifier_module.brier_score(p, torch.tensor([1, 2, 0])).tolist() == [2, 2, 2]
    assert classifier_module.brier_score(torch.full((1, 4), 0.25), torch.tensor([2])).item() == pytest.approx(0.75)


def test_validation_loss_is_the_mean_over_uneven_batches():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(23, 4, generator=generator), torch.randint(4, (23,), generator=generator)
    (metrics,) = quiet(limit_val_batches=1.0).validate(logits_classifier(), loader(logits, y), verbose=False)
    p = softmax(logits)
    assert metrics["val/loss"] == pytest.approx(-np.log(p[np.arange(23), y]).mean(), rel=1e-5)
    assert metrics["val/acc"] == pytest.approx((p.argmax(1) == y.numpy()).mean())


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_label(smoothing):
    model, losses = small_classifier(label_smoothing=smoothing, optimizer=zero_lr), LossRecorder()
    fit(model, 1, callbacks=[losses])
    x, y = losses.batches[0]
    q = (1 - smoothing) * np.eye(10)[y] + smoothing / 10
    expected = -(q * np.log(softmax(model.network(x).detach()))).sum(1).mean()
    assert losses.losses[0] == pytest.approx(expected, rel=1e-5)


def test_the_loss_with_mixup_is_the_cross_entropy_with_mixed_labels(monkeypatch):
    mixed = []
    monkeypatch.setattr(classifier_module, "mixup", lambda *args: mixed.append((args, mixup(*args))) or mixed[-1][1])
    model, losses = small_classifier(mixup=0.4, label_smoothing=0.1, optimizer=zero_lr), LossRecorder()
    fit(model, 1, callbacks=[losses])
    (((given, y, classes, alpha), (x, labels)),) = mixed
    assert given.equal(losses.batches[0][0]) and y.equal(losses.batches[0][1]) and (classes, alpha) == (10, 0.4)
    q = 0.9 * labels.numpy() + 0.1 / 10
    expected = -(q * np.log(softmax(model.network(x).detach()))).sum(1).mean()
    assert losses.losses[0] == pytest.approx(expected, rel=1e-5)
    assert not x.equal(given)


def test_mixup_mixes_the_samples_and_labels_of_a_pair_by_the_same_weight():
    torch.manual_seed(0)
    n = 500
    x, y = torch.randn(n, 2, 3), torch.arange(n)
    mixed, labels = mixup(x, y, n, alpha=1.0)
    assert mixed.shape == x.shape and labels.shape == (n, n)
    assert ((labels >= 0) & (labels <= 1)).all()
    torch.testing.assert_close(labels.sum(1), torch.ones(n))
    torch.testing.assert_close(mixed, torch.einsum("ij,jkl->ikl", labels, x), rtol=1e-4, atol=1e-5)
    shares = labels.diagonal()
    alone = shares == 1
    assert alone.float().mean() < 0.02, "hardly any sample is mixed with itself"
    assert ((labels > 0).sum(1)[~alone] == 2).all()
    assert len(shares.unique()) > 0.95 * n, "one draw per sample"
    partners = labels.fill_diagonal_(0).sum(0) > 0
    assert (partners | alone).all(), "every sample is a partner once"


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_of_mixup_follow_the_beta_distribution(alpha):
    torch.manual_seed(0)
    n = 20_000
    y = torch.arange(n) % 2  # the weight is visible if the partner is of the other class
    _, labels = mixup(torch.zeros(n, 1), y, 2, alpha)
    own = labels[torch.arange(n), y]
    shares = own[own != 1].double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=5 * (variance / len(shares)) ** 0.5)
    assert shares.var().item() == pytest.approx(variance, rel=0.06)


# Training


def test_training_accuracy_is_not_logged_with_mixup():
    logger = MemoryLogger()
    fit(small_classifier(mixup=0.3), 2, logger=logger, log_every_n_steps=1)
    assert logger.column("train/loss") and logger.column("train/lr") and not logger.column("train/acc")


def test_with_log_every_n_steps_0_it_trains_and_logs_nothing():
    trainer = fit(small_classifier(), 3, log_every_n_steps=0)
    assert trainer.global_step == 3
    assert "train/loss" not in trainer.callback_metrics


class SizeRecorder(nn.Module):
    """A classifier of images of any size, which remembers the sizes that it was trained on."""

    def __init__(self):
        super().__init__()
        self.head, self.sizes = nn.Linear(1, 10), []

    def forward(self, x):
        if self.training:
            self.sizes.append(tuple(x.shape[2:]))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("accumulated", "smaller"), [(1, 4), (2, 8)])
def test_images_are_smaller_in_the_first_part_of_the_run(accumulated, smaller):
    network = SizeRecorder()
    model = small_classifier(network, low_resolution=0.7, low_resolution_fraction=0.5)
    quiet(max_steps=8, accumulate_grad_batches=accumulated).fit(model, datamodule=Digits(batch_size=32))
    assert model.network.sizes == [(6, 6)] * smaller + [(8, 8)] * smaller


def test_low_resolution_is_refused_where_it_cannot_be():
    with pytest.raises(UserError, match=r"low_resolution: the network Sequential does not run on .*\(2, 1, 6, 6\)"):
        small_classifier(low_resolution=0.7)
    with pytest.raises(UserError, match=r"low_resolution is 1\.5; it must be at least 0 and below 1"):
        small_classifier(SizeRecorder(), low_resolution=1.5)
    with pytest.raises(UserError, match=r"low_resolution is for images, not for samples of the shape \(4,\)"):
        logits_classifier(low_resolution=0.5)
    endless = small_classifier(SizeRecorder(), low_resolution=0.7)
    with pytest.raises(UserError, match="low_resolution needs a run of a known length"):
        quiet(max_steps=-1, max_epochs=-1).fit(endless, datamodule=Digits(batch_size=32))


def test_two_accumulated_batches_equal_one_of_twice_the_size():
    states, images = [], []
    for size, accumulate in ((64, 1), (32, 2)):
        seed_everything(0, verbose=False)
        model = small_classifier(ema_half_life=100)
        fit(model, 5, Digits(batch_size=size), accumulate_grad_batches=accumulate)
        states.append({k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)})
        images.append(model.ema.images)
    assert images == [5 * 64] * 2
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, rtol=1e-4, atol=1e-6)
    assert not states[0]["network.1.weight"].equal(states[0]["ema.network.1.weight"])


def test_the_moving_average_counts_every_image_of_accumulated_batches():
    model = small_classifier(ema_half_life=100)
    data = Digits(batch_size=250, drop_last=False)  # 250, 250, 250, 250, 200: windows of 2, 2 and 1 batches
    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 6
    assert model.ema.images == 2400


def test_the_moving_average_equals_its_formula():
    model = small_classifier(ema_half_life=200)
    weights = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            weights.append(pl_module.network[1].weight.detach().clone())

    expected = model.network[1].weight.detach().clone()
    fit(model, 6, callbacks=[Weights()])
    for step, weight in enumerate(weights, start=1):
        half_life = min(200, 0.05 * 32 * step)
        keep = 0.5 ** (32 / half_life)
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(model.ema.network[1].weight.detach(), expected)


def test_the_schedule_steps_with_the_optimizer_and_its_rate_is_logged():
    logger = MemoryLogger()
    model = small_classifier(lr_scheduler=lambda o: WarmupDecay(o, warmup_steps=0.4, final=0.0))
    trainer = fit(model, 5, logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
    expected = [0.05, 0.1, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    assert list(logger.column("train/lr").values()) == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_weight_decay_of_any_optimizer_applies_to_matrices_only():
    model = small_classifier(optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01))
    trainer = fit(model, 1)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[p] for name, p in model.network.named_parameters()} == {
        "1.weight": 0.01, "1.bias": 0.0, "5.weight": 0.01, "5.bias": 0.0,
    }  # fmt: skip


def test_compile_compiles_the_network_once_and_changes_no_parameter_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(self))
    model = small_classifier(compile=True, ema_half_life=10)
    trainer = fit(model, 1)
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert compiled == [model.network]
    assert set(model.state_dict()) == set(small_classifier(ema_half_life=10).state_dict())
    fit(small_classifier(), 1)
    assert len(compiled) == 1, "not without the option"


# Predictions


def test_validation_and_test_use_the_averaged_network():
    model = small_classifier(ema_half_life=1e9)
    with torch.no_grad():
        model.network[-1].bias.copy_(torch.eye(10)[3] * 100)  # predicts class 3
        model.ema.network[-1].bias.copy_(torch.eye(10)[7] * 100)  # predicts class 7
    trainer, labelled = (
        quiet(limit_val_batches=1.0),
        loader(digits(16), torch.tensor([3] * 5 + [7] * 11)),
    )
    (val,) = trainer.validate(model, labelled, verbose=False)
    (test,) = trainer.test(model, labelled, verbose=False)
    assert val["val/acc"] == test["test/acc"] == 11 / 16
    assert model(digits()).equal(model.ema.network(digits()))
    assert small_classifier()(digits()).shape == (16, 10), "the network itself without an average"


class Mirrored(Digits):
    mirror_symmetric = True


@pytest.mark.parametrize(("data", "mirrors"), [(Digits, False), (Mirrored, True)])
def test_flip_tta_averages_logits_of_mirror_images_for_mirror_symmetric_data_only(data, mirrors):
    model = small_classifier(flip_tta=True).eval()
    module = data(eval_batch_size=7)
    (predicted,) = quiet(limit_predict_batches=1).predict(model, datamodule=module)
    x = module.split("test")[0][:7]
    with torch.no_grad():
        logits, mirrored = model.network(x), model.network(x.flip(-1))
    expected = softmax((logits + mirrored) / 2 if mirrors else logits)
    np.testing.assert_allclose(predicted.probabilities, expected, rtol=1e-5)
    assert not np.allclose(softmax(logits), softmax((logits + mirrored) / 2), rtol=1e-3)


def test_flip_tta_applies_to_images_without_a_data_module_and_not_to_points():
    model = small_classifier(flip_tta=True).eval()
    x = digits()
    expected = softmax(((model.network(x) + model.network(x.flip(-1))) / 2).detach())
    np.testing.assert_allclose(model.predictive(x).probabilities, expected, rtol=1e-5)
    points = logits_classifier(flip_tta=True)
    logits = torch.randn(5, 4)
    np.testing.assert_allclose(points.predictive(logits).probabilities, softmax(logits), rtol=1e-5)


def test_channels_last_changes_the_memory_format_and_not_the_output():
    options = {"depth": 8, "widths": (8, 16, 32)}
    torch.manual_seed(0)
    usual = ResNetClassifier((3, 16, 16), 10, **options).eval()
    model = ResNetClassifier((3, 16, 16), 10, **options, channels_last=True, ema_half_life=10).eval()
    model.network.load_state_dict(usual.network.state_dict())
    model.ema.network.load_state_dict(usual.network.state_dict())
    seen = []
    model.ema.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(x), usual(x), rtol=1e-4, atol=1e-5)
    kernels = [p for p in model.parameters() if p.ndim == 4]
    assert len(kernels) == 2 * 7
    for tensor in (*kernels, *seen):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in kernels)
    assert not Classifier((2,), 3, nn.Linear(2, 3), channels_last=True).channels_last, "not for points"


def test_weight_scaling_is_one_pass_with_dropout_off():
    network = small(dropout=0.5, norm=True)
    model, calls = small_classifier(network), []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    x = digits()
    first, second = model.predictive(x), model.predictive(x, torch.arange(len(x)) + 9)
    assert len(calls) == 2
    assert first.probabilities.equal(second.probabilities)
    expected = softmax(copy.deepcopy(network).eval()(x).detach())
    np.testing.assert_allclose(first.probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(first.entropy, entropy(expected), rtol=1e-5)
    assert first.mutual_information.eq(0).all(), "a single member"


def test_weight_scaling_equals_the_mean_of_dropout_passes_for_a_linear_network():
    """In logits, since the mean of a dropout mask is one."""
    torch.manual_seed(0)
    model = Classifier((6,), 3, nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)), mc_samples=1).eval()
    x = torch.randn(2, 6)
    logits = []
    for number in range(250):
        with torch.no_grad(), dropout_on(model, stream_keys(torch.arange(2), number)):
            logits.append(model(x))
    spread = torch.stack(logits).std(0) / 250**0.5
    assert ((torch.stack(logits).mean(0) - model(x)).abs() < 4.5 * spread).all()


# Monte Carlo dropout


def record_passes(model: Classifier) -> tuple[list[Tensor], list[dict[str, bool]]]:
    """Lists that get the logits of every pass, and the modes of the layers in it."""
    logits: list[Tensor] = []
    modes: list[dict[str, bool]] = []

    def note(module, args, output):
        logits.append(output)
        modes.append({type(m).__name__: m.training for m in module.modules()})

    model.network.register_forward_hook(note)
    return logits, modes


def test_monte_carlo_dropout_predicts_the_mean_of_passes_with_the_formulas_of_uncertainty():
    model = small_classifier(small(dropout=0.5, norm=True), mc_samples=6)
    logits, modes = record_passes(model)
    statistics = copy.deepcopy(model.network[2].state_dict())
    predictive = model.predictive(digits())
    assert [tuple(part.shape) for part in logits] == [(16, 10)] * 6, "one pass after the other"
    p = softmax(torch.stack(logits))
    assert np.abs(p - p[0]).max() > 1e-3, "different masks in every pass"
    of_mean = entropy(p.mean(0))
    np.testing.assert_allclose(predictive.probabilities, p.mean(0), rtol=1e-5)
    np.testing.assert_allclose(predictive.entropy, of_mean, rtol=1e-5)
    information = of_mean - np.mean([entropy(member) for member in p], axis=0)
    np.testing.assert_allclose(predictive.mutual_information, information, rtol=1e-3, atol=1e-6)
    assert information.min() > 0
    assert not any(training for mode in modes for training in mode.values()), "also of batch normalization"
    assert all(value.equal(model.network[2].state_dict()[name]) for name, value in statistics.items())


@pytest.mark.parametrize("command", ["test", "predict"])
def test_the_same_samples_in_another_batch_have_other_dropout_masks(command):
    seen = []

    class Keep(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, *_):
            seen.append(outputs.probabilities)

        on_predict_batch_end = on_test_batch_end

    model = small_classifier(small(dropout=0.5), mc_samples=1)
    samples = loader(digits(10).repeat(2, 1, 1, 1), torch.arange(20) % 10)
    getattr(quiet(callbacks=[Keep()]), command)(model, samples, **({"verbose": False} if command == "test" else {}))
    first, second = seen
    assert not torch.isclose(first, second).all(1).any()


@pytest.mark.parametrize("command", ["test", "predict"])
def test_dropout_passes_do_not_depend_on_the_batch_size(command):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3), nn.ReLU(), nn.Flatten(), nn.AlphaDropout(0.2), nn.Linear(144, 10)]
    model = small_classifier(nn.Sequential(*layers), mc_samples=4, flip_tta=True)
    results = []
    for size in (297, 100, 50):
        data = Digits(eval_batch_size=size)
        if command == "test":
            results += quiet().test(model, datamodule=data, verbose=False)
        else:
            results.append({"p": torch.cat([part.probabilities for part in quiet().predict(model, datamodule=data)])})
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_dropout_passes_of_two_ranks_are_those_of_one():
    model = small_classifier(small(dropout=0.5), mc_samples=4)
    x = digits(12)
    whole = model.predictive(x).probabilities
    for rank in range(2):
        model._trainer = SimpleNamespace(world_size=2, global_rank=rank)
        for number, batch in enumerate(x[rank::2].split(4)):
            predicted = model.predict_step((batch, torch.zeros(4)), number)
            torch.testing.assert_close(predicted.probabilities, whole[rank::2].split(4)[number])


def test_equal_samples_in_other_places_get_other_masks():
    model = small_classifier(small(dropout=0.5), mc_samples=4)
    p = model.predictive(digits(1).expand(16, 1, 8, 8)).probabilities
    assert len(p.unique(dim=0)) == 16


def test_at_most_the_logits_of_one_earlier_pass_are_in_memory():
    import weakref

    model = small_classifier(small(dropout=0.5), mc_samples=8)
    earlier: list[weakref.ref] = []
    alive = []

    def note(module, args, output):
        alive.append(sum(ref() is not None for ref in earlier))
        earlier.append(weakref.ref(output))

    model.network.register_forward_hook(note)
    model.predictive(digits())
    assert len(alive) == 8 and max(alive) <= 1


def test_dropout_passes_are_reproducible_by_their_seeds():
    def probabilities(mc_seed: int = 0, start: int = 0) -> Tensor:
        torch.manual_seed(3)
        model = small_classifier(small(dropout=0.5), mc_samples=3, mc_seed=mc_seed)
        torch.rand(7)
        return model.predictive(digits(), start + torch.arange(16)).probabilities

    assert probabilities().equal(probabilities())
    assert not probabilities().equal(probabilities(mc_seed=1))
    assert not probabilities().equal(probabilities(start=1)), "different masks for other samples"


def snapshot(model: nn.Module) -> tuple[Tensor, list[bool]]:
    return torch.get_rng_state(), [module.training for module in model.modules()]


@pytest.mark.parametrize("where", ["nowhere", "in a pass", "between passes"])
def test_predictive_changes_neither_modes_nor_random_state(where, monkeypatch):
    model = small_classifier(small(dropout=0.5, norm=True), mc_samples=4, ema_half_life=10)
    model.train()
    model.network[2].eval()  # as for frozen layers
    model.ema.network[4].eval()
    if where == "in a pass":
        calls = count()

        def fail(*_):
            if next(calls) == 1:
                raise KeyError

        model.ema.network.register_forward_hook(fail)
    elif where == "between passes":
        monkeypatch.setattr(classifier_module, "entropy", lambda p: 1 / 0)
    x, before = digits(), snapshot(model)
    if where == "nowhere":
        model.predictive(x)
    else:
        with pytest.raises((KeyError, ZeroDivisionError)) as caught:
            model.predictive(x)
        assert caught, "the exception keeps the frames alive"
    after = snapshot(model)
    assert before[0].equal(after[0])
    assert before[1] == after[1]
    assert all(p.requires_grad for p in model.network.parameters())


def test_predictions_during_training_do_not_change_it():
    class Predicting(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.predictive(batch[0])

    curves = []
    for callbacks in ([], [Predicting()]):
        seed_everything(0, verbose=False)
        losses = LossRecorder()
        fit(small_classifier(small(dropout=0.5), mc_samples=2), 6, callbacks=[losses, *callbacks])
        curves.append(losses.losses)
    assert curves[0] == curves[1]


def test_mutual_information_of_two_opposite_certain_members_is_one_bit():
    """Two certain members that disagree: the entropy is one bit, all of it mutual information."""
    model = logits_classifier(2)
    members = [torch.tensor([[0.0, -1000.0]]), torch.tensor([[-1000.0, 0.0]])]
    model._member_log_probs = lambda x, seed, calibrated: iter([part.log_softmax(1) for part in members])
    predictive = model.predictive(torch.zeros(1, 2))
    assert predictive.probabilities.tolist() == [[0.5, 0.5]]
    assert predictive.entropy.item() == predictive.mutual_information.item() == pytest.approx(math.log(2))


# Ensembles


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Three different classifiers of digits after a few steps, the last one with averaged weights."""
    folder = tmp_path_factory.mktemp("members")
    paths = []
    for seed in range(3):
        seed_everything(seed, verbose=False)
        options = {"ema_half_life": 50.0} if seed == 2 else {}
        model = MLPClassifier((1, 8, 8), 10, 12 + seed, 1, 0.1, 0.4, batch_norm=seed == 1, optimizer=sgd, **options)
        fit(model, 8).save_checkpoint(folder / f"{seed}.ckpt")
        paths.append(str(folder / f"{seed}.ckpt"))
    return paths


def load(path: str, **options) -> MLPClassifier:
    return MLPClassifier.load_from_checkpoint(path, weights_only=True, **options).eval()


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(checkpoints):
    data = Digits(eval_batch_size=100)
    model = load(checkpoints[0], ensemble=checkpoints[1:])
    predicted = quiet().predict(model, datamodule=data)
    x, y = data.split("test")
    with torch.no_grad():
        p = softmax(torch.stack([load(path)(x) for path in checkpoints]))
    mean, of_members = p.mean(0), np.mean([entropy(member) for member in p], axis=0)

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in predicted])

    np.testing.assert_allclose(whole("probabilities"), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole("entropy"), entropy(mean), rtol=1e-4)
    np.testing.assert_allclose(whole("mutual_information"), entropy(mean) - of_members, rtol=1e-3, atol=1e-6)
    (metrics,) = quiet().test(model, datamodule=data, verbose=False)
    assert metrics["test/nll"] == pytest.approx(-np.log(mean[np.arange(297), y]).mean(), rel=1e-4)
    assert metrics["test/acc"] == pytest.approx((mean.argmax(1) == y.numpy()).mean(), abs=1e-6)


def test_members_are_not_in_the_state_dict_or_hyperparameters(checkpoints):
    model = load(checkpoints[0], ensemble=checkpoints[1:])
    trainer = quiet(limit_test_batches=1)
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert set(model.state_dict()) == set(load(checkpoints[0]).state_dict())
    assert "ensemble" not in model.hparams, "paths of this machine"
    assert len(list(model.parameters())) == len(list(load(checkpoints[0]).parameters()))


def test_monte_carlo_dropout_and_ensemble_are_combined(checkpoints):
    data = Digits(eval_batch_size=20)
    model = load(checkpoints[0], ensemble=checkpoints[1:2], mc_samples=3)
    (predicted,) = quiet(limit_predict_batches=1).predict(model, datamodule=data)
    x, passes = data.split("test")[0][:20], []
    for index, member in enumerate([load(checkpoints[0]), load(checkpoints[1])]):
        for number in range(3):
            with torch.no_grad(), dropout_on(member, stream_keys(torch.arange(20), 0, index, number)):
                passes.append(softmax(member(x)))
    np.testing.assert_allclose(predicted.probabilities, np.mean(passes, axis=0), rtol=1e-4, atol=1e-6)
    assert len({p.tobytes() for p in passes}) == 6


def test_unsuitable_ensemble_checkpoints_are_one_line_errors(checkpoints, tmp_path):
    paths = {name: str(tmp_path / f"{name}.ckpt") for name in ("gan", "shape", "classes", "text", "none", "own")}
    others = {
        "gan": GAN((1, 8, 8), 10, **mlps(16), latent_dim=4),
        "shape": MLPClassifier((1, 4, 16), 10, 8, 1),
        "classes": MLPClassifier((1, 8, 8), 3, 8, 1),
        "own": small_classifier(),
    }
    for name, model in others.items():
        trainer = quiet()
        trainer.strategy.connect(model)
        trainer.save_checkpoint(paths[name])
    Path(paths["text"]).write_text("hello")
    expected = {
        "gan": "in ensemble does not hold a classifier of samples of the shape (1, 8, 8)",
        "shape": "in ensemble does not hold a classifier of samples of the shape (1, 8, 8)",
        "classes": "in ensemble has 3 classes, not 10",
        "text": "is not a checkpoint that can be read safely",
        "none": "in ensemble is not a file",
        "own": "own.ckpt cannot be loaded: the network is one of your own",
    }
    for name, message in expected.items():
        with pytest.raises(UserError) as error:
            load(checkpoints[0], ensemble=[checkpoints[1], paths[name]]).setup("predict" if name == "none" else "test")
        assert message in str(error.value)
        assert "\n" not in str(error.value)


# Checkpoints


def plain_values(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain_values(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(plain_values, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("ema_half_life", [0.0, 100.0])
@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_a_checkpoint_restores_the_model_and_plain_hyperparameters(name, ema_half_life, tmp_path, checkpoints):
    options = {"ema_half_life": ema_half_life, "label_smoothing": 0.1, "flip_tta": True, "optimizer": sgd}
    options |= {"ensemble": checkpoints[:1], "lr_scheduler": None, "channels_last": True}
    if name == "mlp":
        model: Classifier = MLPClassifier((1, 8, 8), 10, width=16, depth=2, max_norm=1.0, mc_samples=2, **options)
    else:
        model = ResNetClassifier((1, 8, 8), 10, depth=8, widths=[4, 6, 8], patch_size=2, **options)
    fit(model, 3).save_checkpoint(tmp_path / "model.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    x = digits()
    assert loaded(x).equal(model.eval()(x))
    if ema_half_life:
        assert loaded.ema.images == 96
        assert not loaded.network(x).equal(loaded(x))
    assert loaded.hparams == model.hparams
    assert plain_values(dict(model.hparams))
    assert model.hparams.input_shape == (1, 8, 8) and model.hparams.label_smoothing == 0.1
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert checkpoint["model_class"] == f"zoo.models.{name}.module.{type(model).__name__}"
    assert set(checkpoint["hyper_parameters"]).isdisjoint({"network", "optimizer", "lr_scheduler", "ensemble"})


class OneSample(Digits):
    """The same sample 577 times, so that the order does not matter: 18 batches of 32 per epoch."""

    def load_split(self, train):
        x, y = super().load_split(train)
        return x[:1].expand(577, 1, 8, 8), y[:1].expand(577)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    ends, path = [], tmp_path / "model.ckpt"
    for parts in ([2], [1, 2]):
        for number, epochs in enumerate(parts):
            seed_everything(0, verbose=False)
            model = small_classifier(
                ema_half_life=100, lr_scheduler=lambda o: WarmupDecay(o, 0.25, 0.0, total_steps=36)
            )
            trainer = quiet(max_epochs=epochs)
            trainer.fit(model, datamodule=OneSample(batch_size=32, val_size=1), ckpt_path=path if number else None)
            trainer.save_checkpoint(path)
        ends.append(model)
    for name, value in ends[0].state_dict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ends[1].state_dict()[name], value)
    assert ends[0].ema.images == ends[1].ema.images == 36 * 32
