"""What an object offers of a contract, and what is said about what it lacks."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace
from typing import Protocol

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import contracts
from zoo.contracts import (
    Adversarial,
    ClassNames,
    Conditional,
    Data,
    Generative,
    KnownDensity,
    KnownDistribution,
    KnownModes,
    MirrorSymmetry,
    ReferenceSamples,
    SequencePairs,
    Tokens,
    WholeSplits,
    accepts,
    data_of,
    is_conditional,
    lacking,
    left_out,
    members,
    offers,
    require,
)
from zoo.datamodules import Digits, Points, Sequences
from zoo.errors import UserError

CLASSES = [value for value in vars(contracts).values() if inspect.isclass(value)]
CONTRACTS = [value for value in CLASSES if value.__module__ == contracts.__name__]


class Bare(LightningDataModule):
    """Has nothing of the contracts."""


class WithDiscriminator(LightningModule):
    """Its discriminator is a submodule, which is not an attribute of the class or in `__dict__`."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = nn.Linear(2, 1)


def test_contracts_name_methods_and_attributes_also_of_the_contracts_that_they_extend():
    assert members(ReferenceSamples) == {"reference": True}
    assert members(Data) == {"input_shape": False, "num_classes": False}
    assert members(KnownDensity) == {**members(Data), "sample_points": True, "log_prob": True}
    assert members(contracts.ClassPrediction) == dict.fromkeys(
        ("probabilities", "entropy", "mutual_information"), False
    )


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if not c.__name__.endswith(("Network", "Factory"))])
def test_every_contract_has_members_and_is_lacked_by_an_object_without_them(contract):
    assert members(contract)
    assert not offers(object(), contract)
    assert len(lacking(object(), contract)) == len(members(contract))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_every_optional_contract_says_what_happens_without_it(contract):
    text = inspect.getdoc(contract)
    required = contract is Data or contract.__name__.endswith(("Network", "Factory", "Prediction"))
    assert required or "Without" in text


def test_data_modules_offer_what_they_have():
    digits, ring, moons = Digits(), Points("ring"), Points("moons")
    for data in (digits, ring, moons):
        assert all(offers(data, c) for c in (Data, ClassNames, MirrorSymmetry, ReferenceSamples, WholeSplits, Tokens))
    assert offers(ring, KnownDistribution) and offers(ring, KnownModes)
    assert offers(moons, KnownDistribution)
    assert not offers(moons, KnownModes), "centers are None"
    assert not offers(digits, KnownDistribution)
    assert offers(Sequences(), SequencePairs) and not offers(digits, SequencePairs)
    assert not offers(None, Data)


def test_a_submodule_counts_as_a_method():
    assert offers(WithDiscriminator(), Adversarial)
    assert lacking(LightningModule(), Adversarial) == ["discriminator()"]


def test_an_attribute_is_no_method():
    assert lacking(SimpleNamespace(sample=3), Generative) == ["sample()"]


def test_a_contract_of_ones_own_is_asked_in_the_same_way():
    class HasTemperature(Protocol):
        temperature: float

    assert offers(SimpleNamespace(temperature=0.0), HasTemperature)
    assert lacking(SimpleNamespace(temperature=None), HasTemperature) == ["temperature"]


def test_the_data_of_a_trainer_is_its_data_module_or_none():
    assert data_of(None) is None
    trainer = quiet_trainer(fast_dev_run=True)
    assert data_of(trainer) is None
    data = Digits()
    trainer.predict(PredictNothing(), datamodule=data)
    assert data_of(trainer) is data


class PredictNothing(LightningModule):
    def predict_step(self, batch, batch_idx):
        return torch.zeros(1)


def test_what_is_required_and_missing_is_named_with_the_remedy():
    require(Digits(), Points("ring"), KnownModes)
    with pytest.raises(UserError) as error:
        require(LightningModule(), Digits(), KnownModes, remedy="use Points")
    assert str(error.value) == "LightningModule needs centers and std, which Digits does not have: use Points"
    with pytest.raises(UserError, match=r"^Bare needs reference\(\), and there is no data module$"):
        require(Bare(), None, ReferenceSamples)


def test_what_is_left_out_is_one_line_logged_once_for_each_user(caplog):
    parts = {ReferenceSamples: "the floor of val/fd", WholeSplits: "val/excess", Tokens: "nothing"}
    user, other = LightningModule(), LightningModule()
    with caplog.at_level(logging.INFO):
        assert not left_out(user, Digits(), parts)
        assert not caplog.messages
        for who in (user, user, other):
            assert left_out(who, SimpleNamespace(tokens=False), parts)
    line = "LightningModule on SimpleNamespace leaves out the floor of val/fd (no reference()), val/excess (no split())"
    assert caplog.messages == [line, line]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        left_out(user, None, {ReferenceSamples: "the floor"})
    assert caplog.messages == ["LightningModule without a data module leaves out the floor (no reference())"]


def test_what_is_left_out_is_logged_on_rank_0_only(caplog, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with caplog.at_level(logging.INFO):
        assert left_out(LightningModule(), None, {ReferenceSamples: "the floor"})
    assert not caplog.messages


def test_a_function_accepts_its_own_arguments_only():
    def sample(n, *, seeds=None, **options): ...

    assert accepts(sample, "seeds") and accepts(sample, "n")
    assert not accepts(sample, "steps") and not accepts(sample, "options")


def test_factories_of_networks_are_types_that_the_command_line_understands():
    parser = ArgumentParser()
    parser.add_argument("--network", type=contracts.ClassifierNetworkFactory)
    options = [f"--network={__name__}.WideNetwork", "--network.width=7"]
    factory = parser.instantiate(parser.parse_args(options)).network
    network = factory((4,), 2)
    assert isinstance(network, WideNetwork)
    assert network(torch.zeros(3, 4)).shape == (3, 2)
    assert network.width == 7


class WideNetwork(nn.Linear):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 3) -> None:
        super().__init__(*input_shape, num_classes)
        self.width = width


def test_a_model_is_conditional_if_it_says_so():
    assert is_conditional(SimpleNamespace(conditional=True, num_classes=3))
    assert not is_conditional(SimpleNamespace(conditional=False, num_classes=3))
    assert not is_conditional(SimpleNamespace())
    assert set(members(Conditional)) == {"conditional", "num_classes"}
