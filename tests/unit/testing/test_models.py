"""Each check of `check_model` finds the break that it is for, and nothing in a model that keeps the contract."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from zoo import MLPClassifier
from zoo.datamodules import Digits
from zoo.errors import UserError
from zoo.models.base import ZooModule, eval_mode
from zoo.models.predictions import Predictions
from zoo.seeding import SampleNoise
from zoo.testing import MODEL_CHECKS, ContractError, check_model

small_digits = partial(Digits, batch_size=8, eval_batch_size=50)


class Good(ZooModule):
    """A linear classifier of noisy digits, which also draws samples by class."""

    conditional = True

    def __init__(self, input_shape, num_classes, noise: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.input_shape, self.num_classes, self.noise = tuple(input_shape), num_classes, noise
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Dropout(0.1))
        self.optimizer = partial(torch.optim.SGD, lr=0.1)

    def loss(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.network(x + self.noise * torch.randn_like(x)), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", nn.functional.cross_entropy(self.network(x), y), sync_dist=True)

    def sample(self, n, *, labels=None, generator=None, seeds=None):
        with eval_mode(self):
            if seeds is not None:
                noise = SampleNoise(seeds, self.input_shape)()
            else:
                noise = torch.randn(n, *self.input_shape, generator=generator)
            return (self.network[1].weight[labels].view(n, *self.input_shape) + noise).clamp(-1, 1)


class Plain(LightningModule):
    """The same without the zoo's base class."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Dropout(0.5))

    training_step, validation_step, noise = Good.training_step, Good.validation_step, 0.0
    loss = Good.loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_model_that_keeps_the_contract_passes_every_check():
    check_model(Good, data=small_digits, noise=0.2)


def test_a_classifier_of_the_zoo_passes_on_the_default_data():
    check_model(MLPClassifier, checks=["training", "prediction"], width=8, depth=1)


class PassesItsArgumentsOn(Good):
    def __init__(self, *, width: int = 2, **kwargs) -> None:
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    "model", [PassesItsArgumentsOn, lambda num_classes, input_shape: Good(input_shape, num_classes)]
)
def test_shape_and_classes_of_the_data_reach_constructors_and_functions(model):
    check_model(model, data=small_digits, checks=["training", "checkpoint"])


# Breaks. The name of each class says what it does wrong.


class InfiniteLoss(Good):
    def loss(self, batch):
        return super().loss(batch) / 0


class DoesNotMove(Good):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(input_shape, num_classes)
        self.optimizer = partial(torch.optim.SGD, lr=0.0)


class HasAParameterWithoutOptimizer(Good):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(input_shape, num_classes)
        self.scale = nn.Parameter(torch.ones(()))


class HasAnUnusedLayer(Good):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(input_shape, num_classes)
        self.network.register_module("3", nn.Identity())
        self.network[3].register_parameter("unused", nn.Parameter(torch.ones(3)))


class LogsNothing(Good):
    def training_step(self, batch, batch_idx):
        return self.loss(batch)


class LogsNaN(Good):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.nan)


class Fails(Good):
    def training_step(self, batch, batch_idx):
        raise KeyError("no such thing")


class AssertsSomething(Good):
    def training_step(self, batch, batch_idx):
        assert len(batch) == 3


class FreezesItself(Good):
    def on_train_batch_end(self, *_):
        self.network[1].bias.requires_grad_(False)


class NeedsClassNames(Good):
    def on_train_start(self):
        super().on_train_start()
        len(self.trainer.datamodule.class_names)


class RefusesAutocast(Good):
    def loss(self, batch):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("not implemented for bfloat16")
        return super().loss(batch)


class CastsItself(Good):
    def on_train_end(self):
        self.network.bfloat16()


class ForgetsItsCounter(Good):
    count = 0

    def loss(self, batch):
        self.count += 1
        return super().loss(batch) / self.count


class KeepsItsGenerator(Good):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(input_shape, num_classes)
        self.__dict__["generator"] = torch.Generator().manual_seed(0)

    def loss(self, batch):
        return super().loss(batch) * torch.rand((), generator=self.generator)


class SavesASet(Good):
    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["seen"] = partial(print)


class HasATensorAsHyperparameter(Good):
    def __init__(self, input_shape, num_classes, weights: torch.Tensor | None = None) -> None:
        super().__init__(input_shape, num_classes)
        self.save_hyperparameters({"weights": torch.ones(2)})


class ForgetsItsHyperparameters(Good):
    def __init__(self, input_shape, num_classes, sizes=None) -> None:
        super().__init__(input_shape, num_classes)
        self._hparams.pop("num_classes")
        self._hparams.pop("sizes", None)

    @classmethod
    def load_from_checkpoint(cls, path, **options):
        options.pop("num_classes")
        return super().load_from_checkpoint(path, **options)


class ChangesOnLoading(Good):
    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        checkpoint["state_dict"] = {k: v + 1 for k, v in checkpoint["state_dict"].items()}


class HasExtraState(Good):
    def get_extra_state(self):
        return {"images": 3}

    def set_extra_state(self, state):
        pass


class StaysInEvalMode(Good):
    def sample(self, n, **options):
        samples = super().sample(n, **options)
        self.eval()
        return samples


class DrawsGlobally(Good):
    def sample(self, n, **options):
        torch.rand(())
        return super().sample(n, **options)


class DrawsOtherSamples(Good):
    calls = 0

    def sample(self, n, **options):
        self.calls += 1
        return (super().sample(n, **options) + 0.01 * self.calls).clamp(-1, 1)


class DrawsByTheBatch(Good):
    def sample(self, n, *, labels=None, generator=None, seeds=None):
        if seeds is not None:
            generator = torch.Generator().manual_seed(int(seeds.sum()))
        return super().sample(n, labels=labels, generator=generator)


class DrawsFlatSamples(Good):
    def sample(self, n, **options):
        return super().sample(n, **options).flatten(1)


class DrawsBrightSamples(Good):
    def sample(self, n, **options):
        return super().sample(n, **options) * 127.5


class DrawsWithGradients(Good):
    def sample(self, n, **options):
        return super().sample(n, **options) + 0 * self.network[1].weight.sum()


class CountsItsSamples(Good):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(input_shape, num_classes)
        self.register_buffer("drawn", torch.zeros(()))

    def sample(self, n, **options):
        self.drawn += n
        return super().sample(n, **options)


class TakesNoLabels(Good):
    def sample(self, n, *, generator=None):
        return super().sample(n, labels=torch.zeros(n, dtype=torch.int64), generator=generator)


class HasAShortTrajectory(Good):
    def trajectory(self, n, *, labels=None, generator=None):
        return self.sample(n, labels=labels, generator=generator)


class InterpolatesOneRow(Good):
    def interpolate(self, rows, steps, *, labels=None, generator=None):
        return self.sample(rows, labels=labels, generator=generator)[None]


class DecodesOneLatent(Good):
    def seeded_latents(self, seeds):
        return torch.zeros(len(seeds), 4)

    def sample_latents(self, latents, *, labels=None):
        return self.sample(1, labels=None if labels is None else labels[:1], generator=torch.Generator())


class PredictsLogits(MLPClassifier):
    def predictive(self, x, places=None):
        found = super().predictive(x, places)
        return Predictions(found.log_probabilities + 1, found.entropy, found.mutual_information, found.class_names)


class PredictsNoEntropy(MLPClassifier):
    def predictive(self, x, places=None):
        return super().predictive(x, places).probabilities


class PredictsByChance(MLPClassifier):
    calls = 0

    def predictive(self, x, places=None):
        self.calls += 1
        return super().predictive(x * self.calls, places)


class TrainsInDropout(MLPClassifier):
    def predictive(self, x, places=None):
        self.train()
        return super().predictive(x, places)


class DiffersByRank(Good):
    def on_train_end(self):
        with torch.no_grad():
            self.network[1].bias += self.global_rank


class LogsItsOwnRank(Good):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(self.global_rank))


class FailsOnRank1(Good):
    def on_train_start(self):
        super().on_train_start()
        if self.global_rank == 1:
            raise KeyError("only here")


BREAKS = [
    ("training", InfiniteLoss, "has a loss of NaN or Inf, the first in backward pass 1; lower the learning rate"),
    ("training", DoesNotMove, "the optimizer of DoesNotMove moves no parameter in eight batches"),
    ("training", HasAParameterWithoutOptimizer, "has no optimizer for scale; add it to configure_optimizers"),
    ("training", HasAnUnusedLayer, "never gives network.3.unused a gradient"),
    ("training", LogsNothing, "logs no train/loss; log it in training_step"),
    ("training", LogsNaN, "logs val/loss as NaN or Inf"),
    ("training", Fails, "does not train (KeyError: 'no such thing'); run Trainer.fit with it by itself"),
    ("training", AssertsSomething, "does not train (AssertionError: "),
    ("training", FreezesItself, "leaves network.1.bias with another requires_grad"),
    ("bare_data", NeedsClassNames, "does not train on a data module that has only batches (AttributeError: 'BareData'"),
    ("mixed_precision", RefusesAutocast, "does not train in bf16-mixed (RuntimeError: not implemented for bfloat16)"),
    ("mixed_precision", CastsItself, "changes the dtype of network.1.weight and 1 more in bf16-mixed"),
    ("resume", Plain, "resumed after batch 3 ends with another network.1.weight; subclass zoo.models.base.ZooModule"),
    ("resume", ForgetsItsCounter, "resumed after batch 3 ends with another network.1.weight"),
    ("resume", KeepsItsGenerator, "resumed after batch 3 ends with another network.1.weight"),
    ("resume", SavesASet, "the checkpoint of SavesASet does not load with weights_only=True"),
    ("checkpoint", HasATensorAsHyperparameter, "has the hyperparameter weights, which is no plain value"),
    ("checkpoint", ForgetsItsHyperparameters, "is not built from its checkpoint (UserError"),
    ("checkpoint", ChangesOnLoading, "loaded from a checkpoint has another network.1.weight"),
    ("state", HasExtraState, "has _extra_state in its state dict, which is no tensor; use register_buffer"),
    ("sampling", StaysInEvalMode, "in another mode; use zoo.models.base.eval_mode"),
    ("sampling", DrawsGlobally, "changes the global random state of torch; draw from the generator or by seeds"),
    ("sampling", DrawsOtherSamples, "draws other samples from the same generator"),
    ("sampling", DrawsByTheBatch, "draws other samples by the same seeds in another batch"),
    ("sampling", DrawsFlatSamples, "draws float32 (6, 64); return floats (6, 1, 8, 8) for n=6"),
    ("sampling", DrawsBrightSamples, "draws images from -128 to 128; clamp them to [-1, 1]"),
    ("sampling", DrawsWithGradients, "draws samples with gradients; use torch.no_grad in sample"),
    ("sampling", CountsItsSamples, "changes drawn by sampling or predicting"),
    ("sampling", TakesNoLabels, "does not sample (TypeError"),
    ("sampling", HasAShortTrajectory, "has a trajectory of float32 (2, 1, 8, 8); return (frames, 2, 1, 8, 8) for n=2"),
    ("sampling", InterpolatesOneRow, "interpolates float32 (1, 2, 1, 8, 8); return (2, 3, 1, 8, 8)"),
    ("sampling", DecodesOneLatent, "makes float32 (1, 1, 8, 8) of 2 latents; return (2, 1, 8, 8)"),
    ("prediction", PredictsLogits, "predicts float32 (6, 10); return probabilities (6, 10) with rows of sum 1"),
    ("prediction", PredictsNoEntropy, "predicts without probabilities and 2 more"),
    ("prediction", PredictsByChance, "predicts something else for the same samples"),
    ("prediction", TrainsInDropout, "in another mode; use zoo.models.base.eval_mode"),
    ("processes", DiffersByRank, "ends with another network.1.bias on another rank"),
    ("processes", LogsItsOwnRank, "logs another val/loss on another rank; log torchmetrics objects, or use sync_dist"),
    ("processes", Plain, "draws the same random numbers on every rank"),
    ("processes", FailsOnRank1, "does not train on 2 processes (RankError: on rank 1, KeyError: 'only here')"),
    ("processes", HasAnUnusedLayer, "does not train on 2 processes (RankError: on rank"),
]


@pytest.mark.parametrize(("check", "model", "sentence"), BREAKS, ids=[f"{c}-{m.__name__}" for c, m, _ in BREAKS])
def test_a_break_is_found_by_its_check(check, model, sentence):
    with pytest.raises(ContractError, match=re.escape(sentence)) as error:
        check_model(model, data=small_digits, checks=[check])
    message = str(error.value)
    assert model.__name__ in message
    assert "\n" not in message
    assert "; " in message, "what to do about it"


def test_every_check_has_a_break_that_it_finds():
    assert {check for check, *_ in BREAKS} == set(MODEL_CHECKS)


def test_a_model_that_cannot_be_built_and_an_unknown_check_are_named():
    with pytest.raises(AssertionError, match=r"Good cannot be built .*unexpected keyword argument 'width'"):
        check_model(Good, data=small_digits, width=3)
    with pytest.raises(UserError, match="check is 'speed'; choose one of training"):
        check_model(Good, data=small_digits, checks=["speed"])


def test_a_check_leaves_random_numbers_and_the_models_it_is_given_as_they_are():
    model = Good((1, 8, 8), 10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check_model(model, data=small_digits(), checks=["training", "sampling"])
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
