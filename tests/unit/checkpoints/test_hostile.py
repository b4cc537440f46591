"""Checkpoints as hostile files: nothing in them is run, nothing outside the run is touched, and damage is one line."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from tests.unit.training import quiet_trainer
from zoo import GAN, Classifier, ConsistencyModel, MLPClassifier
from zoo.callbacks import BestAndLastCheckpoint
from zoo.checkpoints.building import declared_arguments
from zoo.checkpoints.reading import check_checkpoint, load_model, read_checkpoint
from zoo.checkpoints.restoring import confine_paths
from zoo.datamodules import Digits
from zoo.errors import UserError

SIZE: dict[str, Any] = {"input_shape": (1, 8, 8), "num_classes": 10, "width": 8, "depth": 1}


def trainer(folder: Path, steps: int = 2, **options: Any) -> Any:
    return quiet_trainer(default_root_dir=folder, max_steps=steps, limit_val_batches=1, val_check_interval=1, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Contents of a checkpoint of a classifier, with the state of a ModelCheckpoint."""
    folder = tmp_path_factory.mktemp("trained")
    callbacks = [BestAndLastCheckpoint("val/loss"), ModelCheckpoint(folder / "checkpoints", "other")]
    trainer(folder, callbacks=callbacks, enable_checkpointing=True).fit(MLPClassifier(**SIZE), Digits(batch_size=200))
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def spoil(trained, tmp_path) -> Callable[..., Path]:
    """Writes the checkpoint with an entry replaced, or removed if the value is `...`."""

    def write(where: str, value: Any) -> Path:
        spoiled = copy.deepcopy(trained)
        *parents, last = where.split("/")
        holder = spoiled
        for name in parents:
            holder = holder[int(name) if isinstance(holder, list) else name]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
        torch.save(spoiled, tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return write


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A module `canary` that writes a file when it is imported, or its class is called."""
    (tmp_path / "canary.py").write_text(
        f"open({str(tmp_path / 'sung')!r}, 'w').close()\ninstantiate_module = Model = print\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "canary", raising=False)
    return tmp_path / "sung"


@pytest.mark.parametrize("instantiator", ["canary.instantiate_module", "lightning.pytorch.cli.instantiate_module"])
def test_nothing_that_a_checkpoint_names_is_imported_or_called(instantiator, canary, spoil, tmp_path, monkeypatch):
    # An older Lightning calls whatever is named; the newest one calls what this list has.
    monkeypatch.setattr("lightning.pytorch.core.saving._ALLOWED_INSTANTIATORS", {instantiator})
    path = spoil("hyper_parameters", {**SIZE, "_instantiator": instantiator, "_class_path": "canary.Model"})
    assert load_model(path).num_classes == 10
    assert MLPClassifier.load_from_checkpoint(path).num_classes == 10
    trainer(tmp_path, 3).fit(MLPClassifier(**SIZE), Digits(batch_size=200), ckpt_path=path)
    trainer(tmp_path).test(MLPClassifier(**SIZE), Digits(), ckpt_path=path)
    for name in ("network", "init_from"):
        path = spoil("hyper_parameters", {**SIZE, name: {"class_path": "canary.Model"}})
        if name == "init_from":
            with pytest.raises(UserError, match="its hyperparameter init_from is a dict, which MLPClassifier does not"):
                load_model(path)
    path = spoil("model_class", "canary.Model")
    with pytest.raises(UserError, match=r"canary\.Model is not in the zoo"):
        load_model(path)
    assert not canary.exists()


def test_the_canary_sings_when_it_is_imported(canary):
    __import__("canary")
    assert canary.exists()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("state_dict", [], "has no state_dict"),
        ("state_dict/network.layers.0.weight", 3, "is 3, not the name of a whole tensor"),
        ("state_dict/x", torch.zeros(1).expand(10**12), "'x' in its state_dict is a Tensor, not the name of a whole"),
        ("state_dict/x", torch.zeros(3).to_sparse(), "not the name of a whole tensor"),
        ("hyper_parameters", [1, 2], "hyper_parameters is a list, not a mapping"),
        ("pytorch-lightning_version", 3, "version is 3, not a version"),
        ("global_step", "many", "global_step is 'many', not a whole number"),
        ("loops", {"fit_loop": 3}, "loops is a dict, not a mapping of names to states of loops"),
        ("callbacks", "junk", "callbacks is 'junk'"),
        ("callbacks", {3: {}}, "callbacks is a dict, not a mapping of names to states"),
        ("optimizer_states", [{"state": {}}], "optimizer_states is a list, not a list of states of optimizers"),
        ("lr_schedulers", {"a": 1}, "lr_schedulers is a dict"),
        ("training", {"random": 3, "window": None}, "training is a dict, not the random states"),
        ("logged", {"CSV": -1}, "logged is a dict"),
        ("format", "1", "written by a newer version"),
    ],
)  # fmt: skip
def test_damaged_structure_is_one_line_when_it_is_read(where, value, message, spoil):
    with pytest.raises(UserError, match=message) as raised:
        read_checkpoint(spoil(where, value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("width", "8", "hyperparameter width is '8', which MLPClassifier does not take"),
        ("width", True, "width is True"),
        ("width", 2 * 10**6, "of a much larger model than the one whose weights it holds"),
        ("width", 10**30, "does not hold a MLPClassifier"),
        ("depth", 10**9, "of a much larger model"),
        ("input_shape", (3, 10**5, 10**5), "input_shape has more than 67108864 numbers"),
        ("input_shape", "1", "input_shape is '1'"),
        ("class_weights", "even", "class_weights is 'even'"),
        ("ensemble", ["a", 3], "ensemble is a list"),
        ("num_classes", -1, "at least 2 classes"),
    ],
)
def test_hyperparameters_of_other_types_or_sizes_are_one_line(name, value, message, spoil):
    path = spoil("hyper_parameters", {**SIZE, "unknown": object.__name__, name: value})
    with pytest.raises(UserError, match=message) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)


class Open(LightningModule):
    """A module that takes any argument, one that takes a mapping, and what other types there are."""

    def __init__(self, width: int = 2, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, width)


def test_arguments_are_those_of_the_class_and_its_bases(tmp_path):
    names, open_ended = declared_arguments(MLPClassifier)
    assert {"width", "ensemble", "ema_half_life"} <= names.keys() and not open_ended
    names, open_ended = declared_arguments(ConsistencyModel)
    assert {"teacher", "network", "steps"} <= names.keys() and not open_ended
    assert declared_arguments(Open) == ({"width": int}, True)
    held = {"state_dict": Open(3).state_dict(), "hyper_parameters": {"width": 3, "more": 1, "_instantiator": "x"}}
    torch.save(held, tmp_path / "a.ckpt")
    assert dict(load_model(tmp_path / "a.ckpt", Open).hparams) == {"width": 3, "more": 1}


def test_weights_that_are_not_finite_are_refused_by_their_name(spoil, trained):
    name = "network.head.bias"
    name = name if name in trained["state_dict"] else next(iter(trained["state_dict"]))
    bad = trained["state_dict"][name].clone()
    bad.view(-1)[-1] = float("nan")
    path = spoil("state_dict", {**trained["state_dict"], name: bad})
    for call in (lambda: load_model(path), lambda: check_checkpoint(path, MLPClassifier(**SIZE))):
        with pytest.raises(UserError, match=rf"cannot be loaded: {re.escape(name)} in it holds NaN or Inf"):
            call()


class Masked(nn.Module):
    """A network with an infinite buffer, as in a mask of attention."""

    def __init__(self, shape: Any, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def forward(self, x: Any) -> Any:
        return self.layer(x.flatten(1))


def test_a_buffer_that_is_infinite_by_design_is_not_refused(tmp_path):
    model = Classifier((1, 8, 8), 10, network=Masked)
    held = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save(held, tmp_path / "a.ckpt")
    assert load_model(tmp_path / "a.ckpt", Classifier, network=Masked).num_classes == 10


def resume(path: Path, folder: Path, **options: Any) -> None:
    callbacks = [BestAndLastCheckpoint("val/loss"), ModelCheckpoint(folder / "checkpoints", "other")]
    made = trainer(folder, 4, callbacks=callbacks, enable_checkpointing=True)
    made.fit(MLPClassifier(**SIZE, **options), Digits(batch_size=200), ckpt_path=path)


def state_of(trained: dict[str, Any], name: str) -> str:
    return next(key for key in trained["callbacks"] if key.startswith(name))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("optimizer_states", ..., "it has no optimizer_states: it holds weights"),
        ("optimizer_states", [], "the states of 0 optimizers, and this model 1"),
        ("optimizer_states/0/param_groups", [], "other groups of parameters than this"),
        ("optimizer_states/0/state", {0: {"exp_avg": torch.zeros(1)}}, "does not fit: "),
        ("lr_schedulers/0/last_epoch", "x", "last_epoch is 'x', not a int"),
        ("loops/fit_loop/epoch_progress", {"total": {}}, "epoch_progress lacks current"),
        ("loops/fit_loop/epoch_progress/current/ready", None, "ready is None, not a int"),
        ("loops/fit_loop", ..., "fit_loop is None"),
        ("loops/fit_loop/state_dict/combined_loader", [{"position": "x"}], "the position in the training data"),
        ("training/random", [{"torch": 3}], "the random states or the window in the checkpoint are damaged"),
    ],
)
def test_a_damaged_state_of_the_training_is_one_line(where, value, message, spoil, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        resume(spoil(where, value), tmp_path)
    assert "\n" not in str(raised.value)


def test_an_undamaged_state_is_resumed_and_another_optimizer_is_named(spoil, tmp_path):
    path = spoil("epoch", 0)
    resume(path, tmp_path)
    with pytest.raises(UserError, match="it was trained with another optimizer than SGD"):
        resume(path, tmp_path, optimizer=lambda groups: torch.optim.SGD(groups, 0.1))


def test_nothing_outside_of_the_run_is_deleted(spoil, trained, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "work.txt").write_text("a month's")
    for folder in (tmp_path / "run" / "checkpoints", tmp_path / "elsewhere"):
        path = f"{folder}/../../victim"
        evil = {
            "dirpath": str(folder), "best_model_score": torch.tensor(torch.inf), "current_score": None,
            "best_model_path": path, "kth_best_model_path": path, "last_model_path": path,
            "best_k_models": {path: torch.tensor(torch.inf)}, "kth_value": torch.tensor(torch.inf),
        }  # fmt: skip
        states = {state_of(trained, name): evil for name in ("BestAndLastCheckpoint", "ModelCheckpoint")}
        resume(spoil("callbacks", states), tmp_path / "run")
        assert (victim / "work.txt").exists()


def test_paths_of_a_moved_run_are_found_and_others_forgotten(tmp_path):
    (tmp_path / "best.ckpt").touch()
    score = torch.tensor(0.5)
    state = {
        "best_model_score": score, "current_score": score, "kth_value": score, "last_model_path": "/old/gone.ckpt",
        "best_model_path": "/old/best.ckpt", "best_k_models": {"/old/best.ckpt": score, "/old/gone.ckpt": score},
        "kth_best_model_path": "/old/best.ckpt", "dirpath": "/old",
    }  # fmt: skip
    here = str(tmp_path / "best.ckpt")
    moved = confine_paths(state, tmp_path)
    assert moved == {
        **state, "dirpath": tmp_path, "best_model_path": here, "kth_best_model_path": here, "last_model_path": "",
        "best_k_models": {here: score},
    }  # fmt: skip
    gone = confine_paths({**state, "best_model_path": "/old/gone.ckpt"}, tmp_path)
    assert gone["best_model_path"] == "" and gone["best_k_models"] == {} and gone["best_model_score"] is None
    for spoiled in ({"best_model_path": 3}, {"best_k_models": [1]}, {"best_model_score": "best"}):
        with pytest.raises(UserError, match="in the state of ModelCheckpoint is"):
            confine_paths({**state, **spoiled}, tmp_path)


def test_a_gans_own_entry_is_checked(tmp_path):
    model = GAN((2,), 0)
    held = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "penalty": "high"}
    torch.save(held, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="penalty in the checkpoint is a str"):
        load_model(tmp_path / "a.ckpt", GAN)


ODD: list[Any] = [
    ..., None, True, -1, 0, 3, 10**20, 0.5, float("nan"), "", "x", "../../x", [], [[]], [3], {}, {"a": 1}, {3: {}},
    torch.zeros(()), torch.zeros(2, 3), torch.full((2,), torch.nan), torch.zeros(0), torch.zeros(1).expand(10**9),
]  # fmt: skip


def spoiled(contents: dict[str, Any], changes: list[tuple[float, Any]]) -> dict[str, Any]:
    """Contents with entries replaced or removed; the places are drawn among the entries of each level."""
    result = copy.deepcopy(contents)
    for share, value in changes:
        holder: Any = result
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[int(share * len(keys))]
            share = share * len(keys) % 1
            inner = holder[key]
            if isinstance(inner, (dict, list)) and inner and share > 0.1:
                holder, share = inner, (share - 0.1) / 0.9
                continue
            if value is not ...:
                holder[key] = value
            else:
                del holder[key]
            break
    return result


ASKED = os.environ.get("ZOO_FUZZ_EXAMPLES")
SPOILED = st.lists(st.tuples(st.floats(0, 0.9999), st.sampled_from(ODD)), min_size=1, max_size=3)
FUZZ: dict[str, Any] = {"deadline": None, "database": None, "derandomize": ASKED is None}
FUZZ["suppress_health_check"] = list(HealthCheck)


def answers(call: Callable[[], object]) -> bool:
    """Whether a call succeeds; else it must raise a UserError of one line."""
    message = ""
    try:
        call()
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    return not message


@settings(max_examples=int(ASKED or 25), **FUZZ)
@given(SPOILED)
def test_a_spoiled_checkpoint_is_loaded_or_answered(trained, tmp_path, changes):
    torch.save(spoiled(trained, changes), tmp_path / "a.ckpt")
    answers(lambda: load_model(tmp_path / "a.ckpt"))


@settings(max_examples=int(ASKED or 12), **FUZZ)
@given(SPOILED)
def test_a_spoiled_checkpoint_is_resumed_or_answered(trained, tmp_path, changes):
    path = tmp_path / "a.ckpt"
    states = ("callbacks", "loops", "lr_schedulers", "optimizer_states", "training")
    torch.save({**trained, **spoiled({name: trained[name] for name in states}, changes)}, path)
    if answers(lambda: check_checkpoint(path, MLPClassifier(**SIZE), resumes=True)):
        answers(lambda: resume(path, tmp_path))
