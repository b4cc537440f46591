"""The contract of the callbacks, for every callback in the registry: the checks that plugins run as well."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.helpers.networks import mlps, residual_mlp
from zoo import GAN, Diffusion, Seq2Seq
from zoo.callbacks import OutOfDistribution
from zoo.callbacks.logger_state import LoggerState
from zoo.callbacks.stay_stopped import StayStopped
from zoo.datamodules import Digits, Points, Sequences
from zoo.registry import entries, find_class
from zoo.testing import check_callback

points = partial(Points, "gaussians", num_train=1000, num_test=300, val_size=200, batch_size=32)
diffusion = partial(Diffusion, network=residual_mlp(8), steps=2)
gan = partial(GAN, latent_dim=4, **mlps(16))
sequences = partial(Sequences, digits=4, num_train=1000, num_test=101, val_size=101, batch_size=32)

# Arguments of `check_callback`; by default on a small classifier of digits.
CASES: dict[str, dict[str, Any]] = {
    "AttentionMaps": {"model": partial(Seq2Seq, layers=1, width=16, heads=2), "data": sequences, "every_n_steps": 4},
    "BestAndLastCheckpoint": {"monitor": "val/loss"},
    "ClassReport": {},
    "CurvePlotter": {},
    "EquilibriumReport": {"model": gan, "data": points, "n": 100},
    "GradientFlow": {"every_n_steps": 3},
    "ModeCoverage": {"model": diffusion, "data": points, "n": 20},
    "NotebookProgress": {},
    "OutOfDistribution": {},
    "PredictionWriter": {"path": "predictions.csv"},
    # Its files hold times, so those of a resumed run are others.
    "RunReport": {"checks": ("training", "test", "checkpoint", "other_models", "processes")},
    "SampleLogger": {"model": diffusion, "data": points, "n": 4, "every_n_steps": 3},
    "ShortProgressBar": {},
    "StopOnNonFinite": {"every_n_steps": 1},
    "StopOnSignal": {},
}
QUICK = ("BestAndLastCheckpoint", "SampleLogger", "StopOnNonFinite")  # the others have quick tests of their own


def out_of_distribution() -> OutOfDistribution:
    return OutOfDistribution(Digits())


@pytest.mark.usefixtures("cheap_reports", "in_an_empty_folder", "reports")
@pytest.mark.parametrize(
    "name",
    [e.name if e.name in QUICK else pytest.param(e.name, marks=pytest.mark.slow) for e in entries("callbacks")],
)
def test_every_callback_keeps_the_contract(name):
    if name not in CASES:
        pytest.fail(f"{name} is in the registry but has no arguments for check_callback: add an entry to CASES")
    callback = out_of_distribution if name == "OutOfDistribution" else find_class(name)
    check_callback(callback, **CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("callback", [LoggerState, StayStopped])
def test_callbacks_of_the_command_line_keep_the_contract(callback):
    check_callback(callback)
