"""A search: by which metric, and on which Trainers."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.unit.training import quiet_trainer
from zoo.callbacks import BestAndLastCheckpoint
from zoo.cli.search import check_trainer, metric_and_mode
from zoo.errors import UserError


def choose(metric=None, mode=None, monitor="val/acc"):
    callback = BestAndLastCheckpoint(monitor, "max") if monitor else ModelCheckpoint()
    return metric_and_mode(quiet_trainer(callbacks=[callback], enable_checkpointing=True), metric, mode)


def test_the_metric_is_that_of_the_best_checkpoint_unless_another_is_given():
    assert choose() == choose("val/acc") == ("val/acc", "max")
    assert choose("val/loss", "min") == ("val/loss", "min")
    assert choose(mode="min") == ("val/acc", "min")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"monitor": None}, "keeps no best checkpoint by a metric: give --metric and --mode"),
        ({"metric": "val/loss"}, "--mode must be given with --metric val/loss: min or max"),
        ({"monitor": "test/acc"}, "test/acc is of the test split, by which nothing is chosen"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        choose(**given)


def test_several_devices_and_fast_runs_are_refused():
    check_trainer(quiet_trainer())
    with pytest.raises(UserError, match="one device, not on 2"):
        check_trainer(quiet_trainer(devices=2))
    with pytest.raises(UserError, match="fast_dev_run measures nothing"):
        check_trainer(quiet_trainer(fast_dev_run=True))
