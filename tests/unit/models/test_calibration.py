"""Temperature scaling of a classifier: when the temperature is fitted, which checkpoint holds it, what it changes."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.unit.training import MemoryLogger, quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.checkpoints.reading import load_model
from zoo.datamodules import Digits, InMemoryDataModule
from zoo.errors import UserError
from zoo.metrics import fit_temperature
from zoo.models.classifier import Classifier

OVERCONFIDENCE = 4.0
CLASSES = 5


class Overconfident(InMemoryDataModule):
    """Samples are logits, four times as large as those that the labels are drawn from."""

    input_shape, num_classes, mirror_symmetric = (CLASSES,), CLASSES, True

    def load_split(self, train):
        generator = torch.Generator().manual_seed(int(train))
        logits = 1.5 * torch.randn(3000, CLASSES, generator=generator)
        y = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
        return OVERCONFIDENCE * logits, y


class Scaled(nn.Module):
    """Samples are logits, up to a factor, the only parameter."""

    def __init__(self, *_: object) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def model_of_logits(**options) -> Classifier:
    return Classifier((CLASSES,), CLASSES, Scaled(), **({"optimizer": still, "lr_scheduler": None} | options))


def data() -> Overconfident:
    return Overconfident(val_size=1000, batch_size=500, eval_batch_size=300)


def train(model: Classifier, **options):
    trainer = quiet_trainer(**({"max_epochs": 1, "limit_train_batches": 1} | options))
    trainer.fit(model, datamodule=data())
    return trainer


def test_an_overconfident_classifier_is_calibrated_and_keeps_its_accuracy():
    logger, calibrated, plain = MemoryLogger(), model_of_logits(calibrate=True), model_of_logits()
    trainer = train(calibrated, logger=logger)
    assert calibrated.temperature.item() == pytest.approx(OVERCONFIDENCE, rel=0.1)
    (after,) = trainer.test(calibrated, datamodule=data(), verbose=False)
    (before,) = train(plain).test(plain, datamodule=data(), verbose=False)
    assert plain.temperature == 1 and not {name for name in before if "uncalibrated" in name}
    assert before["test/ece"] > 0.15 and after["test/ece"] < 0.03
    assert after["test/ece_uncalibrated"] == pytest.approx(before["test/ece"], abs=1e-4)
    assert after["test/nll_uncalibrated"] == pytest.approx(before["test/nll"], rel=1e-4)
    assert after["test/nll"] < 0.7 * before["test/nll"]
    assert after["test/acc"] == before["test/acc"]
    (logged,) = (row for _, row in logger.rows if "val/temperature" in row)
    assert logged["val/temperature"] == pytest.approx(calibrated.temperature.item())
    assert logged["val/nll_uncalibrated"] == pytest.approx(logged["val/loss"], rel=1e-4), "val/loss stays as it is"
    assert logged["val/nll_calibrated"] < 0.7 * logged["val/nll_uncalibrated"]


def test_logits_and_predictions_are_divided_by_the_temperature():
    model, x = model_of_logits().eval(), torch.randn(4, CLASSES)
    model.temperature.fill_(2.0)
    assert model(x).equal(x / 2)
    torch.testing.assert_close(model.predictive(x).probabilities, (x / 2).softmax(1))
    torch.testing.assert_close(model.predictive(x, calibrated=False).probabilities, x.softmax(1))


def test_each_checkpoint_holds_the_temperature_of_the_validation_before_it(tmp_path):
    class Grow(Callback):
        """Doubles the logits in every epoch, and keeps what is fitted."""

        def __init__(self):
            self.fitted: list[float] = []

        def on_train_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.network.factor.mul_(2 if trainer.current_epoch else 1)

        def on_train_epoch_end(self, trainer, pl_module):
            self.fitted.append(pl_module.temperature.item())

    model, grow = model_of_logits(calibrate=True), Grow()
    best = BestAndLastCheckpoint("val/loss")
    train(model, max_epochs=3, callbacks=[grow, best], default_root_dir=tmp_path, enable_checkpointing=True)
    assert grow.fitted == pytest.approx([grow.fitted[0] * 2**k for k in range(3)], rel=1e-3)
    loaded = {path: load_model(path, network=Scaled()) for path in (best.best_model_path, best.last_model_path)}
    first, last = loaded.values()
    assert (first.temperature.item(), last.temperature.item()) == (grow.fitted[0], grow.fitted[2])
    assert first.network.factor.item() == 1 and last.network.factor.item() == 4
    x = torch.randn(3, CLASSES)
    torch.testing.assert_close(first.predict(x).probabilities, last.predict(x).probabilities, rtol=1e-2, atol=1e-3)


def test_the_averaged_network_is_what_is_calibrated():
    model = model_of_logits(calibrate=True, ema_half_life=1e9)
    with torch.no_grad():
        model.ema.network.factor.fill_(0.5)
    quiet_trainer(max_epochs=1, limit_train_batches=1, callbacks=[Keep()]).fit(model, datamodule=data())
    assert model.temperature.item() == pytest.approx(OVERCONFIDENCE / 2, rel=0.1)


class Keep(Callback):
    """Undoes the first update of the average, which forgets its initial value."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        with torch.no_grad():
            pl_module.ema.network.factor.fill_(0.5)


def test_the_sanity_check_and_validation_alone_fit_nothing():
    class After(Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            self.temperature = pl_module.temperature.item()

    model, after = model_of_logits(calibrate=True), After()
    train(model, num_sanity_val_steps=2, callbacks=[after])
    assert after.temperature == 1
    x, y = data_split("val")
    assert model.temperature.item() == pytest.approx(fit_temperature(x, y).temperature, rel=1e-4), (
        "without their batches"
    )
    model.temperature.fill_(1.0)
    quiet_trainer().validate(model, datamodule=data(), verbose=False)
    assert model.temperature == 1


def data_split(name: str) -> tuple[Tensor, Tensor]:
    module = data()
    module.setup("fit")
    return module.split(name)


def test_the_temperature_is_that_of_the_average_with_mirror_images():
    model = Classifier((1, 8, 8), 10, Tilted(), flip_tta=True, calibrate=True, optimizer=still, lr_scheduler=None)
    module = Digits()
    module.mirror_symmetric = True
    quiet_trainer(max_epochs=1, limit_train_batches=1).fit(model, datamodule=module)
    x, y = module.split("val")
    with torch.no_grad():
        logits = (model.network(x) + model.network(x.flip(-1))) / 2
    assert model.temperature.item() == pytest.approx(fit_temperature(logits, y).temperature, rel=1e-3)
    assert abs(model.temperature.item() / fit_temperature(model.network(x), y).temperature - 1) > 0.01


class Tilted(nn.Sequential):
    """A linear network, whose logits of a mirror image differ."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


def test_a_checkpoint_without_a_temperature_is_calibrated_on_the_validation_split_when_it_is_tested(caplog):
    model = model_of_logits(calibrate=True)
    with caplog.at_level("INFO"):
        (metrics,) = quiet_trainer().test(model, datamodule=data(), verbose=False)
    x, y = data_split("val")
    expected = fit_temperature(x, y)
    assert model.temperature.item() == pytest.approx(expected.temperature, rel=1e-4)
    assert metrics["test/ece"] < 0.03 < metrics["test/ece_uncalibrated"]
    line = f"Temperature {expected.temperature:.3f}, fitted on the validation split, whose NLL falls from"
    assert any(message.startswith(line) for message in caplog.messages)
    model.temperature.fill_(2.5)
    quiet_trainer().test(model, datamodule=data(), verbose=False)
    assert model.temperature == 2.5, "one that is there is kept"


def test_every_member_of_an_ensemble_has_its_own_temperature(tmp_path):
    paths = []
    for number, temperature in enumerate((2.0, 5.0)):
        model = MLPClassifier((1, 8, 8), 10, width=8, depth=1).eval()
        model.temperature.fill_(temperature)
        trainer = quiet_trainer()
        trainer.strategy.connect(model)
        paths.append(tmp_path / f"{number}.ckpt")
        trainer.save_checkpoint(paths[-1])
    first, second = (load_model(str(path)) for path in paths)
    both = MLPClassifier.load_from_checkpoint(paths[0], weights_only=True, ensemble=[str(paths[1])]).eval()
    x = torch.rand(3, 1, 8, 8)
    mean = (first.predictive(x).probabilities + second.predictive(x).probabilities) / 2
    torch.testing.assert_close(both.predictive(x).probabilities, mean)
    raw = (first.network(x).softmax(1) + second.network(x).softmax(1)) / 2
    torch.testing.assert_close(both.predictive(x, calibrated=False).probabilities, raw)


def test_calibration_without_a_validation_split_is_refused():
    with pytest.raises(UserError, match="calibrate fits a temperature on the validation split, and this run has no"):
        train(model_of_logits(calibrate=True), limit_val_batches=0)
    loader = DataLoader(TensorDataset(torch.randn(8, CLASSES), torch.arange(8) % CLASSES))
    with pytest.raises(UserError, match="there is no data module that has one: test with a data module, or leave out"):
        quiet_trainer().test(model_of_logits(calibrate=True), loader, verbose=False)
