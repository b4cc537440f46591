"""Objective: the best value of a metric over a run, and the end of a run that is told to end."""

from __future__ import annotations

import math

import pytest

from tests.unit.training import quiet_trainer
from zoo import MLPClassifier
from zoo.callbacks.objective import Objective
from zoo.datamodules import Digits
from zoo.errors import UserError

VALUES = [math.nan, 3.0, 1.0, 2.0, math.nan]


class Scripted(MLPClassifier):
    """Logs given values, one in every validation."""

    def on_validation_epoch_end(self):
        self.log("val/x", 0.0 if self.trainer.sanity_checking else VALUES[self.current_epoch])


def train(objective: Objective, **options):
    trainer = quiet_trainer(callbacks=[objective], max_epochs=len(VALUES), **options)
    trainer.fit(Scripted((1, 8, 8), 10, width=4, depth=1), Digits(batch_size=600))
    return trainer


@pytest.mark.parametrize(("mode", "best"), [("min", 1.0), ("max", 3.0)])
def test_the_best_value_is_kept_without_nan_and_the_sanity_check(mode, best):
    objective = Objective("val/x", mode)
    train(objective, num_sanity_val_steps=1)
    assert (objective.best, objective.validations, objective.pruned, objective.steps) == (best, 5, False, 10)


def test_a_run_that_is_pruned_ends_after_that_validation():
    asked = []
    objective = Objective("val/x", "min", lambda number, value: asked.append((number, value)) or number == 3)
    trainer = train(objective)
    assert objective.pruned and trainer.global_step == objective.steps == 6
    assert asked[1:] == [(2, 3.0), (3, 1.0)] and math.isnan(asked[0][1])


def test_a_metric_that_is_not_measured_is_named():
    with pytest.raises(UserError, match=r"val/y is not measured in validation; did you mean val/x\?"):
        train(Objective("val/y"))
