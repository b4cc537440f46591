"""Fine-tuning: freezing by Lightning's callback, weights to start from, weights of the classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader

import zoo
from tests.helpers.checkpoints import save_untrained
from tests.unit.training import quiet_trainer
from zoo import Classifier
from zoo._lightning import after_each_batch
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models import DropoutMLP, PooledResNet, SimpleViT
from zoo.optim import WarmupDecay

SHAPE = (1, 8, 8)
EPOCHS, BATCHES, UNFROZEN = 4, 3, 2
DECAY = 0.5
RATE = 0.1


def data() -> Digits:
    """Data of three batches an epoch."""
    return Digits(batch_size=400)


class Small(nn.Module):
    """Two layers and a head, with batch norm."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()
        )
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x))


class Watch(Callback):
    """Keeps what the optimizer does: rates by parameter before each step, and the weights after it."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []
        self.decays: list[dict[str, float]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        names = {parameter: name for name, parameter in pl_module.network.named_parameters()}
        of = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
        self.rates.append({name: group["lr"] for name, group in of.items()})
        self.decays.append({name: group["weight_decay"] for name, group in of.items()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append({k: v.clone() for k, v in pl_module.network.state_dict().items()})


def decay_to_zero(step: int) -> float:
    return 1 - step / (EPOCHS * BATCHES)


DECAY_TO_ZERO = partial(LambdaLR, lr_lambda=decay_to_zero)


def small(scheduler: Any = DECAY_TO_ZERO, **options: Any) -> Classifier:
    seed_everything(0, verbose=False)
    optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.3)
    return Classifier(
        SHAPE, 10, Small(SHAPE, 10), layer_decay=DECAY, optimizer=optimizer, lr_scheduler=scheduler, **options
    )


def trainer_of(*callbacks: Callback, epochs: int = EPOCHS, **options: Any) -> Any:
    freeze = BackboneFinetuning(unfreeze_backbone_at_epoch=UNFROZEN, backbone_initial_ratio_lr=0.1, train_bn=False)
    return quiet_trainer(max_epochs=epochs, limit_val_batches=1, callbacks=[freeze, *callbacks], **options)


def trained(**options: Any) -> Watch:
    watch = Watch()
    trainer_of(watch).fit(small(**options), datamodule=data())
    return watch


@pytest.fixture(scope="module")
def watched() -> Watch:
    return trained(ema_half_life=100)


# Freezing and unfreezing


def test_a_frozen_backbone_keeps_its_kernels_and_trains_head_and_batch_norm(watched):
    first, last = watched.weights[0], watched.weights[UNFROZEN * BATCHES - 1]
    for name in ("backbone.1.weight", "backbone.1.bias", "backbone.4.weight"):
        assert first[name].equal(last[name])
    for name in ("head.weight", "backbone.2.weight", "backbone.2.running_mean"):
        assert not first[name].equal(last[name])


def test_an_unfrozen_backbone_is_trained(watched):
    frozen, end = watched.weights[UNFROZEN * BATCHES - 1], watched.weights[-2]  # the last rate is that of the last step
    assert all(not frozen[name].equal(end[name]) for name in frozen if "num_batches" not in name)


def test_rates_follow_the_callback_by_epoch_the_schedule_by_step_and_the_decay_by_layer(watched):
    assert len(watched.rates) == EPOCHS * BATCHES
    backbone = 0.0
    for step, rates in enumerate(watched.rates):
        head = RATE * decay_to_zero(step)
        assert rates["head.weight"] == pytest.approx(head)
        assert rates["backbone.2.bias"] == pytest.approx(head * DECAY**2), "in the optimizer from the start"
        if step < UNFROZEN * BATCHES:
            assert "backbone.4.weight" not in rates
            continue
        epoch, of_epoch = divmod(step, BATCHES)
        if of_epoch == 0:
            start = RATE * decay_to_zero(step)
            # The callback doubles the rate of the epoch before, which it had set at that epoch's start.
            backbone = 0.1 * start if epoch == UNFROZEN else min(start, 2 * backbone)
        expected = backbone * decay_to_zero(step) / decay_to_zero(epoch * BATCHES)
        assert rates["backbone.4.weight"] == rates["backbone.4.bias"] == pytest.approx(expected)
        assert rates["backbone.1.weight"] == rates["backbone.1.bias"] == pytest.approx(expected * DECAY)


def test_weight_decay_spares_the_biases_of_an_unfrozen_backbone(watched):
    decays = watched.decays[-1]
    assert {name for name, decay in decays.items() if decay} == {
        "head.weight",
        "backbone.1.weight",
        "backbone.4.weight",
    }
    assert set(decays.values()) == {0.0, 0.3}


@pytest.mark.parametrize("scheduler", [None, WarmupDecay, partial(WarmupDecay, warmup_steps=0.5, shape="cosine")])
def test_it_trains_with_the_schedules_of_the_zoo(scheduler):
    rates = trained(scheduler=scheduler).rates
    at = UNFROZEN * BATCHES
    assert rates[at]["backbone.4.weight"] == pytest.approx(0.1 * rates[at]["head.weight"])
    if scheduler is None:
        assert rates[-1]["backbone.4.weight"] == pytest.approx(0.2 * RATE)


def test_a_schedule_that_cannot_take_new_parameters_is_refused_at_the_start():
    watch = Watch()
    with pytest.raises(UserError, match=r"BackboneFinetuning adds parameters .* the schedule StepLR cannot take"):
        trainer_of(watch).fit(small(partial(StepLR, step_size=1)), datamodule=data())
    assert not watch.rates


def test_the_moving_average_follows_the_unfrozen_backbone():
    model = small(ema_half_life=50)
    start = model.ema.network.backbone[1].weight.clone()
    trainer_of(epochs=UNFROZEN).fit(model, datamodule=data())
    assert model.ema.network.backbone[1].weight.equal(start)
    model = small(ema_half_life=50)
    trainer_of().fit(model, datamodule=data())
    average = model.ema.network.backbone[1].weight
    assert not average.equal(start)
    assert (average - model.network.backbone[1].weight).norm() < (start - model.network.backbone[1].weight).norm()
    assert not any(p.requires_grad for p in model.ema.parameters())


class Save(Callback):
    """Writes a checkpoint after a number of steps, as StopOnSignal does in mid-epoch, and BestAndLast at its end."""

    def __init__(self, after: int, path: Path) -> None:
        self.after, self.path = after, path

    def on_train_start(self, trainer, pl_module):
        if self.after % BATCHES:
            after_each_batch(trainer, lambda: self.save(trainer))

    def on_validation_end(self, trainer, pl_module):
        self.save(trainer)

    def save(self, trainer):
        if trainer.global_step == self.after:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("after", "scheduler"), [(2, WarmupDecay), (6, WarmupDecay), (7, WarmupDecay), (9, WarmupDecay), (10, None)]
)
def test_a_run_resumes_exactly_before_and_after_the_unfreezing(after, scheduler, tmp_path):
    path = tmp_path / "mid.ckpt"
    whole, rest = Watch(), Watch()
    options = {"scheduler": scheduler, "ema_half_life": 100}
    complete = small(**options)
    trainer_of(whole, Save(after, path)).fit(complete, datamodule=data())
    resumed = small(**options)
    trainer_of(rest).fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    assert rest.rates == whole.rates[after:]
    assert rest.decays == whole.decays[after:]
    for mine, other in zip(rest.weights, whole.weights[after:], strict=True):
        assert all(mine[name].equal(other[name]) for name in mine)
    for name, value in complete.state_dict().items():
        if torch.is_tensor(value):
            assert value.equal(resumed.state_dict()[name]), name


def test_fsdp_is_refused_with_the_way_out():
    model, trainer = small(), trainer_of()
    model.trainer = trainer
    trainer.strategy.__class__ = type("Sharded", (ModelParallelStrategy, type(trainer.strategy)), {})
    with pytest.raises(UserError, match=r"BackboneFinetuning does not work with FSDP.*--config ddp.yaml"):
        model.setup("fit")


# Backbones


def test_the_backbone_is_the_attribute_of_the_network_or_everything_but_its_head():
    model = small()
    assert model.backbone is model.network.backbone
    pooled = Classifier(SHAPE, 10, partial(PooledResNet, widths=(4, 4, 4)))
    expected = [p for name, p in pooled.network.named_parameters() if not name.startswith("head")]
    assert [id(p) for p in pooled.backbone.parameters()] == [id(p) for p in expected]
    assert "backbone" not in dict(pooled.named_modules())


def test_a_network_without_a_backbone_cannot_be_frozen():
    model = Classifier(SHAPE, 10, partial(DropoutMLP, width=8, depth=1))
    with pytest.raises(UserError, match=r"^the network DropoutMLP has no backbone to freeze: take .* or head$"):
        trainer_of().fit(model, datamodule=Digits())


# Weights to start from


def pooled(classes: int = 10, width: int = 4, **options: Any) -> Classifier:
    return Classifier(SHAPE, classes, partial(PooledResNet, widths=(width, 4, 4)), **options)


@pytest.fixture
def source(tmp_path) -> tuple[Classifier, str]:
    torch.manual_seed(1)
    model = pooled()
    with torch.no_grad():
        for buffer in model.network.buffers():
            buffer.copy_(torch.randint(1, 9, buffer.shape))
    save_untrained(model, tmp_path / "source.ckpt")
    return model, str(tmp_path / "source.ckpt")


def test_another_number_of_classes_gets_a_new_last_layer(source):
    there, path = source
    torch.manual_seed(2)
    fresh = pooled(3)
    torch.manual_seed(2)
    here = pooled(3, init_from=path)
    for name, value in here.network.state_dict().items():
        assert value.equal((fresh if name.startswith("head") else there).network.state_dict()[name]), name


def test_the_same_number_of_classes_keeps_the_last_layer(source):
    there, path = source
    here = pooled(init_from=path)
    x = torch.randn(2, *SHAPE)
    assert here.eval()(x).equal(there.eval()(x))


def test_the_moving_average_is_what_training_starts_from_and_starts_there_too(tmp_path):
    there = pooled(ema_half_life=10)
    with torch.no_grad():
        there.ema.network.head.bias.fill_(7.0)
    save_untrained(there, tmp_path / "a.ckpt")
    here = pooled(init_from=str(tmp_path / "a.ckpt"), ema_half_life=10)
    assert (here.network.head.bias == 7).all()
    assert (here.ema.network.head.bias == 7).all()


def test_training_starts_from_a_saved_folder_of_averages_and_from_a_trained_model(tmp_path):
    there = pooled(ema_half_life=10)
    with torch.no_grad():
        there.ema.network.head.bias.fill_(7.0)
    folder = there.save_pretrained(tmp_path / "saved", averages_only=True)
    assert (pooled(init_from=str(folder)).network.head.bias == 7).all()
    trained = zoo.load("resnet-fashion-mnist")
    names = ("backbone", "depth", "widths", "whitening")
    options = {name: trained.hparams[name] for name in names}
    here = zoo.ResNetClassifier((1, 28, 28), 5, init_from="resnet-fashion-mnist", **options)
    average = trained.ema.network.state_dict()
    taken = [name for name, value in here.network.state_dict().items() if value.equal(average[name])]
    assert set(average) - set(taken) == {"head.weight", "head.bias"}, "all but the last layer, which has other classes"


def test_a_later_checkpoint_does_not_need_the_file(source, tmp_path):
    _, path = source
    save_untrained(pooled(3, init_from=path), tmp_path / "later.ckpt")
    Path(path).unlink()
    loaded = Classifier.load_from_checkpoint(tmp_path / "later.ckpt", weights_only=True)
    assert "init_from" not in loaded.hparams


def test_weights_that_do_not_fit_are_named(source, tmp_path):
    _, path = source
    with pytest.raises(UserError, match=r"init_from \S+nothing.ckpt is neither a checkpoint"):
        pooled(init_from=str(tmp_path / "nothing.ckpt"))
    with pytest.raises(UserError, match=r"init_from \S+ does not hold a PooledResNet .*: stem.1.weight is \(2,"):
        pooled(width=8, init_from=path)
    with pytest.raises(UserError, match=r"does not hold a SimpleViT .*: only the network has stem.weight"):
        Classifier(SHAPE, 10, partial(SimpleViT, layers=1, width=8, heads=2), init_from=path)
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    with pytest.raises(UserError, match="is not a checkpoint that can be read safely"):
        pooled(init_from=str(tmp_path / "junk.ckpt"))


# Weights of the classes


class Loss(Callback):
    def on_before_backward(self, trainer, pl_module, loss):
        self.loss = loss.item()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        x, self.y = batch
        self.log_p = pl_module.network(x).detach().log_softmax(1)


def first_loss(**options: Any) -> tuple[Classifier, Loss]:
    seed_everything(0, verbose=False)
    model, loss = Classifier(SHAPE, 10, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), **options), Loss()
    quiet_trainer(max_steps=1, limit_val_batches=0, callbacks=[loss]).fit(model, datamodule=Digits())
    return model, loss


def test_the_training_loss_is_the_mean_weighted_by_class():
    weights = [0.5 + c for c in range(10)]
    _, seen = first_loss(class_weights=weights)
    w = torch.tensor(weights)[seen.y]
    expected = (w * -seen.log_p[torch.arange(len(seen.y)), seen.y]).sum() / w.sum()
    assert seen.loss == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    model, seen = first_loss(class_weights="balanced")
    data = Digits()
    data.setup("fit")
    y = data.labels("train").numpy()
    expected = torch.tensor(compute_class_weight("balanced", classes=np.arange(10), y=y), dtype=torch.float32)
    torch.testing.assert_close(model.class_weight, expected)
    assert seen.loss == pytest.approx(F.nll_loss(seen.log_p, seen.y, expected).item(), rel=1e-5)
    assert model.hparams["class_weights"] == "balanced"
    assert "class_weight" not in model.state_dict()


def test_validation_is_not_weighted():
    losses = []
    for weights in (None, [1.0] * 9 + [100.0]):
        seed_everything(0, verbose=False)
        model = Classifier(SHAPE, 10, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), class_weights=weights)
        losses += [row["val/loss"] for row in quiet_trainer().validate(model, datamodule=Digits(), verbose=False)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "class_weights has 2 numbers, and there are 10 classes"),
        ([1.0] * 9 + [0.0], "all of them must be positive"),
        ([1.0] * 9 + [float("nan")], "all of them must be positive"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        Classifier(SHAPE, 10, "DropoutMLP", class_weights=weights)


def test_balanced_weights_need_labels_and_a_sample_of_every_class():
    data = Digits()
    data.setup("fit")
    model = Classifier(SHAPE, 10, "DropoutMLP", class_weights="balanced")
    x, y = data.split("train")
    loader = DataLoader(list(zip(x[:4], y[:4], strict=True)))
    with pytest.raises(UserError, match=r"data without a data module does not give .*: give a list of weights"):
        quiet_trainer(max_steps=1).fit(model, loader)

    class Lacking(Digits):
        def load_split(self, train):
            x, y = super().load_split(train)
            return x[y != 4], y[y != 4]

    with pytest.raises(UserError, match="class 4 has no training sample"):
        quiet_trainer(max_steps=1).fit(
            Classifier(SHAPE, 10, "DropoutMLP", class_weights="balanced"), datamodule=Lacking()
        )


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(UserError, match=r"layer_decay is .*; it must be above 0 and at most 1"):
        Classifier(SHAPE, 10, "DropoutMLP", layer_decay=decay)
