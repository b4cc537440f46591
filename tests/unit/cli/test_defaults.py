"""Callbacks and plugins that the command line adds."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelSummary, TQDMProgressBar

from tests.helpers.networks import mlps
from zoo import GAN, MLPClassifier
from zoo.callbacks import ClassReport, PredictionWriter, RunReport, StopOnNonFinite
from zoo.checkpoints.writing import AtomicCheckpointIO
from zoo.cli.defaults import (
    NoProfiler,
    allow_cheap_checks_for_gpus,
    as_list,
    default_callbacks,
    default_plugins,
    set_matmul_precision,
    threads_are_given,
    with_prediction_writer,
)
from zoo.cli.main import main
from zoo.errors import UserError


def names(added) -> list[str]:
    return [type(callback).__name__ for callback in added]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("fit", ["ShortProgressBar", "StopOnSignal", "LoggerState", "StayStopped", "ChooseThreads", "StopOnNonFinite"]),
        ("validate", ["ShortProgressBar", "StopOnSignal"]),
        ("test", ["ShortProgressBar", "StopOnSignal"]),
        ("predict", ["ShortProgressBar", "StopOnSignal"]),
    ],
)
def test_callbacks_of_each_command(command, expected):
    assert names(default_callbacks(command, [], progress_bar=True, model_summary=False)) == expected
    assert names(default_callbacks(command, [], progress_bar=False, model_summary=False)) == expected[1:]


def test_the_report_is_that_of_the_command_line_also_if_the_user_gives_one():
    report = RunReport(program="python cli.py", describe=lambda *_: {})
    assert report in default_callbacks("fit", [], False, False, report=report)
    assert report not in default_callbacks("validate", [], False, False, report=report)
    own = RunReport(mistakes=3)
    assert "RunReport" not in names(default_callbacks("fit", [own], False, False, report=report))
    assert (own.program, own.describe, own.mistakes) == ("python cli.py", report.describe, 3)


def test_the_test_of_a_classifier_has_a_report():
    model = MLPClassifier((1, 8, 8), 10, width=4, depth=1)
    assert names(default_callbacks("test", [], False, False, model)) == ["ClassReport", "StopOnSignal"]
    assert names(default_callbacks("test", [ClassReport("own")], False, False, model)) == ["StopOnSignal"]
    assert names(default_callbacks("validate", [], False, False, model)) == ["StopOnSignal"]
    assert names(default_callbacks("test", [], False, False, GAN((1, 8, 8), 10, **mlps(8)))) == ["StopOnSignal"]


def test_callbacks_of_the_user_replace_the_defaults():
    own: list[Callback] = [TQDMProgressBar(), ModelSummary()]
    assert names(default_callbacks("predict", own, progress_bar=True)) == ["StopOnSignal"]
    assert names(default_callbacks("predict", own[:1], progress_bar=True)) == ["ShortModelSummary", "StopOnSignal"]
    assert "StopOnNonFinite" not in names(default_callbacks("fit", [StopOnNonFinite(5)], progress_bar=False))


def test_predictions_are_written_by_default_or_by_a_callback_of_the_user():
    class OwnWriter(BasePredictionWriter):
        pass

    (writer,) = with_prediction_writer([], "a.csv", overwrite=True)
    assert isinstance(writer, PredictionWriter) and (writer.path, writer.overwrite) == ("a.csv", True)
    own = OwnWriter("batch")
    assert with_prediction_writer([own], None, overwrite=False) == [own]
    given = PredictionWriter("mine.csv")
    assert with_prediction_writer([given], None, overwrite=True) == [given] and given.overwrite
    with pytest.raises(UserError, match=r"--out b\.csv is for the default table"):
        with_prediction_writer([given], "b.csv", overwrite=False)


def test_checkpoints_are_written_atomically_unless_the_user_has_a_plugin_for_them():
    (plugin,) = default_plugins([])
    assert isinstance(plugin, AtomicCheckpointIO)
    assert default_plugins([TorchCheckpointIO()]) == []


def test_an_option_of_the_trainer_is_none_one_object_or_a_list():
    assert as_list(None) == []
    assert as_list("a") == ["a"]
    assert as_list(["a", "b"]) == ["a", "b"]


@pytest.fixture
def matmul_precision():
    """Keeps torch's setting as it is."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("matmul_precision")
@pytest.mark.parametrize(
    ("choice", "accelerator", "expected"),
    [
        ("auto", CPUAccelerator(), "highest"),
        ("auto", CUDAAccelerator(), "high"),
        ("medium", CUDAAccelerator(), "medium"),
        ("high", CPUAccelerator(), "high"),
    ],
)
def test_float32_products_are_tf32_on_cuda_unless_the_option_says_otherwise(choice, accelerator, expected):
    torch.set_float32_matmul_precision("highest")
    set_matmul_precision(choice, SimpleNamespace(accelerator=accelerator))
    assert torch.get_float32_matmul_precision() == expected


@pytest.mark.usefixtures("matmul_precision")
def test_the_command_line_takes_the_precision_of_float32_products(in_an_empty_folder):
    options = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    main(["fit", "--config=gan.yaml", *options, "--matmul_precision=medium"])
    assert torch.get_float32_matmul_precision() == "medium"
    assert "matmul_precision: medium" in Path("runs/gan/version_0/config.yaml").read_text()


@pytest.fixture
def threads(monkeypatch):
    """Keeps torch's number of threads, and lets it be as if no variable had set it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_the_number_of_threads_is_the_users_if_an_option_a_variable_or_a_plugin_sets_it(threads, monkeypatch):
    monkeypatch.setattr("zoo.cli.defaults._INITIAL_THREADS", threads)
    assert not threads_are_given("auto")
    assert threads_are_given(threads)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_are_given("auto")
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    torch.set_num_threads(threads + 1)
    assert threads_are_given("auto")


def test_the_command_line_sets_the_number_of_threads(in_an_empty_folder, threads):
    options = ["--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    main(["fit", "--config=gan_digits.yaml", *options, "--trainer.callbacks=null", "--threads=3"])
    assert torch.get_num_threads() == 3
    assert "threads: 3" in Path("runs/gan_digits/version_0/config.yaml").read_text()


def test_torch_asks_for_gpus_without_nvml_where_there_is_none(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    allow_cheap_checks_for_gpus()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    allow_cheap_checks_for_gpus()
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


def test_a_run_without_a_profiler_makes_no_context_for_a_hook():
    profiler = NoProfiler()
    with profiler.profile("a hook") as entered, profiler.profile("another one inside of it"):
        assert entered is None
    assert profiler.profile("a hook") is profiler.profile("another hook")
