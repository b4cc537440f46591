"""The classifiers' shell: its losses, its loop, its moving average, and the uncertainty that it reports."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zoo import GAN, MLPClassifier, ResNetClassifier
from zoo import classifier as shell
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.metrics import windowed
from zoo.models.base import ZooModule, eval_mode
from zoo.models.classifier import Classifier, dropout_on, mixup
from zoo.optim import WarmupDecay


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


def still(parameters):
    return sgd(parameters, lr=0.0)


def small(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(16, 10))


def plain(network: nn.Module | None = None, **options) -> Classifier:
    """A small classifier of digits with plain SGD and a constant learning rate."""
    return Classifier(network or small(), (1, 8, 8), 10, **({"optimizer": sgd, "lr_scheduler": None} | options))


def of_logits(classes: int = 4, **options) -> Classifier:
    """A classifier whose samples are their own logits."""
    return Classifier(nn.Identity(), (classes,), classes, **options)


def quiet(**options) -> Trainer:
    warnings.filterwarnings("ignore")
    defaults = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    shown = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", **(defaults | shown | options))


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


class Recorder(DummyLogger):
    """Keeps what is logged: (step, metrics)."""

    def __init__(self):
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def column(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}


class Losses(Callback):
    def __init__(self):
        self.losses: list[float] = []
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.item())


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
    model = Classifier(make(), (1, 8, 8), 10, optimizer=lambda p: torch.optim.Adam(p, 0.01))
    trainer = fit(model, 80)
    (metrics,) = trainer.test(model, datamodule=Digits(), verbose=False)
    assert metrics["test/acc"] > 0.88


def test_half_precision_of_the_forward_pass_gives_losses_in_full():
    model, losses = plain(optimizer=lambda p: torch.optim.Adam(p, 0.01)), Losses()
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
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        plain(**options)


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match="at least 2 classes, and the data has 1"):
        Classifier(small(), (1, 8, 8), 1)


# What is measured


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, eq. 3: sum over the bins of |B| / n * |acc(B) - conf(B)|, B being ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


def test_test_metrics_are_their_formulas_over_all_samples_whatever_the_batches():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(137, 4, generator=generator) * 2, torch.randint(4, (137,), generator=generator)
    (metrics,) = quiet().test(of_logits(), loader(logits, y), verbose=False)
    p, label = softmax(logits), y.numpy()
    one_hot = np.eye(4)[label]
    expected = {
        "test/acc": (p.argmax(1) == label).mean(),
        "test/nll": -np.log(p[np.arange(137), label]).mean(),
        "test/brier": ((p - one_hot) ** 2).sum(1).mean(),
        "test/ece": calibration_error(p.max(1), p.argmax(1) == label),
    }
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert expected["test/ece"] > 0.2, "so that the bins matter"


def test_certainty_shares_the_last_bin_with_what_is_nearly_certain():
    logits, y = torch.tensor([[200.0, 0, 0, 0], [4.6, 0, 0, 0]]), torch.tensor([1, 0])
    p = softmax(logits)
    (metrics,) = quiet().test(of_logits(), loader(logits, y), verbose=False)
    assert p.max(1)[0] == 1 and 14 / 15 < p.max(1)[1] < 1
    assert metrics["test/ece"] == pytest.approx(calibration_error(p.max(1), np.array([0, 1])), rel=1e-5)


def test_brier_score_reaches_from_0_to_2():
    p = torch.eye(3)
    assert shell.brier_score(p, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    assert shell.brier_score(p, torch.tensor([1, 2, 0])).tolist() == [2, 2, 2]
    assert shell.brier_score(torch.full((1, 4), 0.25), torch.tensor([2])).item() == pytest.approx(0.75)


def test_validation_measures_the_mean_loss_over_uneven_batches():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(23, 4, generator=generator), torch.randint(4, (23,), generator=generator)
    (metrics,) = quiet(limit_val_batches=1.0).validate(of_logits(), loader(logits, y), verbose=False)
    p = softmax(logits)
    assert metrics["val/loss"] == pytest.approx(-np.log(p[np.arange(23), y]).mean(), rel=1e-5)
    assert metrics["val/acc"] == pytest.approx((p.argmax(1) == y.numpy()).mean())


# The loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_label(smoothing):
    model, losses = plain(label_smoothing=smoothing, optimizer=still), Losses()
    fit(model, 1, callbacks=[losses])
    x, y = losses.batches[0]
    q = (1 - smoothing) * np.eye(10)[y] + smoothing / 10
    expected = -(q * np.log(softmax(model.network(x).detach()))).sum(1).mean()
    assert losses.losses[0] == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_mixup_is_the_cross_entropy_with_the_mixed_labels(monkeypatch):
    mixed = []
    monkeypatch.setattr(shell, "mixup", lambda *args: mixed.append((args, mixup(*args))) or mixed[-1][1])
    model, losses = plain(mixup=0.4, label_smoothing=0.1, optimizer=still), Losses()
    fit(model, 1, callbacks=[losses])
    (((given, y, classes, alpha), (x, labels)),) = mixed
    assert given.equal(losses.batches[0][0]) and y.equal(losses.batches[0][1]) and (classes, alpha) == (10, 0.4)
    q = 0.9 * labels.numpy() + 0.1 / 10
    expected = -(q * np.log(softmax(model.network(x).detach()))).sum(1).mean()
    assert losses.losses[0] == pytest.approx(expected, rel=1e-5)
    assert not x.equal(given)


def test_mixup_mixes_samples_and_labels_by_one_share_for_every_pair():
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
    assert alone.float().mean() < 0.02, "hardly anybody is mixed with itself"
    assert ((labels > 0).sum(1)[~alone] == 2).all()
    assert len(shares.unique()) > 0.95 * n, "a draw for every sample"
    partners = labels.fill_diagonal_(0).sum(0) > 0
    assert (partners | alone).all(), "everybody is somebody's partner once"


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_drawn_from_the_beta_distribution(alpha):
    torch.manual_seed(0)
    n = 20_000
    y = torch.arange(n) % 2  # so that a share is seen wherever the partner is of the other class
    _, labels = mixup(torch.zeros(n, 1), y, 2, alpha)
    own = labels[torch.arange(n), y]
    shares = own[own != 1].double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=5 * (variance / len(shares)) ** 0.5)
    assert shares.var().item() == pytest.approx(variance, rel=0.06)


# The loop


@pytest.mark.parametrize("period", [2, 3])
def test_training_loss_and_accuracy_are_means_over_the_window_as_by_hand(period):
    seed_everything(0, verbose=False)
    model, losses, logger = plain(), Losses(), Recorder()
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


def test_no_training_accuracy_on_mixed_labels():
    logger = Recorder()
    fit(plain(mixup=0.3), 2, logger=logger, log_every_n_steps=1)
    assert logger.column("train/loss") and logger.column("train/lr") and not logger.column("train/acc")


def test_images_per_second_are_those_of_the_window_also_in_a_resumed_run(monkeypatch, tmp_path):
    seconds = count()
    monkeypatch.setattr(windowed, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))  # a second between calls
    path = tmp_path / "model.ckpt"
    for steps, ckpt_path in ((4, None), (8, path)):
        logger = Recorder()
        trainer = quiet(max_steps=steps, logger=logger, log_every_n_steps=2)
        trainer.fit(plain(), datamodule=Digits(batch_size=32), ckpt_path=ckpt_path)
        trainer.save_checkpoint(path)
        assert logger.column("train/images_per_second") == {steps - 3: 64, steps - 1: 64}


def test_a_trainer_that_never_logs_trains():
    trainer = fit(plain(), 3, log_every_n_steps=0)
    assert trainer.global_step == 3
    assert "train/loss" not in trainer.callback_metrics


def test_two_half_batches_accumulated_are_one_whole_batch():
    states, images = [], []
    for size, accumulate in ((64, 1), (32, 2)):
        seed_everything(0, verbose=False)
        model = plain(ema_half_life=100)
        fit(model, 5, Digits(batch_size=size), accumulate_grad_batches=accumulate)
        states.append({k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)})
        images.append(model.ema.images)
    assert images == [5 * 64] * 2
    for name, whole in states[0].items():
        torch.testing.assert_close(states[1][name], whole, rtol=1e-4, atol=1e-6)
    assert not states[0]["network.1.weight"].equal(states[0]["ema.network.1.weight"])


def test_the_average_counts_every_image_in_windows_and_batches_that_are_left_over():
    model = plain(ema_half_life=100)
    data = Digits(batch_size=250, drop_last=False)  # 250, 250, 250, 250, 200: windows of 2, 2 and 1 batches
    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 6
    assert model.ema.images == 2400


def test_the_average_is_the_formula_over_the_weights_after_each_step():
    model = plain(ema_half_life=200)
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


def test_the_schedule_steps_with_the_optimizer_and_the_rate_is_logged():
    logger = Recorder()
    model = plain(lr_scheduler=lambda o: WarmupDecay(o, warmup_steps=0.4, final=0.0))
    trainer = fit(model, 5, logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
    expected = [0.05, 0.1, 0.1, 0.1 * 2 / 3, 0.1 / 3]
    assert list(logger.column("train/lr").values()) == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_any_optimizer_gets_matrices_with_its_decay_and_the_rest_without():
    model = plain(optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01))
    trainer = fit(model, 1)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decays[p] for name, p in model.network.named_parameters()} == {
        "1.weight": 0.01, "1.bias": 0.0, "5.weight": 0.01, "5.bias": 0.0,
    }  # fmt: skip


def test_compiling_marks_the_network_once_for_training_and_changes_no_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: compiled.append(self))
    model = plain(compile=True, ema_half_life=10)
    trainer = fit(model, 1)
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert compiled == [model.network]
    assert set(model.state_dict()) == set(plain(ema_half_life=10).state_dict())
    fit(plain(), 1)
    assert len(compiled) == 1, "and not where it was not asked for"


# What is predicted


def test_the_averaged_network_is_what_is_validated_and_tested():
    model = plain(ema_half_life=1e9)
    with torch.no_grad():
        model.network[-1].bias.copy_(torch.eye(10)[3] * 100)  # always 3
        model.ema.network[-1].bias.copy_(torch.eye(10)[7] * 100)  # always 7
    trainer, labelled = quiet(limit_val_batches=1.0), loader(digits(16), torch.tensor([3] * 5 + [7] * 11))
    (val,) = trainer.validate(model, labelled, verbose=False)
    (test,) = trainer.test(model, labelled, verbose=False)
    assert val["val/acc"] == test["test/acc"] == 11 / 16
    assert model(digits()).equal(model.ema.network(digits()))
    assert plain()(digits()).shape == (16, 10), "without an average it is the network"


class Mirrored(Digits):
    mirror_symmetric = True


@pytest.mark.parametrize(("data", "mirrors"), [(Digits, False), (Mirrored, True)])
def test_the_mirror_image_has_its_say_by_logits_where_labels_survive_it(data, mirrors):
    model = plain(flip_tta=True).eval()
    module = data(eval_batch_size=7)
    (predicted,) = quiet(limit_predict_batches=1).predict(model, datamodule=module)
    x = module.split("test")[0][:7]
    with torch.no_grad():
        logits, mirrored = model.network(x), model.network(x.flip(-1))
    expected = softmax((logits + mirrored) / 2 if mirrors else logits)
    np.testing.assert_allclose(predicted.probabilities, expected, rtol=1e-5)
    assert not np.allclose(softmax(logits), softmax((logits + mirrored) / 2), rtol=1e-3)


def test_without_data_the_mirror_is_taken_and_of_points_there_is_none():
    model = plain(flip_tta=True).eval()
    x = digits()
    expected = softmax(((model.network(x) + model.network(x.flip(-1))) / 2).detach())
    np.testing.assert_allclose(model.predictive(x).probabilities, expected, rtol=1e-5)
    points = of_logits(flip_tta=True)
    logits = torch.randn(5, 4)
    np.testing.assert_allclose(points.predictive(logits).probabilities, softmax(logits), rtol=1e-5)


def test_channels_last_changes_the_memory_and_not_the_numbers():
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
    assert not Classifier(nn.Linear(2, 3), (2,), 3, channels_last=True).channels_last, "points have no channels"


def test_weight_scaling_is_one_pass_with_dropout_off():
    network = small(dropout=0.5, norm=True)
    model, calls = plain(network), []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    x = digits()
    first, second = model.predictive(x), model.predictive(x, seed=9)
    assert len(calls) == 2
    assert first.probabilities.equal(second.probabilities)
    expected = softmax(copy.deepcopy(network).eval()(x).detach())
    np.testing.assert_allclose(first.probabilities, expected, rtol=1e-5)
    np.testing.assert_allclose(first.entropy, entropy(expected), rtol=1e-5)
    assert first.mutual_information.eq(0).all(), "one member has nobody to disagree with"


def test_scaled_weights_are_the_mean_of_passes_where_the_network_is_linear():
    """In logits, exactly: dropout's mask has mean one."""
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)), (6,), 3, mc_samples=1).eval()
    x = torch.randn(2, 6)
    logits = []
    for seed in range(500):
        with torch.no_grad(), dropout_on(model, seed):
            logits.append(model(x))
    spread = torch.stack(logits).std(0) / 500**0.5
    assert ((torch.stack(logits).mean(0) - model(x)).abs() < 4.5 * spread).all()


# Monte-Carlo dropout


def watched(model: Classifier) -> tuple[list[Tensor], list[dict[str, bool]]]:
    """The logits of every pass, and the modes of the layers in it."""
    logits: list[Tensor] = []
    modes: list[dict[str, bool]] = []

    def note(module, args, output):
        logits.append(output)
        modes.append({type(m).__name__: m.training for m in module.modules()})

    model.network.register_forward_hook(note)
    return logits, modes


def test_the_prediction_is_the_mean_of_the_passes_and_its_uncertainty_their_formulas():
    model = plain(small(dropout=0.5, norm=True), mc_samples=6)
    logits, modes = watched(model)
    statistics = copy.deepcopy(model.network[2].state_dict())
    predictive = model.predictive(digits())
    assert [tuple(part.shape) for part in logits] == [(16, 10)] * 6, "one after the other, never all at once"
    p = softmax(torch.stack(logits))
    assert np.abs(p - p[0]).max() > 1e-3, "every pass has masks of its own"
    of_mean = entropy(p.mean(0))
    np.testing.assert_allclose(predictive.probabilities, p.mean(0), rtol=1e-5)
    np.testing.assert_allclose(predictive.entropy, of_mean, rtol=1e-5)
    information = of_mean - np.mean([entropy(member) for member in p], axis=0)
    np.testing.assert_allclose(predictive.mutual_information, information, rtol=1e-3, atol=1e-6)
    assert information.min() > 0
    for mode in modes:
        assert mode["Dropout"] and not mode["BatchNorm1d"] and not mode["Sequential"], "dropout, and nothing else"
    assert all(value.equal(model.network[2].state_dict()[name]) for name, value in statistics.items())


def test_logits_of_one_pass_are_gone_when_the_next_but_one_begins():
    import weakref

    model = plain(small(dropout=0.5), mc_samples=8)
    earlier: list[weakref.ref] = []
    alive = []

    def note(module, args, output):
        alive.append(sum(ref() is not None for ref in earlier))
        earlier.append(weakref.ref(output))

    model.network.register_forward_hook(note)
    model.predictive(digits())
    assert len(alive) == 8 and max(alive) <= 1


def test_passes_repeat_by_their_seeds_and_differ_by_them():
    def probabilities(mc_seed: int = 0, seed: int = 0) -> Tensor:
        torch.manual_seed(3)
        model = plain(small(dropout=0.5), mc_samples=3, mc_seed=mc_seed)
        torch.rand(7)
        return model.predictive(digits(), seed=seed).probabilities

    assert probabilities().equal(probabilities())
    assert not probabilities().equal(probabilities(mc_seed=1))
    assert not probabilities().equal(probabilities(seed=1)), "a batch of its own has masks of its own"


def snapshot(model: nn.Module) -> tuple[Tensor, list[bool]]:
    return torch.get_rng_state(), [module.training for module in model.modules()]


@pytest.mark.parametrize("where", ["nowhere", "in a pass", "between passes"])
def test_modes_and_random_numbers_stay_as_they_were(where, monkeypatch):
    model = plain(small(dropout=0.5, norm=True), mc_samples=4, ema_half_life=10)
    model.train()
    model.network[2].eval()  # frozen, as in fine-tuning
    model.ema.network[4].eval()
    if where == "in a pass":
        calls = count()

        def fail(*_):
            if next(calls) == 1:
                raise KeyError

        model.ema.network.register_forward_hook(fail)
    elif where == "between passes":
        monkeypatch.setattr(shell, "entropy", lambda p: 1 / 0)
    x, before = digits(), snapshot(model)
    if where == "nowhere":
        model.predictive(x)
    else:
        with pytest.raises((KeyError, ZeroDivisionError)) as caught:
            model.predictive(x)
        assert caught, "which keeps the frames alive, as a debugger would"
    after = snapshot(model)
    assert before[0].equal(after[0])
    assert before[1] == after[1]
    assert all(p.requires_grad for p in model.network.parameters())


def test_predicting_in_between_does_not_change_training_by_a_bit():
    class Predicting(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.predictive(batch[0])

    curves = []
    for callbacks in ([], [Predicting()]):
        seed_everything(0, verbose=False)
        losses = Losses()
        fit(plain(small(dropout=0.5), mc_samples=2), 6, callbacks=[losses, *callbacks])
        curves.append(losses.losses)
    assert curves[0] == curves[1]


def test_evaluating_ends_with_every_module_in_the_mode_it_was_in():
    network = small(dropout=0.5, norm=True).train()
    network[2].eval()
    modes = [m.training for m in network.modules()]

    def fail():
        with eval_mode(network):
            assert not any(m.training for m in network.modules())
            assert not network(digits()).requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in network.modules()] == modes
    assert torch.is_grad_enabled()


def test_mutual_information_of_opposite_members_is_that_of_a_coin():
    """Two certain members that disagree: one bit, all of it between the members."""
    model = of_logits(2)
    members = [torch.tensor([[0.0, -1000.0]]), torch.tensor([[-1000.0, 0.0]])]
    model._bag = lambda x, seed: iter([part.log_softmax(1) for part in members])
    predictive = model.predictive(torch.zeros(1, 2))
    assert predictive.probabilities.tolist() == [[0.5, 0.5]]
    assert predictive.entropy.item() == predictive.mutual_information.item() == pytest.approx(math.log(2))


# Ensembles


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    """Three classifiers of digits after a few steps, the last one with averaged weights, each unlike the others."""
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


def test_members_are_no_part_of_the_model(checkpoints):
    model = load(checkpoints[0], ensemble=checkpoints[1:])
    trainer = quiet(limit_test_batches=1)
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert set(model.state_dict()) == set(load(checkpoints[0]).state_dict())
    assert "ensemble" not in model.hparams, "which would be paths of this machine"
    assert len(list(model.parameters())) == len(list(load(checkpoints[0]).parameters()))


def test_dropout_passes_and_members_make_one_bag(checkpoints):
    data = Digits(eval_batch_size=20)
    model = load(checkpoints[0], ensemble=checkpoints[1:2], mc_samples=3)
    (predicted,) = quiet(limit_predict_batches=1).predict(model, datamodule=data)
    x, passes = data.split("test")[0][:20], []
    for index, member in enumerate([load(checkpoints[0]), load(checkpoints[1])]):
        for number in range(3):
            seed = hash((0, 0, index, number)) % 2**63
            with torch.no_grad(), dropout_on(member, seed):
                passes.append(softmax(member(x)))
    np.testing.assert_allclose(predicted.probabilities, np.mean(passes, axis=0), rtol=1e-4, atol=1e-6)
    assert len({p.tobytes() for p in passes}) == 6


def test_members_that_do_not_fit_are_refused_with_one_line(checkpoints, tmp_path):
    paths = {name: str(tmp_path / f"{name}.ckpt") for name in ("gan", "shape", "classes", "text", "none", "own")}
    others = {
        "gan": GAN((1, 8, 8), 10, width=16, latent_dim=4),
        "shape": MLPClassifier((1, 4, 16), 10, 8, 1),
        "classes": MLPClassifier((1, 8, 8), 3, 8, 1),
        "own": plain(),
    }
    for name, model in others.items():
        trainer = quiet()
        trainer.strategy.connect(model)
        trainer.save_checkpoint(paths[name])
    Path(paths["text"]).write_text("hello")
    expected = {
        "gan": "in ensemble holds no classifier of samples of the shape (1, 8, 8)",
        "shape": "in ensemble holds no classifier of samples of the shape (1, 8, 8)",
        "classes": "in ensemble has 3 classes, not 10",
        "text": "is not a checkpoint that can be read safely",
        "none": "in ensemble is not a file",
        "own": "zoo.models.classifier.Classifier is not in the zoo",
    }
    for name, message in expected.items():
        with pytest.raises(UserError) as error:
            quiet().test(load(checkpoints[0], ensemble=[checkpoints[1], paths[name]]), datamodule=Digits())
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
def test_a_checkpoint_gives_back_the_same_model(name, ema_half_life, tmp_path, checkpoints):
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
    assert checkpoint["model_class"] == f"zoo.{name}.module.{type(model).__name__}"
    assert set(checkpoint["hyper_parameters"]).isdisjoint({"network", "optimizer", "lr_scheduler", "ensemble"})


class OneSample(Digits):
    """Always the same sample, so that the order does not matter, in epochs of 18 batches of 32."""

    def load_split(self, train):
        x, y = super().load_split(train)
        return x[:1].expand(577, 1, 8, 8), y[:1].expand(577)


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    ends, path = [], tmp_path / "model.ckpt"
    for parts in ([2], [1, 2]):
        for number, epochs in enumerate(parts):
            seed_everything(0, verbose=False)
            model = plain(ema_half_life=100, lr_scheduler=lambda o: WarmupDecay(o, 0.25, 0.0, total_steps=36))
            trainer = quiet(max_epochs=epochs)
            trainer.fit(model, datamodule=OneSample(batch_size=32, val_size=1), ckpt_path=path if number else None)
            trainer.save_checkpoint(path)
        ends.append(model)
    for name, value in ends[0].state_dict().items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(ends[1].state_dict()[name], value)
    assert ends[0].ema.images == ends[1].ema.images == 36 * 32


# Ranks


def drawn_at(rank: int, model: ZooModule, monkeypatch) -> Tensor:
    monkeypatch.setattr(ZooModule, "global_rank", rank, raising=False)
    torch.manual_seed(7)
    torch.rand(3)  # the parameters
    model.on_train_start()
    return torch.rand(5)


@pytest.mark.parametrize("model", [ZooModule(), plain()], ids=["base", "classifier"])
def test_every_rank_draws_numbers_of_its_own_and_the_first_one_those_of_a_single_process(model, monkeypatch):
    torch.manual_seed(7)
    torch.rand(3)
    alone = torch.rand(5)
    draws = [drawn_at(rank, model, monkeypatch) for rank in range(3)]
    assert draws[0].equal(alone)
    assert len({tuple(draw.tolist()) for draw in draws}) == 3
    assert draws[2].equal(drawn_at(2, model, monkeypatch)), "and the same ones in every run"
