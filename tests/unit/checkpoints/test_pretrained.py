"""Saved models: every model of the zoo comes back from its folder as it was, and damage is one line."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.models import MODELS
from tests.unit.models.test_contract import CASES
from zoo import Classifier, MLPClassifier
from zoo.checkpoints.pretrained import read_pretrained, write_pretrained
from zoo.checkpoints.reading import load_model, read_checkpoint
from zoo.errors import UserError
from zoo.registry import find_class
from zoo.testing.runs import linked


def small() -> MLPClassifier:
    return MLPClassifier((1, 8, 8), 10, width=8, depth=1)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_as_it_was(name, tmp_path):
    cls: Any = find_class(name, "models")
    arguments = CASES[name](tmp_path)
    data = arguments.pop("data")()
    data.prepare_data()
    data.setup("fit")
    model = cls(**linked(cls, data, arguments))
    model.save_pretrained(tmp_path / "saved")
    loaded = cls.from_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert json.loads(json.dumps(dict(loaded.hparams))) == json.loads(json.dumps(dict(model.hparams)))
    there, here = loaded.state_dict(), model.state_dict()
    assert there.keys() == here.keys()
    for key, value in here.items():
        assert there[key].dtype == value.dtype and torch.equal(there[key], value), key


class Shared(nn.Module):
    """A network with a tied weight, two parts of one storage, and buffers of several types."""

    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        both = torch.arange(20)
        self.register_buffer("left", both[:10])
        self.register_buffer("right", both[10:])
        self.register_buffer("bytes", torch.arange(5, dtype=torch.uint8))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("turned", torch.rand(3, 4).t())

    def forward(self, x: Any) -> Any:
        return self.first(x.flatten(1)) + self.second(x.flatten(1))


def test_shared_memory_is_stored_once_and_an_own_network_is_handed_in_again(tmp_path):
    model = Classifier((1, 8, 8), 10, network=Shared)
    model.save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert len(names & {"network.first.weight", "network.second.weight"}) == 1
    with pytest.raises(UserError, match=r"the network is one of your own, .*Shared.*: hand it in again"):
        load_model(tmp_path / "saved")
    loaded = Classifier.from_pretrained(tmp_path / "saved", network=Shared)
    assert loaded.network.second.weight is loaded.network.first.weight
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert "network=Shared" in (tmp_path / "saved" / "README.md").read_text()


def test_others_may_read_the_weights_as_well_as_the_config(tmp_path):
    small().save_pretrained(tmp_path / "saved")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1


class Mine(MLPClassifier):
    """A class that is not in the zoo."""


def test_a_class_of_ones_own_loads_itself_and_nothing_else_loads_it(tmp_path):
    Mine((1, 8, 8), 10, width=8, depth=1).save_pretrained(tmp_path / "saved")
    assert type(Mine.from_pretrained(tmp_path / "saved")) is Mine
    with pytest.raises(UserError, match="Mine is not in the zoo"):
        load_model(tmp_path / "saved")


def change(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_damage_is_one_line(tmp_path):
    folder = tmp_path / "saved"

    def fails(message: str, **entries: Any) -> None:
        small().save_pretrained(folder, overwrite=True)
        change(folder, **entries)
        with pytest.raises(UserError, match=message) as raised:
            load_model(folder)
        assert "\n" not in str(raised.value)

    fails("written by a newer version of lightning-zoo", format=99)
    fails("is damaged: data has the class_names", data={"class_names": 3})
    fails("is damaged: monitor", monitor=3)
    fails("has no hyper_parameters", hyper_parameters=3)
    fails("it has no model_class", model_class=None)
    fails("os.system is not in the zoo", model_class="os.system")
    fails(
        "does not hold a MLPClassifier .*size mismatch",
        hyper_parameters={"input_shape": [1, 8, 8], "num_classes": 9, "width": 8, "depth": 1},
    )
    fails("does not hold a MLPClassifier", hyper_parameters={})
    fails("its hyperparameter width is 'wide'", hyper_parameters={"width": "wide"})
    fails("callbacks is 3", callbacks=3)
    for shared in ('{"a": "gone"}', "[1]", '{"a": {}}', "[" * 100_000):
        small().save_pretrained(folder, overwrite=True)
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"shared": shared})
        with pytest.raises(UserError, match="safetensors is damaged"):
            read_checkpoint(folder)
    for name, message in {
        "config.json": "config.json cannot be read",
        "model.safetensors": "safetensors is damaged",
    }.items():
        small().save_pretrained(folder, overwrite=True)
        (folder / name).write_bytes(b"\xff{")
        with pytest.raises(UserError, match=message):
            read_checkpoint(folder)


def test_what_the_files_cannot_hold_is_refused(tmp_path):
    description = {"model_class": "x", "hyper_parameters": {"optimizer": torch.optim.Adam}}
    with pytest.raises(UserError, match=r"hyperparameter optimizer .* ignore of save_hyperparameters"):
        write_pretrained(tmp_path, description, {})
    with pytest.raises(UserError, match="hyperparameter lr holds inf"):
        write_pretrained(tmp_path, {"hyper_parameters": {"lr": float("inf")}}, {})
    with pytest.raises(UserError, match="steps in the model's state is a int, not a tensor"):
        write_pretrained(tmp_path, {"hyper_parameters": {}}, {"steps": 3})
    with pytest.raises(UserError, match="w is not on this process alone"):
        write_pretrained(tmp_path, {"hyper_parameters": {}}, {"w": torch.empty(3, device="meta")})
    assert not list(tmp_path.iterdir())


class Foreign(LightningModule):
    """A LightningModule that knows nothing of the zoo."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, width)


def test_any_lightning_module_can_be_saved(tmp_path):
    from zoo.sharing.saving import save_pretrained

    model = Foreign(3)
    save_pretrained(model, tmp_path / "saved")
    assert read_pretrained(tmp_path / "saved")["hyper_parameters"] == {"width": 3}
    loaded = load_model(tmp_path / "saved", Foreign)
    assert torch.equal(loaded.layer.weight, model.layer.weight)
