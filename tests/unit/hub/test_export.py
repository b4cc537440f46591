"""`zoo.export`: what the files compute, what they say about themselves, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import zoo
from tests.helpers.models import MODELS
from tests.helpers.networks import residual_mlp
from tests.unit.models.test_contract import CASES
from zoo.checkpoints.format import TrainingData
from zoo.errors import UserError
from zoo.hub import export as exporting
from zoo.hub import export_formats
from zoo.models.base import eval_mode
from zoo.models.exports import run_once
from zoo.pictures.preprocessing import Preprocessing
from zoo.registry import find_class
from zoo.seeding import SampleNoise
from zoo.testing.runs import linked


def tiny_model(name: str, folder: Path) -> LightningModule:
    """A tiny untrained model of a class in the registry, whose networks are not zero."""
    case = CASES[name](folder)
    data = case.pop("data")()
    cls = find_class(name)
    model = cls(**linked(cls, data, case))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def classifier() -> zoo.MLPClassifier:
    model = zoo.MLPClassifier((1, 8, 8), 3, width=8, depth=1, ema_half_life=100, flip_tta=True)
    model.trained_on = TrainingData(("a", "b", "c"), Preprocessing((8, 8), 1))
    for parameter in model.network.parameters():  # which the average is not
        nn.init.ones_(parameter)
    return model


# Every model of the registry


@pytest.mark.parametrize("name", MODELS)
def test_every_part_of_every_model_has_the_output_that_it_names(name, tmp_path):
    model = tiny_model(name, tmp_path)
    for part in exporting.part_methods(model):
        with eval_mode(model):
            built = exporting.build_part(model, part, {})
            output = run_once(built, name)
        assert output.shape == (1, *(built.longest.get(side, side) for side in built.output_shape)), part
        assert output.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "part"), [*((name, None) for name in MODELS), ("Diffusion", "denoiser")])
def test_onnxruntime_computes_what_every_model_computes(name, part, tmp_path):
    report = zoo.export(tiny_model(name, tmp_path), tmp_path / "a.onnx", part=part)
    assert report.difference is not None and report.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [value.name for value in session.get_inputs()] == list(report.metadata["inputs"])
    named = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
    described = [*report.metadata["inputs"].values(), *report.metadata["outputs"].values()]
    assert named == [value["shape"] for value in described], "the axes of variable length are named"


# What a file computes


def test_an_onnx_file_predicts_what_the_model_predicts_from_pictures(classifier, tmp_path):
    report = zoo.export(classifier, tmp_path / "a.onnx", preprocess=True, probabilities=True)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    pictures = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), np.uint8)
    (found,) = session.run(["probabilities"], {"images": pictures})
    expected = classifier.predict(torch.from_numpy(pictures)).probabilities.numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert expected.std() > 0.01
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["zoo"])
    assert metadata["class_names"] == ["a", "b", "c"]
    assert metadata["preprocessing"]["size"] == [8, 8]
    assert metadata["settings"] == {"flip_tta": True}
    assert metadata["inputs"]["images"]["shape"] == ["batch", 1, 8, 8]
    assert str(Path(__file__).parents[3]).encode() not in (tmp_path / "a.onnx").read_bytes(), "no path of this machine"
    assert "checked with onnxruntime" in str(report) and report.difference < 1e-6


def test_a_torch_export_file_runs_for_any_number_of_samples_and_carries_metadata(classifier, tmp_path):
    zoo.export(classifier, tmp_path / "a.pt2")
    extra = {"zoo": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    assert json.loads(extra["zoo"])["model_class"] == "zoo.models.mlp.module.MLPClassifier"
    x = torch.randn(11, 1, 8, 8)
    with torch.no_grad():
        expected = classifier.predictive(x).log_probabilities
        assert torch.allclose(program.module()(x).log_softmax(1), expected, atol=1e-6)


def test_weights_are_those_of_the_average_under_the_names_of_the_network(classifier, tmp_path):
    report = zoo.export(classifier, tmp_path / "a.safetensors")
    classifier.network.load_state_dict(load_file(tmp_path / "a.safetensors"))
    x = torch.randn(2, 1, 8, 8)
    with eval_mode(classifier):
        assert torch.equal(classifier.network(x), classifier.ema(x))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert json.loads(file.metadata()["zoo"])["config"]["width"] == 8
    assert report.difference is None


@pytest.mark.parametrize(
    ("solver", "draws"), [("deis", 1), ("ancestral", 3), ("predictor_corrector", 5), ("reverse_process", 3)]
)
def test_the_sampler_of_a_diffusion_model_draws_what_the_model_draws(solver, draws):
    model = zoo.Diffusion((2,), 3, conditional=True, network=residual_mlp(8))
    nn.init.normal_(model.averaged.network.head[2].weight)
    built = model.export_sampler(steps=3, solver=solver, guidance_scale=0.5)
    seeds, labels = torch.arange(4), torch.tensor([0, 1, 2, 3])
    noise = SampleNoise(seeds, (2,), model.device, torch.float64)
    values = torch.stack([noise() for _ in range(draws)], 1)
    assert built.inputs["noise"].shape == ((2,) if draws == 1 else (draws, 2))
    with eval_mode(model):
        found = built.module(values[:, 0] if draws == 1 else values, labels)
    expected = model.sample(4, labels=labels, seeds=seeds, steps=3, solver=solver, guidance_scale=0.5)
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_sampler_of_a_consistency_model_takes_noise_for_every_step():
    model = zoo.ConsistencyModel((2,), network=residual_mlp(8))
    nn.init.normal_(model.averaged.network.head[2].weight)
    built = model.export_sampler(steps=3)
    noise = SampleNoise(torch.arange(4), (2,), model.device, torch.float64)
    with eval_mode(model):
        found = built.module(torch.stack([noise() for _ in range(3)], 1))
    assert torch.allclose(found, model.sample(4, seeds=torch.arange(4), steps=3), atol=1e-6)


# Models of others


class Foreign(LightningModule):
    """A module that knows nothing of the zoo."""

    input_shape = (3,)

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.fault = fault

    def forward(self, x):
        if self.fault == "len":
            return self.layer(x) + torch.zeros(len(x), 1)
        return self.layer(x if self.fault != "shape" else x[:, :2])


class WithoutForward(LightningModule):
    input_shape = (3,)


def test_of_a_foreign_module_the_forward_is_exported(tmp_path):
    report = zoo.export(Foreign(), tmp_path / "a.pt2")
    assert report.metadata["part"] == "forward"
    assert report.metadata["outputs"]["output"]["shape"] == ["batch", 2]
    assert report.metadata["class_names"] is None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WithoutForward, "WithoutForward has no forward and names no exports"),
        (partial(Foreign, "shape"), r"Foreign does not run on \(1, 3\): mat1 and mat2"),
        (partial(Foreign, "len"), r"works for one batch size only; use x.shape\[0\] in place of len\(x\)"),
    ],
)
def test_a_module_that_cannot_be_exported_is_named(model, message, tmp_path):
    with pytest.raises(UserError, match=message):
        zoo.export(model(), tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.txt"}, r"a\.txt must end in one of \.onnx for onnx"),
        ({"path": "a.onnx", "format": "torch_export"}, r"a\.onnx must end in \.pt2 for the format torch_export"),
        ({"path": "a.onnx", "format": "onx"}, "format is 'onx'; choose one of onnx, torch_export"),
        ({"path": "a.onnx", "part": "sampler"}, "MLPClassifier has no part sampler; it has classifier"),
        ({"path": "a.onnx", "steps": 3}, "has no option steps; its options are preprocess, probabilities"),
        ({"path": "there.onnx"}, "there.onnx exists already; choose another name"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, classifier, tmp_path):
    (tmp_path / "there.onnx").touch()
    with pytest.raises(UserError, match=message):
        zoo.export(classifier, **{**arguments, "path": tmp_path / arguments["path"]})
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]


def test_a_file_that_computes_something_else_is_not_written(classifier, tmp_path, monkeypatch):
    wrong = export_formats.FORMATS["torch_export"]._replace(run=lambda content: lambda x: torch.full((len(x), 3), 7.0))
    monkeypatch.setitem(export_formats.FORMATS, "torch_export", wrong)
    with pytest.raises(UserError, match=r"the file computes something else than the model: the difference is .*; noth"):
        zoo.export(classifier, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(export_formats, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"the format onnx needs onnx and onnxscript: pip install lightning-zoo\[onnx\]"
    ):
        zoo.export(classifier, tmp_path / "a.onnx")
    known = export_formats.FORMATS["onnx"]._replace(write=lambda *_: b"graph")
    monkeypatch.setitem(export_formats.FORMATS, "onnx", known)
    assert str(zoo.export(classifier, tmp_path / "a.onnx")).endswith("not checked: pip install onnxruntime")


def test_a_model_beyond_the_limit_of_onnx_is_refused(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(export_formats, "ONNX_LIMIT", 100)
    with pytest.raises(UserError, match=r"one ONNX file holds less than 2 GiB, and this model has .* torch_export"):
        zoo.export(classifier, tmp_path / "a.onnx")


def test_pictures_need_known_preprocessing_and_ensembles_are_not_exported(classifier):
    classifier.trained_on = TrainingData()
    with pytest.raises(UserError, match="does not say how pictures are normalized: leave out preprocess"):
        classifier.export_classifier(preprocess=True)
    classifier.ensemble = ["a.ckpt"]
    with pytest.raises(UserError, match="export each member"):
        classifier.export_classifier()
